"""Builds SGLang's arguments in many ways; run by `unit/test_server_args.py`, prints JSON.

A process of its own, since plugins change SGLang for the rest of one.
"""

import copy
import inspect
import json
import pickle
import sys
from collections.abc import Callable
from typing import Any

import msgspec
from sglang.srt import server_args
from sglang.srt.arg_groups.arg_utils import record_fields
from sglang.srt.entrypoints.engine import Engine
from sglang.srt.plugins import load_plugins
from sglang.srt.runtime_context import get_context, publish

from reasoner import REASONER

MODEL = {"model_path": str(REASONER), "device": "cpu", "attention_backend": "torch_native"}
SETTINGS = {"kv_policy": "window", "kv_budget": 64}


def outcome(make: Callable[[], Any]) -> Any:
    """What was asked for and what would run, or the error."""
    try:
        made = make()
    except Exception as error:  # noqa: BLE001 - it is what is looked at
        return f"{type(error).__name__}: {error}"
    from raas_patches.active import config_of

    config = config_of(made)
    runs = None if config is None else [config.kv_policy, config.kv_budget]
    shown = made.resolved_dict()
    return {"runs": runs, "shown": [shown["kv_policy"], shown["kv_budget"]], "port": made.port}


def rebuilt(made: Any, names: Any) -> Any:
    return server_args.ServerArgs(**{name: getattr(made, name) for name in names})


def resolved(made: Any) -> Any:
    made.resolve_once()
    made.check_server_args()
    return pickle.loads(pickle.dumps(made))


def overridden(made: Any) -> Any:
    publish(made, role="tokenizer")
    get_context().override("a test", kv_budget=32)
    return made


def main() -> None:
    before = outcome(lambda: server_args.ServerArgs(**MODEL, **SETTINGS))
    load_plugins()
    made = server_args.ServerArgs(**MODEL, **SETTINGS)
    replace = msgspec.structs.replace
    command = ["--model-path", str(REASONER), "--device", "cpu", "--kv-policy", "window"]
    results = {
        "before": before,
        "made": outcome(lambda: made),
        "made by the engine": outcome(lambda: Engine.server_args_class(**MODEL, **SETTINGS)),
        "off": outcome(lambda: server_args.ServerArgs(**MODEL)),
        "off, sent": outcome(lambda: pickle.loads(pickle.dumps(server_args.ServerArgs(**MODEL)))),
        "command line": outcome(
            lambda: server_args.prepare_server_args([*command, "--kv-budget", "64"])
        ),
        "copy": outcome(lambda: copy.copy(made)),
        "deepcopy": outcome(lambda: copy.deepcopy(made)),
        "pickle": outcome(lambda: pickle.loads(pickle.dumps(made))),
        "resolved": outcome(lambda: resolved(copy.deepcopy(made))),
        "replace": outcome(lambda: replace(made, port=1234)),
        "replace both": outcome(lambda: replace(made, kv_policy="raas", kv_budget=32)),
        "replace by a larger": outcome(lambda: replace(made, kv_budget=2048)),
        "turn off": outcome(lambda: replace(made, kv_policy=None)),
        "wrong": outcome(lambda: replace(made, kv_budget=65)),
        "fields": outcome(lambda: rebuilt(made, [f.name for f in record_fields(type(made))])),
        "signature": outcome(
            lambda: rebuilt(made, inspect.signature(server_args.ServerArgs).parameters)
        ),
        "asdict": outcome(lambda: server_args.ServerArgs(**msgspec.structs.asdict(made))),
        "override": outcome(lambda: overridden(copy.deepcopy(made))),
    }
    with open(sys.argv[1], "wb") as file:
        pickle.dump(made, file)
    made.resolve_once()
    results["assign"] = outcome(lambda: setattr(made, "kv_policy", "raas"))
    print(json.dumps(results))


if __name__ == "__main__":
    main()
