"""How fluid the page of `raas_sglang view` stays while many long requests run.

Publishes made-up samples of requests that grow together, as a server does, while a headless
Chromium shows the page. No GPU and no model; needs Playwright and a Chromium. Measured are the time
from a sample's publication until the page has painted it, the time of a move of the slider, and the
memory of page and viewer.
"""

import argparse
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
import psutil
from playwright.sync_api import Page

from benchmarks.harness.cli import say
from benchmarks.harness.rows import RowFile
from benchmarks.harness.server import free_port
from raas_sglang.trace import TraceBatch
from raas_sglang.trace.publisher import TracePublisher

sys.path.append(str(Path(__file__).parents[2] / "tests"))
from browser import ViewProcess, chromium, open_page
from made_up_trace import MadeUpRequest, sampled
from stand_in import StandIn

# Notes when the page has painted which step.
WATCH = """() => {
  window.painted = [];
  const note = () => requestAnimationFrame(() => setTimeout(() => {
    const step = Number(document.getElementById("at").textContent.split(" ")[0]);
    if (step !== window.painted.at(-1)?.[0]) window.painted.push([step, Date.now() / 1000]);
  }));
  new MutationObserver(note).observe(document.getElementById("at"), {childList: true});
}"""
# A move of the slider until what it shows is painted, in milliseconds.
MOVE = """(step) => new Promise((done) => {
  const [at, slider] = ["at", "step"].map((id) => document.getElementById(id));
  const began = performance.now();
  const seen = new MutationObserver(() => {
    seen.disconnect();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
  });
  seen.observe(at, {childList: true});
  slider.value = step;
  slider.dispatchEvent(new Event("input"));
})"""


def main() -> int:
    args = parse_args()
    rows = RowFile(args.out, 0, args.commit)
    config = {name: getattr(args, name) for name in ("requests", "tokens", "budget", "interval")}
    config |= {"layers": args.layers, "heads": args.heads, "ms between samples": args.milliseconds}
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    with StandIn(endpoint) as server, TemporaryDirectory() as folder, chromium() as browser:
        view = ViewProcess("--server", server.url, log=Path(folder) / "log")
        with view:
            page = open_page(browser, view.url, viewport={"width": 1280, "height": 800})
            page.get_by_text("listening to").wait_for()
            sent = publish(args, endpoint, page)
            write(rows, config, page, view, sent)
    return 0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=2000, help="of each request")
    parser.add_argument("--budget", type=int, default=512, help="L in tokens")
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--heads", type=int, default=4, help="KV heads of a layer")
    parser.add_argument("--interval", type=int, default=16, help="steps between samples")
    parser.add_argument("--milliseconds", type=int, default=160, help="between samples")
    parser.add_argument("--commit", help="commit that is measured, where git is not at hand")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to append to")
    return parser.parse_args()


def publish(args: argparse.Namespace, endpoint: str, page: Page) -> dict[int, float]:
    """Publishes all samples at their pace; returns when each step's was."""
    shape = {"budget": args.budget, "layers": args.layers, "heads": args.heads}
    # A few requests stand for all, since making up tables takes longer than showing them.
    models = [MadeUpRequest(str(seed), seed=seed, **shape) for seed in range(4)]
    publisher = TracePublisher(endpoint)
    sent: dict[int, float] = {}
    late = 0.0
    for number in range(args.tokens // args.interval):
        began = time.monotonic()
        batch = copies(sampled(*(m.advance(args.interval) for m in models)), args.requests)
        if number == 1:
            page.evaluate(WATCH)
        publisher.publish(number, lambda batch=batch: batch)
        sent[models[0].step] = time.time()
        rest = args.milliseconds / 1000 - (time.monotonic() - began)
        late = max(late, -rest)
        page.wait_for_timeout(max(0.0, 1000 * rest))  # which lets the browser's events through
    publisher.close()
    say(f"published {len(sent)} samples, the latest {late:.2f} s late")
    return sent


def copies(batch: TraceBatch, count: int) -> TraceBatch:
    """The message with so many requests, which repeat those that it has."""

    def named(items: list[Any]) -> list[Any]:
        kept = len(items)
        return [
            msgspec.structs.replace(items[place % kept], rid=f"request-{place}")
            for place in range(count)
        ]

    return msgspec.structs.replace(
        batch, ts=time.time(), events=named(batch.events), requests=named(batch.requests)
    )


def write(
    rows: RowFile, config: dict[str, Any], page: Page, view: ViewProcess, sent: dict[int, float]
) -> None:
    """Stores what was measured, and says it."""
    page.wait_for_timeout(1000)
    assert view.process is not None, "it runs"
    busy_s = sum(psutil.Process(view.process.pid).cpu_times()[:2])
    painted = page.evaluate("window.painted")
    delays = [1000 * (at - sent[step]) for step, at in painted if step in sent]
    steps = sorted(sent)
    moves = [page.evaluate(MOVE, step) for step in steps[len(steps) // 2 :: 4][:12]]
    results = {
        "from a sample to its paint": (delays, "ms"),
        "move of the slider": (moves, "ms"),
        "samples that were painted": ([100 * len(delays) / (len(sent) - 1)], "%"),
        "memory of the page's heap": (heap_over_requests(page), "MB"),
        "memory of the viewer": ([resident_mb(view)], "MB"),
        "CPU time of the viewer for a sample": ([1000 * busy_s / len(sent)], "ms"),
    }
    for name, (values, unit) in results.items():
        row = rows.write(f"view: {name}", [round(v, 1) for v in values], unit, config)
        worst = np.percentile(values, 95)
        say(f"{name}: median {row['value']} {unit}, 95 % {worst:.1f}, most {max(values):.1f}")


def heap_over_requests(page: Page) -> list[float]:
    """Memory of the page as one request after another is looked at."""
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    found = []
    for place in range(0, page.locator("#list li").count(), 8):
        page.locator("#list li").nth(place).click()
        page.wait_for_timeout(700)
        session.send("HeapProfiler.collectGarbage")
        metrics = session.send("Performance.getMetrics")["metrics"]
        found += [m["value"] / 1e6 for m in metrics if m["name"] == "JSHeapUsedSize"]
    return found


def resident_mb(view: ViewProcess) -> float:
    """Memory of the viewer's process."""
    assert view.process is not None, "it runs"
    return float(psutil.Process(view.process.pid).memory_info().rss / 1e6)


if __name__ == "__main__":
    sys.exit(main())
