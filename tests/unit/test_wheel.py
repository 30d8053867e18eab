"""The wheel: three packages and nothing else, at work in an environment without this checkout."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

from benchmarks.harness.server import CPU_FLAGS, LocalServer
from client import assert_report, generate
from raas_sglang import SUPPORTED_SGLANG, __version__
from raas_sglang.cpu import has_driver

ROOT = Path(__file__).parents[2]
PACKAGES = {"raas_sglang": ".", "raas_kernels": "kernels", "raas_patches": "patches"}
DIST_INFO = f"raas_sglang-{__version__}.dist-info"
LEFT_OUT = shutil.ignore_patterns(".*", "out", "build", "dist", "*.egg-info", "__pycache__")


def run(*command, **options) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    settings = {"env": environment, "text": True, "capture_output": True, "timeout": 500}
    return subprocess.run([*map(str, command)], **{**settings, **options})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, so that nothing that an earlier build left behind gets in."""
    source, out = tmp_path_factory.mktemp("build") / "source", tmp_path_factory.mktemp("dist")
    shutil.copytree(ROOT, source, ignore=LEFT_OUT)
    done = run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, source)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def alone(wheel, tmp_path_factory) -> Path:
    """Python of a fresh environment that holds the wheel and no SGLang."""
    home = tmp_path_factory.mktemp("alone")
    return install(wheel, home)


@pytest.fixture(scope="module")
def beside_sglang(wheel, tmp_path_factory) -> Path:
    """Python of a fresh environment that holds the wheel and sees the SGLang of this one.

    A path file is read, those in the folder that it names are not: the editable install of the
    checkout stays out.
    """
    home = tmp_path_factory.mktemp("beside")
    python = install(wheel, home)
    (packages,) = home.glob("lib/python*/site-packages")
    (packages / "sglang.pth").write_text(sysconfig.get_path("purelib"))
    return python


def install(wheel: Path, home: Path) -> Path:
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "install")
    done = run(*pip, "--no-index", "--no-deps", "--quiet", wheel)
    assert done.returncode == 0, done.stderr
    return python


def environment_of(python: Path, folder: Path) -> dict[str, str]:
    """What SGLang needs to run there, as the installed package itself says it."""
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if has_driver():
        return settings
    said = run(python, "-m", "raas_sglang", "cpu-env", cwd=folder)
    assert said.returncode == 0, said.stderr
    pairs = (line.removeprefix("export ").split("=", 1) for line in said.stdout.splitlines())
    return settings | dict(pairs)


def test_the_wheel_holds_three_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(DIST_INFO)}
        licence = archive.read(f"{DIST_INFO}/licenses/LICENSE").decode()
    sources = {
        str(path.relative_to(ROOT / folder))
        for package, folder in PACKAGES.items()
        for path in (ROOT / folder / package).rglob("*")
        if path.suffix in (".py", ".json") or path.name == "py.typed" or path.parent.name == "page"
    }
    assert names == sources
    assert "Apache License" in licence


def test_installing_it_changes_no_other_package(wheel):
    with zipfile.ZipFile(wheel) as archive:
        metadata = Parser().parsestr(archive.read(f"{DIST_INFO}/METADATA").decode())
    needs = metadata.get_all("Requires-Dist")
    assert all("extra ==" in need for need in needs), needs
    assert any(need.startswith(f"sglang=={SUPPORTED_SGLANG};") for need in needs)


def test_check_says_what_to_install_where_there_is_no_sglang(alone, tmp_path):
    done = run(alone, "-m", "raas_sglang", "check", cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "no sglang in this environment" in done.stdout
    assert f"pip install sglang=={SUPPORTED_SGLANG}" in done.stdout
    assert done.stderr == ""


def test_a_spawned_process_imports_the_installed_packages(beside_sglang, tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(
        "import json, multiprocessing\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        ask = '__import__({!r}).__file__'.format\n"
        f"        names = {list(PACKAGES)}\n"
        "        print(json.dumps({name: pool.apply(eval, (ask(name),)) for name in names}))\n"
    )
    done = run(beside_sglang, script, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    home = beside_sglang.parents[1]
    for name, found in json.loads(done.stdout).items():
        assert Path(found).is_relative_to(home), name


def test_the_kernels_package_that_sglang_needs_is_not_shadowed(beside_sglang):
    """Ours is a folder of that name without ``__init__.py``; with one it would come first here."""
    code = "import kernels; from kernels import get_kernel; print(kernels.__file__)"
    done = run(beside_sglang, "-c", code, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(sysconfig.get_path("purelib"))
    for folder in ("kernels", "patches", "tests"):
        assert not (ROOT / folder / "__init__.py").exists()


def test_a_server_starts_from_the_wheel(beside_sglang, tmp_path, monkeypatch):
    environment = environment_of(beside_sglang, tmp_path)
    monkeypatch.chdir(tmp_path)  # Python looks for packages here first
    policy = ("--kv-policy", "raas", "--kv-budget", "32", "--max-total-tokens", "2000")
    server = LocalServer([*CPU_FLAGS, *policy, "--skip-server-warmup"], environment)
    server.command[0] = str(beside_sglang)
    with server:
        prompt = "program v1 = v0 + v0 ; given v0 1 ; solve"
        params = {"sampling_params": {"ignore_eos": True}}
        answer = generate(server, prompt, tokens=48, **params)
    assert_report(answer, "raas", 32)
    assert answer["meta_info"]["evicted_tokens"] > 0
