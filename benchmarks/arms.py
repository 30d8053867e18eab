"""The arms of a comparison: servers with one model and equal flags that differ in the KV policy."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from decode_log import DecodeBatch, decode_batches
from local_server import CPU_FLAGS, LocalServer
from raas_sglang.cpu import cpu_environment, has_driver

POLICIES: dict[str, tuple[str, ...]] = {
    "default": (),  # SGLang as it comes, the plugin not loaded
    "off": ("--kv-policy", "dense"),
    "raas": ("--kv-policy", "raas"),
    "raas-paper": ("--kv-policy", "raas", "--kv-stamp-rule", "paper"),
    "raas-exact": ("--kv-policy", "raas", "--kv-score", "exact"),
    "raas-paper-exact": ("--kv-policy", "raas", "--kv-stamp-rule", "paper", "--kv-score", "exact"),
}
# The bundled reasoner's head size is known to SGLang's Qwen2 through a plugin of its own.
HEAD_DIM_PLUGIN = "qwen2_head_dim"


class Arm:
    """One server.

    Args:
        name: Key of `POLICIES`.
        model_path: Folder with the model's `config.json`.
        budget: L in tokens, for the arms with the plugin.
        flags: Command line that all arms share.
    """

    def __init__(self, name: str, model_path: Path, budget: int, flags: Sequence[str]) -> None:
        self.name = name
        self.has_plugin = name != "default"
        self.is_evicting = name.startswith("raas")
        policy = (*POLICIES[name], "--kv-budget", str(budget)) if self.has_plugin else ()
        on_gpu = has_driver()
        environment = dict(os.environ) if on_gpu else cpu_environment()
        if not self.has_plugin:
            # A list without our plugin keeps it out; an empty one would let all of them in.
            environment["SGLANG_PLUGINS"] = HEAD_DIM_PLUGIN if _has_head_dim(model_path) else "none"
        self.flags = [*(() if on_gpu else CPU_FLAGS), *flags, *policy]
        self.server = LocalServer(self.flags, environment, model_path)

    def start(self) -> None:
        """Starts the server and proves that the plugin is there, or is not.

        Raises:
            RuntimeError: it did not start, or its plugin is not as the arm wants it.
        """
        with ThreadPoolExecutor(1) as pool:
            seen = pool.submit(loads_plugin, self.server.environment)
            self.server.start()
            loaded = seen.result()
        if loaded is not self.has_plugin:
            raise RuntimeError(
                f"arm {self.name} must run {'with' if self.has_plugin else 'without'} the plugin, "
                f"but SGLang's loader {'loads' if loaded else 'does not load'} it; "
                "install the plugin, and leave SGLANG_PLUGINS unset"
            )

    def post(self, route: str, **body: Any) -> requests.Response:
        """Sends a request that must succeed.

        Raises:
            RuntimeError: it did not.
        """
        response = requests.post(self.server.url + route, json=body, timeout=600)
        if response.status_code != 200:
            raise RuntimeError(f"{route} of arm {self.name} must succeed, got {response.text}")
        return response

    def pause(self) -> None:
        """Halts decoding between two steps; requests and their cache stay where they are."""
        self.post("/pause_generation", mode="in_place")

    def resume(self) -> None:
        """Goes on where `pause` halted."""
        self.post("/continue_generation")

    def clear(self) -> None:
        """Empties the radix cache, so that every batch starts from the same pool."""
        self.post("/flush_cache?timeout=60")

    def information(self) -> dict[str, Any]:
        """What the server says about itself."""
        answer = requests.get(self.server.url + "/server_info", timeout=60)
        answer.raise_for_status()
        return dict(answer.json())

    def check_answer(self, info: Mapping[str, Any]) -> None:
        """Makes sure that `meta_info` of an answer says what a request of this arm says.

        Raises:
            RuntimeError: it does not.
        """
        if self.has_plugin is not ("kv_policy" in info):
            raise RuntimeError(f"arm {self.name} must not answer {info}")

    def log_size(self) -> int:
        """Characters logged so far, a mark for `decode_batches`."""
        return len(self.server.log())

    def decode_batches(self, mark: int) -> list[DecodeBatch]:
        """What was logged about decode batches since a mark."""
        return decode_batches(self.server.log()[mark:])


def groups(arms: Sequence[Arm], is_together: bool) -> list[list[Arm]]:
    """Arms that are up at the same time: each alone, unless all are to be started at once."""
    return [list(arms)] if is_together else [[arm] for arm in arms]


@contextmanager
def started(arms: Sequence[Arm], progress: Callable[[str], None]) -> Iterator[None]:
    """Starts all arms at once and stops them in the end, whatever happens."""
    try:
        with ThreadPoolExecutor(len(arms)) as pool:
            for arm, _ in zip(arms, pool.map(Arm.start, arms), strict=True):
                progress(f"{arm.name} is up: {' '.join(arm.server.command)}")
        yield
    finally:
        for arm in arms:
            arm.server.stop()


def loads_plugin(environment: dict[str, str]) -> bool:
    """Whether SGLang's own loader, in the server's environment, imports the plugin.

    The server's log cannot tell: it loads plugins before it sets up logging.
    """
    program = (
        "import sys; from sglang.srt.plugins import load_plugins; load_plugins(); "
        "print('raas_patches.plugin' in sys.modules)"
    )
    command = [sys.executable, "-c", program]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"SGLang's plugin loader must run, got:\n{run.stderr}")
    return run.stdout.split()[-1] == "True"


def _has_head_dim(model_path: Path) -> bool:
    return "head_dim" in json.loads((model_path / "config.json").read_text())
