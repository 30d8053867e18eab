"""`sgl.Engine`s that start in a second: forks of a process that has the hooks of RaaS in, too."""

import multiprocessing
import os
import pickle
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness.server import STRICT
from forked_server import fork_context, let_sglang_fork, write_to

TIMEOUT_S = 300
FLAGS = {
    **{"device": "cpu", "attention_backend": "torch_native", "dtype": "float32"},
    **{"grammar_backend": "none", "skip_tokenizer_init": True, "log_level": "error"},
    **{"max_total_tokens": 4000, "max_running_requests": 4},
    "max_mamba_cache_size": 100,  # states; or they take most of the host's memory
}
RAAS_FLAGS = {"kv_policy": "raas", "kv_budget": 64}


class Request(NamedTuple):
    """A greedy request; it names no policy where there is no plugin."""

    input_ids: list[int]
    tokens: int
    policy: str | None = None
    budget: int | None = None

    @property
    def sampling_params(self) -> dict[str, Any]:
        params = {"temperature": 0, "max_new_tokens": self.tokens, "ignore_eos": True}
        custom = {"kv_policy": self.policy, "kv_budget": self.budget}
        chosen = {key: value for key, value in custom.items() if value is not None}
        return {**params, "custom_params": chosen} if chosen else params


class Answer(NamedTuple):
    """What came back of a request.

    Attributes:
        output_ids: Generated tokens.
        logprobs: Log-probability of each.
        meta_info: SGLang's.
        places: [steps, Y, H] int32. Place of the budget that each step stored to; empty of a
            request that gives nothing up.
    """

    output_ids: list[int]
    logprobs: list[float]
    meta_info: dict[str, Any]
    places: np.ndarray


class ForkedEngines:
    """Runs engines one after the other, each in a process of its own.

    Args:
        with_raas: Whether they load RaaS; else they load no plugin.
    """

    def __init__(self, with_raas: bool) -> None:
        self._with_raas = with_raas
        self._host = ProcessPoolExecutor(
            1, mp_context=fork_context(), initializer=_prepare, initargs=(with_raas,)
        )

    def ask(self, model_path: Path, batches: list[list[Request]]) -> list[list[Answer]]:
        """Starts an engine, asks it batch after batch, and stops it.

        Evicting requests of one batch must be of different policies.

        Raises:
            RuntimeError: the engine failed; the text ends with what it said.
        """
        return self._host.submit(_fork, model_path, batches, self._with_raas).result()

    def close(self) -> None:
        self._host.shutdown()


def _prepare(with_raas: bool) -> None:
    """Does once what each engine would do anew."""
    from sglang.srt.models.registry import ModelRegistry, import_model_classes

    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.path.append(str(Path(__file__).parent / "plugins" / "linear"))
    import linear_plugin

    linear_plugin.register()
    # The reasoner has a class of its own for Qwen2.
    ModelRegistry.models = import_model_classes("sglang.srt.models")
    ModelRegistry._default_models_loaded = True
    os.environ |= {**STRICT, "SGLANG_PLUGINS": "raas" if with_raas else "none"}
    if with_raas:
        from sglang.srt.plugins import load_plugins

        from raas_patches import installation

        load_plugins()
        installation.require_seams()
    let_sglang_fork()


def _end_with_parent() -> None:
    """Or else it would wait for work when pytest was killed."""
    multiprocessing.parent_process().join()
    os._exit(1)


def _fork(model_path: Path, batches: list[list[Request]], with_raas: bool) -> list[list[Answer]]:
    """SGLang's settings are global, so a process is good for one engine."""
    log = model_path / "engine.log"
    context = multiprocessing.get_context("fork")
    reader, writer = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(writer, log, model_path, batches, with_raas))
    process.start()
    writer.close()
    try:
        if not reader.poll(TIMEOUT_S):
            raise TimeoutError(f"the engine did not answer in {TIMEOUT_S} s")
        return reader.recv()
    except EOFError:
        raise RuntimeError(f"the engine failed:\n{log.read_text()[-8000:]}") from None
    finally:
        process.kill()  # SGLang's processes end with it
        process.join()


def _run(
    writer: Connection,
    log: Path,
    model_path: Path,
    batches: list[list[Request]],
    with_raas: bool,
) -> None:
    import sglang as sgl
    from sglang.srt.utils import kill_itself_when_parent_died

    kill_itself_when_parent_died()
    write_to(log)
    record = model_path / "places.pickle"
    if with_raas:
        _record_places(record)
    engine = sgl.Engine(model_path=str(model_path), **FLAGS, **(RAAS_FLAGS if with_raas else {}))
    writer.send([_ask(engine, batch, record) for batch in batches])
    engine.shutdown()


def _record_places(path: Path) -> None:
    """Lets the scheduler, which is forked from here, note where it stores."""
    from raas_kernels import DecodeBatch, Policy
    from raas_sglang.pool import RaasTokenToKVPool

    claim_slots = RaasTokenToKVPool.claim_slots

    def noting(pool: RaasTokenToKVPool, rows: DecodeBatch) -> None:
        claim_slots(pool, rows)
        with path.open("ab") as file:
            for row, policy in enumerate(rows.requests.policies.tolist()):
                if policy != Policy.DENSE:
                    places = pool.state.step.places[:, row].numpy()
                    pickle.dump((Policy(policy).label, places), file)

    RaasTokenToKVPool.claim_slots = noting


def _ask(engine: Any, batch: list[Request], record: Path) -> list[Answer]:
    record.write_bytes(b"")
    outputs = engine.generate(
        input_ids=[request.input_ids for request in batch],
        sampling_params=[request.sampling_params for request in batch],
        return_logprob=True,
    )
    places: dict[str | None, list[np.ndarray]] = {request.policy: [] for request in batch}
    with record.open("rb") as file:
        while file.peek(1):
            policy, of_step = pickle.load(file)
            places[policy].append(of_step)
    return [
        Answer(
            output["output_ids"],
            [logprob for logprob, *_ in output["meta_info"]["output_token_logprobs"]],
            output["meta_info"],
            np.array(places[request.policy]),
        )
        for request, output in zip(batch, outputs, strict=True)
    ]
