"""The arms of a comparison: servers with one model and equal flags that differ in the KV policy."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from benchmarks.harness.cli import flag_number
from benchmarks.harness.decode_log import DecodeBatch, decode_batches
from benchmarks.harness.server import CPU_FLAGS, LocalServer
from raas_sglang.config import POLICY_NAMES
from raas_sglang.cpu import cpu_environment, has_driver

POLICIES: dict[str, tuple[str, ...]] = {
    "default": (),  # SGLang as it comes, the plugin not loaded
    "off": ("--kv-policy", "dense"),
    **{name: ("--kv-policy", name) for name in POLICY_NAMES if name != "dense"},
    "raas-traced": ("--kv-policy", "raas", "--kv-trace-endpoint"),
}


def is_evicting(name: str) -> bool:
    """Whether the requests of an arm keep no more than their budget."""
    return name not in ("default", "off")


class Arm:
    """One server.

    Args:
        name: Key of `POLICIES`.
        model_path: Folder with the model's `config.json`.
        budget: L in tokens, for the arms with the plugin.
        flags: Command line that all arms share.
    """

    def __init__(self, name: str, model_path: Path, budget: int, flags: Sequence[str]) -> None:
        self.name, self.model_path = name, model_path
        self.has_plugin = name != "default"
        self.is_evicting = is_evicting(name)
        policy = (*POLICIES[name], "--kv-budget", str(budget)) if self.has_plugin else ()
        on_gpu = has_driver()
        environment = dict(os.environ) if on_gpu else cpu_environment()
        if not self.has_plugin:
            # A list without our plugin keeps it out; an empty one would let all of them in.
            environment["SGLANG_PLUGINS"] = "none"
        self.flags = [*(() if on_gpu else CPU_FLAGS), *flags, *policy]
        self.server = LocalServer(self.flags, environment, model_path)

    def start(self) -> None:
        """Starts the server and proves that the plugin is there, or is not.

        Raises:
            RuntimeError: it did not start, or its plugin or its pool is not as the arm wants it.
        """
        self.server.start()
        loaded = loads_plugin(self.server)
        if loaded is not self.has_plugin:
            raise RuntimeError(
                f"arm {self.name} must run {'with' if self.has_plugin else 'without'} the plugin, "
                f"but the server {'has' if loaded else 'does not have'} it; "
                "install the plugin, and leave SGLANG_PLUGINS unset"
            )
        self._check_pool()
        # Else Python's garbage collector halts a scheduler for up to half a second now and then.
        self.post("/freeze_gc")

    def _check_pool(self) -> None:
        asked = flag_number(self.flags, "--max-total-tokens")
        if asked is None:
            return
        got = self.information()["max_total_num_tokens"]
        if got != asked:
            raise RuntimeError(
                f"the pool of arm {self.name} must hold {asked} tokens, got {got}; ask for less, "
                "start fewer arms together, or raise --mem-fraction-static in --server-flags"
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
    """Starts all arms at once, and in the end stops all, whatever happens."""
    try:
        with ThreadPoolExecutor(len(arms)) as pool:
            for arm, _ in zip(arms, pool.map(Arm.start, arms), strict=True):
                progress(f"{arm.name} is up: {' '.join(arm.server.command)}")
        yield
    finally:
        with ThreadPoolExecutor(len(arms)) as pool:
            list(pool.map(LocalServer.stop, [arm.server for arm in arms]))


def loads_plugin(server: LocalServer) -> bool:
    """Whether a running server has the plugin, which alone refuses a policy that there is not.

    Raises:
        RuntimeError: it answered neither as SGLang nor as the plugin does.
    """
    sampling = {"max_new_tokens": 1, "custom_params": {"kv_policy": "no policy"}}
    body = {"input_ids": [1], "sampling_params": sampling}
    response = requests.post(server.url + "/generate", json=body, timeout=600)
    if response.status_code == 400 and "kv_policy" in response.text:
        return True
    if response.status_code == 200:
        return False
    raise RuntimeError(f"a token must be answered or its policy refused, got {response.text}")
