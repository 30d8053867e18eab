"""Puts the other plugin at the end of the path, so that it registers after RaaS."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "early"))
