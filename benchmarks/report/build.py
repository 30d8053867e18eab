"""Makes the tables and plots of the documents from the stored rows.

    python -m benchmarks.report.build            # writes them; plots need the extra `bench`
    python -m benchmarks.report.build --check    # exits 1 if a document differs from the rows

A table stands between `<!-- report: NAME -->` and `<!-- end of report -->`, in any document.
"""

import argparse
import re
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import (
    accuracy,
    accuracy_plots,
    decode,
    drawing,
    online,
    ops,
    plots,
    throughput,
)

ROOT = Path(__file__).parents[2]
DOCUMENTS = (
    "README.md",
    "benchmarks/README.md",
    "docs/accuracy.md",
    "docs/performance.md",
)
TABLES: dict[str, Callable[[], str]] = {
    "decode": decode.decode,
    "latency": decode.latency,
    "memory": decode.memory,
    "headline": throughput.headline,
    "throughput": throughput.throughput,
    "shortcut": throughput.shortcut,
    "serving": online.serving,
    "prefix": online.prefix,
    "ops": ops.ops,
    "accuracy": accuracy.real,
    "accuracy-front": accuracy.front,
    "accuracy-reasoner": accuracy.reasoner,
    "rule-study": accuracy.study,
    "rule-loss": accuracy.loss,
}
PLOTS: dict[str, Callable[[], plots.Plot | accuracy_plots.AccuracyPlot]] = {
    "headline": plots.headline,
    "latency": plots.latency,
    "memory": plots.memory,
    "throughput": plots.throughput,
    "accuracy-real": accuracy_plots.accuracy,
}
PLOTS_FOLDER = "docs/plots"
_MARKED = re.compile(r"(<!-- report: (\S+) -->\n).*?(<!-- end of report -->)", re.DOTALL)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, exit 1 on differences")
    is_check = parser.parse_args().check
    stale = stale_documents(ROOT) + stale_plots(ROOT)
    for path in stale:
        if is_check:
            print(
                f"{path} must be what benchmarks/results say; run python -m benchmarks.report.build"
            )
        else:
            write(ROOT, path)
            print(f"wrote {path}")
    return int(is_check and bool(stale))


def stale_documents(root: Path) -> list[str]:
    """Documents whose tables differ from the stored rows."""
    texts = {name: (root / name).read_text() for name in DOCUMENTS}
    return [name for name, text in texts.items() if filled(text, name) != text]


def stale_plots(root: Path) -> list[str]:
    """Drawings whose data differ from the stored rows."""
    stale = []
    for name, plot in PLOTS.items():
        path = plot_path(name)
        wanted = plot()
        if drawing.data_of(root / path) != (wanted.data() if wanted.lines else None):
            stale.append(path)
    return stale


def filled(text: str, name: str) -> str:
    """A document with its tables made anew.

    Raises:
        ValueError: it names a table that there is not, or leaves one open.
    """

    def table(match: re.Match[str]) -> str:
        if match[2] not in TABLES:
            raise ValueError(f"{name} must name one of {sorted(TABLES)}, got {match[2]}")
        return f"{match[1]}{TABLES[match[2]]()}\n{match[3]}"

    if text.count("<!-- report: ") != len(_MARKED.findall(text)):
        raise ValueError(f"{name} must close every table with <!-- end of report -->")
    return _MARKED.sub(table, text)


def plot_path(name: str) -> str:
    """Where a drawing is stored."""
    return f"{PLOTS_FOLDER}/{name}.svg"


def write(root: Path, path: str) -> None:
    """Makes a stale document or drawing anew; a drawing without data is removed."""
    if path in DOCUMENTS:
        text = (root / path).read_text()
        (root / path).write_text(filled(text, path))
        return
    plot = PLOTS[Path(path).stem]()
    if plot.lines:
        plot.draw(root / path)
    else:
        (root / path).unlink()


if __name__ == "__main__":
    sys.exit(main())
