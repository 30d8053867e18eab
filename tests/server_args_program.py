"""Builds SGLang's arguments in many ways; run by `unit/test_server_args.py`, prints JSON.

A process of its own, since plugins change SGLang for the rest of one.
"""

import copy
import dataclasses
import inspect
import json
import pickle
import sys
from collections.abc import Callable
from typing import Any

from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs, prepare_server_args

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
    shown = dataclasses.asdict(made)
    return {"runs": runs, "shown": [shown["kv_policy"], shown["kv_budget"]], "port": made.port}


def rebuilt(made: ServerArgs, names: Any) -> ServerArgs:
    return ServerArgs(**{name: getattr(made, name) for name in names})


def overridden(made: ServerArgs) -> ServerArgs:
    made.override("a test", kv_budget=32)
    made.check_server_args()
    return made


def main() -> None:
    before = outcome(lambda: ServerArgs(**MODEL, **SETTINGS))
    load_plugins()
    made = ServerArgs(**MODEL, **SETTINGS)
    command = ["--model-path", str(REASONER), "--device", "cpu", "--kv-policy", "window"]
    results = {
        "before": before,
        "made": outcome(lambda: made),
        "off": outcome(lambda: ServerArgs(**MODEL)),
        "command line": outcome(lambda: prepare_server_args([*command, "--kv-budget", "64"])),
        "copy": outcome(lambda: copy.copy(made)),
        "deepcopy": outcome(lambda: copy.deepcopy(made)),
        "pickle": outcome(lambda: pickle.loads(pickle.dumps(made))),
        "replace": outcome(lambda: dataclasses.replace(made, port=1234)),
        "replace both": outcome(lambda: dataclasses.replace(made, kv_policy="raas", kv_budget=32)),
        "replace by a larger": outcome(lambda: dataclasses.replace(made, kv_budget=2048)),
        "turn off": outcome(lambda: dataclasses.replace(made, kv_policy=None)),
        "fields of the class": outcome(
            lambda: rebuilt(made, [item.name for item in dataclasses.fields(ServerArgs)])
        ),
        "fields of the object": outcome(
            lambda: rebuilt(made, [item.name for item in dataclasses.fields(made)])
        ),
        "signature": outcome(lambda: rebuilt(made, inspect.signature(ServerArgs).parameters)),
        "asdict": outcome(lambda: ServerArgs(**dataclasses.asdict(made))),
        "override": outcome(lambda: overridden(copy.deepcopy(made))),
        "assign": outcome(lambda: setattr(made, "kv_policy", "raas")),
    }
    print(json.dumps(results))
    with open(sys.argv[1], "wb") as file:
        pickle.dump(made, file)


if __name__ == "__main__":
    main()
