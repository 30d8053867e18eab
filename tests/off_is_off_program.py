"""Looks at all of SGLang before and after its plugins are loaded; run by `unit/test_off_is_off.py`.

A process of its own, since plugins change SGLang for the rest of one; prints JSON.
"""

import inspect
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from sglang.srt import server_args
from sglang.srt.arg_groups.arg_utils import record_fields
from sglang.srt.plugins import load_plugins

from raas_patches.installation import ALWAYS, ELSEWHERE, WITH_POLICY, WITH_TRACE, seams
from reasoner import REASONER

EVERY = ALWAYS + WITH_POLICY + WITH_TRACE + ELSEWHERE
CPU = ("--device", "cpu", "--attention-backend", "torch_native", "--random-seed", "1")
PORTS = ("--port", "12345", "--nccl-port", "12346")
# Command lines that SGLang takes, and some that it refuses with words that look like ours.
COMMANDS = {
    "served": (),
    "refused by SGLang": ("--prefill-only-disable-kv-cache",),
    "refused by its parser": ("--kv-cache-dtype", "no-such-type"),
    "refused by an assertion": ("--tp-size", "3", "--nnodes", "2"),
    "no such file": ("--model-path", "/no/such/model"),
}


def functions() -> dict[str, Any]:
    """Every function of SGLang's modules and classes, by name."""
    found: dict[str, Any] = {}
    for name, module in sorted(sys.modules.items()):
        if name.partition(".")[0] == "sglang" and isinstance(module, ModuleType):
            for key, value in vars(module).items():
                found[f"{name}.{key}"] = value
                if inspect.isclass(value) and value.__module__ == name:
                    found |= {f"{name}.{key}.{member}": v for member, v in members(value)}
    kinds = (classmethod, staticmethod, property)
    return {name: v for name, v in found.items() if callable(v) or isinstance(v, kinds)}


def members(cls: type) -> list[tuple[str, Any]]:
    """What a class defines, or the one that it stands for."""
    bases = [base for base in cls.__mro__ if base.__qualname__ == cls.__qualname__]
    return [item for base in reversed(bases) for item in vars(base).items()]


def outcome(command: tuple[str, ...]) -> dict[str, Any]:
    """What becomes of a command line: the arguments, or the error and the file that raised it."""
    try:
        arguments = ["--model-path", str(REASONER), *CPU, *PORTS, *command]
        made = server_args.prepare_server_args(arguments)
        made.resolve_once()
        made.check_server_args()
    except BaseException as error:  # noqa: BLE001 - whatever it is must stay as it is
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).name
        return {"error": f"{type(error).__name__}: {error}", "raised in": raised_in}
    given = {item.name: getattr(made, item.name) for item in record_fields(type(made))}
    results = {"given": given, "resolved": made.resolved_dict()}
    set_values = {key: {k: v for k, v in d.items() if v is not None} for key, d in results.items()}
    return {key: repr(values) for key, values in set_values.items()}


def main() -> None:
    wrong = [seam.name for seam in seams(EVERY) if seam.problem()]  # which imports the targets
    before, arguments_class = functions(), server_args.ServerArgs
    outcomes = {name: outcome(command) for name, command in COMMANDS.items()}
    load_plugins()
    after = functions()
    changed = sorted(name for name in before if after.get(name) is not before[name])
    result = {
        "wrong": wrong,
        "before": outcomes,
        "after": {name: outcome(command) for name, command in COMMANDS.items()},
        "changed": [name for name in changed if before[name] is not arguments_class],
        "stale": [name for name in after if after[name] is arguments_class],
        "hooked": sorted(seam.target for seam in seams(ALWAYS)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
