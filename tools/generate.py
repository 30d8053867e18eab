"""Writes what follows from the code: what SGLang is here, and two pages of the documents.

``python tools/generate.py`` writes `patches/raas_patches/tested.json`, `docs/patches.md` and
`docs/state.md`, and prints what changed since they were written. With ``--check`` it writes nothing
and exits 1 if they are not current.
"""

import argparse
import json
import re
import sys
import warnings
from pathlib import Path

from patches_page import patches_page
from raas_patches import installation, tested
from raas_patches.fingerprint import Fingerprint, fingerprint
from raas_patches.installation import ALWAYS, ELSEWHERE, WITH_POLICY, WITH_TRACE
from raas_patches.watched import WATCHED, WITH_FLASHINFER
from state_page import state_page
from uses import Use, uses

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# A line for each function, so that a commit shows what changed.
_FUNCTION = re.compile(r'\[\n +("[^"]*"),\n +("[^"]*"),\n +("[0-9a-f]*")\n +\]')
EVERY = ALWAYS + WITH_POLICY + WITH_TRACE + ELSEWHERE


def main() -> int:
    """Writes or compares the files and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    check = parser.parse_args().check
    warnings.simplefilter("ignore")  # SGLang's imports warn about kernels that are not asked for
    used = uses()
    files = {
        tested.RECORD: record(used),
        DOCS / "patches.md": patches_page(EVERY, used),
        DOCS / "state.md": state_page(),
    }
    stale = [path for path, text in files.items() if _read(path) != text]
    for path in stale:
        print(f"{path.relative_to(ROOT)} {'is not current' if check else 'written'}")
        if path == tested.RECORD:
            print(*differences(files[path]), sep="", end="")
        if not check:
            path.write_text(files[path])
    if check and stale:
        print("look at what differs, then run: python tools/generate.py")
    return int(check and bool(stale))


def record(used: dict[str, set[Use]]) -> str:
    """What is hooked, watched, called and overridden, as `tested.json` has it."""
    functions = {seam.target: fingerprint(seam.target) for seam in installation.seams(EVERY)}
    functions |= {each.target: fingerprint(each.target) for each in WATCHED + WITH_FLASHINFER}
    every = {use for targets in used.values() for use in targets}
    overridden = {use.target for use in every if use.how == "overrides"}
    functions |= {target: fingerprint(target) for target in overridden}
    for target in {use.target for use in every if use.how == "calls"} - set(functions):
        # What is only called may do it in another way.
        functions[target] = fingerprint(target)._replace(source="")
    names = {module: sorted({use.target for use in targets}) for module, targets in used.items()}
    text = json.dumps({"functions": dict(sorted(functions.items())), "uses": names}, indent=1)
    return _FUNCTION.sub(r"[\1, \2, \3]", text) + "\n"


def differences(text: str) -> list[str]:
    """What changed in each function since it was recorded."""
    before = tested.functions() if tested.RECORD.exists() else {}
    lines = []
    for target, values in json.loads(text)["functions"].items():
        if target not in before:
            lines.append(f"  new: {target}\n")
        elif problem := Fingerprint(*values).difference(before[target]):
            lines.append(f"  {target} {problem}\n")
    return lines


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    sys.exit(main())
