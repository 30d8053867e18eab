"""A tiny language model that reasons step by step, with the task that it solves.

`reasoner.problem` makes and grades problems with the standard library alone; `reasoner.train` and
what it imports need torch and transformers.
"""

import os
from pathlib import Path

REASONER = Path(__file__).parent / "model"
_SERVED = Path(__file__).parent.resolve() / "served"


def reasoner_environment(environment: dict[str, str]) -> dict[str, str]:
    """Returns the environment of a process that serves the bundled reasoner on any device."""
    paths = [str(_SERVED), environment.get("PYTHONPATH", "")]
    path = os.pathsep.join(path for path in paths if path)
    return {**environment, "SGLANG_EXTERNAL_MODEL_PACKAGE": "reasoner_model", "PYTHONPATH": path}
