"""Looks at all of SGLang before and after its plugins are loaded; run by `unit/test_off_is_off.py`.

A process of its own, since plugins change SGLang for the rest of one; prints JSON.
"""

import dataclasses
import inspect
import json
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import prepare_server_args

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
                    found |= {f"{name}.{key}.{member}": v for member, v in vars(value).items()}
    kinds = (classmethod, staticmethod, property)
    return {name: v for name, v in found.items() if callable(v) or isinstance(v, kinds)}


def outcome(command: tuple[str, ...]) -> dict[str, Any]:
    """What becomes of a command line: the arguments, or the error and the file that raised it."""
    try:
        made = prepare_server_args(["--model-path", str(REASONER), *CPU, *PORTS, *command])
        made.check_server_args()
    except BaseException as error:  # noqa: BLE001 - whatever it is must stay as it is
        raised_in = Path(traceback.extract_tb(error.__traceback__)[-1].filename).name
        return {"error": f"{type(error).__name__}: {error}", "raised in": raised_in}
    plain = {key: value for key, value in vars(made).items() if not key.startswith("_")}
    shown = {key: value for key, value in dataclasses.asdict(made).items() if value is not None}
    return {"arguments": repr(made), "held": sorted(plain), "shown": repr(shown)}


def main() -> None:
    wrong = [seam.name for seam in seams(EVERY) if seam.problem()]  # which imports the targets
    before = functions()
    outcomes = {name: outcome(command) for name, command in COMMANDS.items()}
    load_plugins()
    after = functions()
    result = {
        "wrong": wrong,
        "before": outcomes,
        "after": {name: outcome(command) for name, command in COMMANDS.items()},
        "changed": sorted(name for name in before if after.get(name) is not before[name]),
        "hooked": sorted(seam.target for seam in seams(ALWAYS)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
