"""What the layout of the packages promises: who may import whom, no circles, short files."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HOMES = {"raas_kernels": "kernels", "raas_sglang": ".", "raas_patches": "patches"}
# What each may import of the others, and of what it stands on.
MAY_NOT = {
    "raas_kernels": {"sglang", "flashinfer", "raas_sglang", "raas_patches"},
    "raas_sglang": {"raas_patches"},
    "raas_patches": set(),
}
FILES = {
    ".".join(path.relative_to(ROOT / home).with_suffix("").parts).removesuffix(".__init__"): path
    for package, home in HOMES.items()
    for path in (ROOT / home / package).rglob("*.py")
}


def imports(module):
    """Every module that one imports, within functions and for annotations too."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            for alias in node.names:
                name = f"{node.module}.{alias.name}"
                yield name if name in FILES else node.module


@pytest.mark.parametrize("module", FILES)
def test_no_arrow_runs_back_up(module):
    package = module.partition(".")[0]
    assert not {name.partition(".")[0] for name in imports(module)} & MAY_NOT[package]


def test_no_circle_of_imports():
    left = {module: {n for n in imports(module) if n in FILES} - {module} for module in FILES}
    while free := [module for module, names in left.items() if not names & left.keys()]:
        for module in free:
            del left[module]
    assert not left


@pytest.mark.parametrize("module", FILES)
def test_a_file_is_short(module):
    assert len(FILES[module].read_text().splitlines()) <= 250
