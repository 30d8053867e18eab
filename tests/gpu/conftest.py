"""Servers on one GPU. They start side by side, since a start is mostly imports and compilation."""

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

import hicache
from adapters import FLAGS as ADAPTERS
from benchmarks.harness.arms import loads_plugin
from benchmarks.harness.server import STRICT, LocalServer
from raas_sglang.cpu import has_driver
from scaled_reasoner import scaled_reasoner

# The pool is small; what is free of most of the memory is more than enough for each.
FLAGS = (
    *("--max-running-requests", "128", "--cuda-graph-max-bs-decode", "128"),
    *("--max-total-tokens", "300000", "--mem-fraction-static", "0.85"),
    *("--skip-server-warmup", "--sleep-on-idle"),
)
# Where it does not matter how prompts are prefilled, so that servers start faster.
EAGER_PREFILL = ("--disable-prefill-cuda-graph",)
RAAS = ("--kv-policy", "raas", "--kv-budget", "64", "--kv-max-budget", "1024")
FLASHINFER = ("--attention-backend", "flashinfer")
HALF = ("--dtype", "float16", *FLASHINFER)
DETERMINISTIC = (*RAAS, "--enable-deterministic-inference", *EAGER_PREFILL)
TP = ("--tp-size", "2", "--disable-custom-all-reduce", *EAGER_PREFILL)
# A later flag overrides an earlier one.
PAPER = ("--kv-policy", "raas-paper")
SMALL = ("--max-total-tokens", "144", "--chunked-prefill-size", "32", "--kv-max-budget", "128")
SAME_ATTENTION = ("--prefill-attention-backend", "fa3", "--decode-attention-backend", "flashinfer")
# Each layer is loaded from the host late: what does not wait for it reads something else.
LATE = {**STRICT, "SGLANG_TEST_HICACHE_H2D_DELAY_CYCLES": "20000000"}
SCALED = "the reasoner with scales"  # its folder, once it is made
FLOAT8 = (*FLASHINFER, "--model-path", SCALED, "--kv-cache-dtype", "fp8_e4m3")


def _traced(port: int) -> tuple[str, ...]:
    """Publishes every step; each rank takes a port, upwards from this one."""
    return "--kv-trace-endpoint", f"tcp://127.0.0.1:{port}", "--kv-trace-interval", "1"


# On a host that others share, NVLink multicast is better left alone, and NCCL will do.
TWO_GPUS = {**STRICT, "NCCL_NVLS_ENABLE": "0", "TORCH_SYMM_MEM_DISABLE_MULTICAST": "1"}

# Flags and environment of the server behind each fixture. The first four are compared in what they
# read back from the device, which SGLang's strict checks do as well.
SERVERS: dict[str, tuple[tuple[str, ...], dict[str, str]]] = {
    "plain_server": (SAME_ATTENTION, {"SGLANG_PLUGINS": "none"}),
    "server": (RAAS, {}),
    "plain_float8_server": (FLOAT8, {"SGLANG_PLUGINS": "none"}),
    "float8_server": ((*RAAS, *FLOAT8), {}),
    "paged_server": ((*RAAS, "--page-size", "16", "--chunked-prefill-size", "256"), STRICT),
    "half_server": ((*RAAS, *HALF, "--disable-overlap-schedule"), STRICT),
    "deterministic_server": (DETERMINISTIC, STRICT),
    "eager_server": ((*DETERMINISTIC, "--disable-decode-cuda-graph"), STRICT),
    "small_server": (
        (*RAAS, *PAPER, *SMALL),
        {**STRICT, "SGLANG_CLIP_MAX_NEW_TOKENS_ESTIMATION": "8"},
    ),
    "adapter_server": ((*RAAS, *ADAPTERS, *EAGER_PREFILL), STRICT),
    "hicache_server": ((*DETERMINISTIC, *hicache.FLAGS, "--page-size", "16"), LATE),
    "write_back_server": (
        (*RAAS, *hicache.FLAGS, *hicache.WRITE_BACK, *hicache.ONE_BY_ONE, "--page-size", "1"),
        LATE,
    ),
    "traced_server": ((*RAAS, *_traced(25557), *EAGER_PREFILL), STRICT),
    "tp_server": ((*RAAS, *_traced(25567), *TP), TWO_GPUS),
    "dp_server": ((*RAAS, "--dp-size", "2", *EAGER_PREFILL), TWO_GPUS),
}
Fleet = dict[str, Future[LocalServer]]


def _started(server: LocalServer) -> LocalServer:
    server.start()
    return server


def _asked_names(item: pytest.Item) -> list[object]:
    """Fixtures of a test, and values of its parameters, which may name servers too."""
    call, names = getattr(item, "callspec", None), [*item.fixturenames]
    for value in call.params.values() if call else ():
        names += value if isinstance(value, tuple) else [value]
    return names


