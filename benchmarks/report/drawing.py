"""How plots are drawn and stored: as SVG that carries the data that it shows."""

import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"
COLOURS = {
    "default": "#888888",
    "dense": "#888888",
    "off": "#bb8833",
    "window": "#bb8833",
    "raas": "#bb1133",
    "raas-paper": "#1166bb",
    "random": "#55aa55",
    "h2o": "#553377",
}


def data_of(path: Path) -> str | None:
    """The data that a drawing carries, None if there is no drawing."""
    if not path.exists():
        return None
    found = ElementTree.parse(path).getroot().find(f".//{_DESCRIPTION}")
    return None if found is None else found.text


@contextmanager
def drawing(path: Path, data: str, rows: int = 1, columns: int = 1, **options: Any) -> Iterator:
    """Yields figure and panels [rows, columns] to draw on, and stores them as SVG.

    Equal data give equal files. Needs matplotlib, the extra `bench`.
    """
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": path.stem})
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(rows, columns, squeeze=False, layout="constrained", **options)
    yield figure, panels
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="svg", metadata={"Date": None, "Description": data})
    pyplot.close(figure)
