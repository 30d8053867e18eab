"""Servers that the tests share, and what SGLang needs on a machine without a GPU."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import raas_sglang.cpu
from benchmarks.harness.arms import loads_plugin
from benchmarks.harness.rows import RowFile
from benchmarks.harness.server import CPU_FLAGS, STRICT, LocalServer, free_port
from forked_server import ForkedServer, ForkingServer, environment_at_start
from raas_sglang.cpu import cpu_environment, has_driver
from reasoner import REASONER

# An idle scheduler spins, and several of them share two cores here.
FLAGS = [*CPU_FLAGS, "--max-running-requests", "16", "--skip-server-warmup", "--sleep-on-idle"]
PREFERRED = {"kv_policy": "window", "kv_budget": 32}
PLUGINS = Path(__file__).parent / "plugins"


def pytest_configure() -> None:
    """Lets the tests and the processes that they start import SGLang without a GPU."""
    if not has_driver():
        os.environ.update(cpu_environment())
        sys.path.insert(0, str(Path(raas_sglang.cpu.__file__).parent))


def pytest_addoption(parser: pytest.Parser) -> None:
    """Flags for a run whose outcome is kept."""
    parser.addoption("--row", type=Path, help="append what came out to this file, as a JSON line")
    parser.addoption("--commit", help="commit that is tested, where git is not at hand")
    parser.addoption(
        "--weights", type=Path, nargs="+", default=[], help="folders of models that are tested too"
    )


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Stores how many tests passed, failed and were skipped, with device and versions."""
    path: Path | None = config.getoption("--row")
    if path is None or hasattr(config, "workerinput"):  # a worker of xdist has a part of the tests
        return
    counts = {
        name: len(terminalreporter.stats.get(name, ()))
        for name in ("passed", "failed", "error", "skipped")
    }
    arguments = ("-m", "pytest", *map(str, config.invocation_params.args))
    rows = RowFile(path, seed=0, commit=config.getoption("--commit"), command=arguments)
    rows.write("tests passed", [counts.pop("passed")], "tests", counts)


def start_server(
    *flags: str,
    page_size: int = 1,
    model_path: Path = REASONER,
    kind: type[LocalServer] = ForkedServer,
    **environment: str,
) -> LocalServer:
    """Returns a server that is not started yet, with SGLang's strict checks on."""
    settings = {**environment_at_start(page_size), **STRICT, **environment}
    return kind([*FLAGS, "--page-size", str(page_size), *flags], settings, model_path)


def refusal(*flags: str, model_path: Path = REASONER, **environment: str) -> str:
    """What a server says that must not start."""
    server = start_server(*flags, model_path=model_path, **environment)
    with pytest.raises(RuntimeError, match="did not start"):
        server.start()
    return server.log()


def beside(folder: str) -> dict[str, str]:
    """The environment in which SGLang finds the plugins of a folder of `plugins` beside RaaS."""
    paths = (str(PLUGINS / folder), cpu_environment()["PYTHONPATH"])
    return {"PYTHONPATH": os.pathsep.join(paths)}


@pytest.fixture(scope="session")
def server() -> Iterator[LocalServer]:
    """RaaS with radix cache and overlap scheduling on; the policy of requests that name none.

    `/server_info` counts what RaaS keeps.
    """
    flags = ("--kv-policy", "raas", "--kv-budget", "64", "--kv-max-budget", "512")
    more = ("--max-total-tokens", "20000", "--enable-response-store")
    with start_server(*flags, *more, **beside("census")) as running:
        yield running
        assert running.is_alive(), running.log_end()


@pytest.fixture(scope="session")
def plain_server() -> Iterator[LocalServer]:
    """SGLang without RaaS: what greedy output must be identical to."""
    with start_server("--max-total-tokens", "20000", SGLANG_PLUGINS="none") as running:
        assert not loads_plugin(running)
        yield running


@pytest.fixture(scope="session")
def retracting_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    """RaaS, prompts in chunks, requests retracted over and over.

    Its settings come from a file. What a request does not choose is `PREFERRED`, not the server's
    policy and budget. Another plugin hooks what RaaS hooks, before it.
    """
    config = {"kv-policy": "raas", "kv-budget": 64, "kv-max-budget": 256}
    path = tmp_path_factory.mktemp("settings") / "server.yaml"
    path.write_text(json.dumps(config))  # which is YAML as well
    settings = {"SGLANG_TEST_RETRACT": "1", "SGLANG_TEST_RETRACT_INTERVAL": "40"}
    preferred = ("--preferred-sampling-params", json.dumps({"custom_params": PREFERRED}))
    flags = ("--config", str(path), "--max-total-tokens", "20000", "--chunked-prefill-size", "64")
    more = (*preferred, "--enable-return-hidden-states")
    with start_server(*flags, *more, kind=ForkingServer, **settings, **beside("early")) as running:
        yield running
        assert running.is_alive(), running.log_end()


@pytest.fixture(scope="session")
def small_server() -> Iterator[LocalServer]:
    """The paper's rule in a pool of 144 tokens; admission expects too little of dense requests.

    Started by `sglang serve`; another plugin hooks what RaaS hooks, after it.
    """
    flags = ("--kv-policy", "raas-paper", "--kv-budget", "64", "--kv-max-budget", "128")
    pool = ("--max-total-tokens", "144", "--chunked-prefill-size", "32")
    expected = {"SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "8"}
    made = start_server(*flags, *pool, kind=ForkingServer, **expected, **beside("late"))
    made.command[2:4] = [str(Path(sys.executable).with_name("sglang")), "serve"]
    with made as running:
        yield running
        assert running.is_alive(), running.log_end()


@pytest.fixture(scope="session")
def paged_server() -> Iterator[LocalServer]:
    """Page size 16 and this project's Triton kernels, both interpreted on the CPU."""
    flags = ("--kv-policy", "raas", "--kv-budget", "32", "--kv-max-budget", "128")
    room = ("--max-total-tokens", "8000")
    with start_server(*flags, *room, page_size=16, kind=ForkingServer) as running:
        yield running
        assert running.is_alive(), running.log_end()


@pytest.fixture(scope="session")
def traced_server() -> Iterator[LocalServer]:
    """A server that says all that it does: metrics, log, and a trace of every step."""
    flags = ("--kv-policy", "raas", "--kv-budget", "64", "--max-total-tokens", "10000")
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    trace = ("--kv-trace-endpoint", endpoint, "--kv-trace-interval", "1")
    logs = ("--decode-log-interval", "20", "--log-requests", "--log-requests-level", "0")
    with start_server(*flags, *trace, "--enable-metrics", *logs) as running:
        yield running
        assert running.is_alive(), running.log_end()


def trace_endpoint(server: LocalServer) -> str:
    """Where a server publishes its trace."""
    return server.command[server.command.index("--kv-trace-endpoint") + 1]