@pytest.fixture(scope="session")
def fleet(request, tmp_path_factory) -> Iterator[Fleet]:
    """The servers that the selected tests ask for, all starting at the same time."""
    assert has_driver(), "libcuda must be where the linker looks for it, or SGLang's kernels fail"
    wanted = [name for item in request.session.items for name in _asked_names(item)]
    scaled = str(scaled_reasoner(tmp_path_factory.mktemp("scaled")))
    servers = {
        name: LocalServer(
            [*FLAGS, *(scaled if flag == SCALED else flag for flag in flags)],
            {**os.environ, **environment},
        )
        for name, (flags, environment) in SERVERS.items()
        if name in wanted
    }
    with ThreadPoolExecutor(len(servers)) as pool:
        yield {name: pool.submit(_started, server) for name, server in servers.items()}
        list(pool.map(LocalServer.stop, servers.values()))


def _running(fleet: Fleet, name: str) -> Iterator[LocalServer]:
    running = fleet[name].result()
    yield running
    assert running.is_alive(), running.log_end()


@pytest.fixture(scope="session")
def plain_server(fleet) -> Iterator[LocalServer]:
    """SGLang without RaaS, with the attention kernels that RaaS uses."""
    for running in _running(fleet, "plain_server"):
        assert not loads_plugin(running)
        yield running


@pytest.fixture(scope="session")
def server(fleet) -> Iterator[LocalServer]:
    """RaaS as a user starts it: radix cache, overlap scheduling and CUDA graphs on."""
    yield from _running(fleet, "server")


@pytest.fixture(scope="session")
def float8_server(fleet) -> Iterator[LocalServer]:
    """RaaS over a KV cache of float8 with the scales of a checkpoint."""
    yield from _running(fleet, "float8_server")


@pytest.fixture(
    scope="session",
    params=[("server", "plain_server"), ("float8_server", "plain_float8_server")],
    ids=["bf16", "fp8_e4m3"],
)
def pair(request, fleet) -> Iterator[tuple[LocalServer, LocalServer]]:
    """RaaS, and SGLang without it, with the same KV cache and the same attention kernels."""
    ours, plain = (fleet[name].result() for name in request.param)
    assert loads_plugin(ours)
    assert not loads_plugin(plain)
    yield ours, plain
    assert ours.is_alive(), ours.log_end()
    assert plain.is_alive(), plain.log_end()


@pytest.fixture(scope="session")
def paged_server(fleet) -> Iterator[LocalServer]:
    """RaaS with page size 16 and prompts in chunks of 256 tokens."""
    yield from _running(fleet, "paged_server")


@pytest.fixture(scope="session")
def half_server(fleet) -> Iterator[LocalServer]:
    """RaaS in float16, with FlashInfer for prefill as well, and without overlap scheduling."""
    yield from _running(fleet, "half_server")


@pytest.fixture(scope="session")
def deterministic_server(fleet) -> Iterator[LocalServer]:
    """RaaS with kernels whose results do not depend on the batch."""
    yield from _running(fleet, "deterministic_server")


@pytest.fixture(scope="session")
def eager_server(fleet) -> Iterator[LocalServer]:
    """As `deterministic_server`, without CUDA graphs."""
    yield from _running(fleet, "eager_server")


@pytest.fixture(scope="session")
def small_server(fleet) -> Iterator[LocalServer]:
    """RaaS in a pool of 144 tokens, where admission expects too little of dense requests."""
    yield from _running(fleet, "small_server")


@pytest.fixture(scope="session")
def adapter_server(fleet) -> Iterator[LocalServer]:
    """RaaS that takes LoRA adapters."""
    yield from _running(fleet, "adapter_server")


@pytest.fixture(scope="session")
def hicache_server(fleet) -> Iterator[LocalServer]:
    """RaaS with a hierarchical cache that copies what is prefilled to the host at once."""
    yield from _running(fleet, "hicache_server")


@pytest.fixture(scope="session")
def write_back_server(fleet) -> Iterator[LocalServer]:
    """RaaS with a hierarchical cache that copies what is evicted; the most urgent request runs."""
    yield from _running(fleet, "write_back_server")


@pytest.fixture(scope="session", params=["hicache_server", "write_back_server"])
def tiered_server(request, fleet) -> Iterator[LocalServer]:
    """RaaS with each of the two hierarchical caches."""
    yield from _running(fleet, request.param)


@pytest.fixture(scope="session")
def traced_server(fleet) -> Iterator[LocalServer]:
    """RaaS on one GPU that publishes every step."""
    yield from _running(fleet, "traced_server")


@pytest.fixture(scope="session")
def tp_server(fleet) -> Iterator[LocalServer]:
    """One model on two GPUs, each with one of its two KV heads; publishes every step."""
    yield from _running(fleet, "tp_server")


@pytest.fixture(scope="session")
def dp_server(fleet) -> Iterator[LocalServer]:
    """A model on each of two GPUs."""
    yield from _running(fleet, "dp_server")


@pytest.fixture(scope="session", params=["server", "paged_server", "half_server", "float8_server"])
def evicting_server(request, fleet) -> Iterator[LocalServer]:
    """RaaS in each of the ways that differ in what they do with memory."""
    yield from _running(fleet, request.param)
