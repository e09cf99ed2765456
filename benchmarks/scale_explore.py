"""The linked maps of 5,000 products as a page: its size, the first paint, and how it feels under the hand.

    PYTHONPATH=tests python benchmarks/scale_explore.py --out figures/scale/explore.csv       two minutes on 2 cores
    PYTHONPATH=tests python benchmarks/scale_explore.py --keep /tmp/maps.html                 keeps the page, to look at

Made-up products of 40 classes in two views, with the embedded catalogue's kind of pictures; headless Chromium with the
network off, drawing in software. Each time is from the event until the next frame has been drawn: medians.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import browser
import numpy as np
import pandas as pd

from icssl_lib import explore
from icssl_lib.runs import machine
from icssl_lib.sources.synthetic import generic_pictures, generic_titles

CLASSES, DISTINCT = 40, 2048  # pictures and titles that are rendered; the others repeat them
CATCH = """(() => { let embed; Object.defineProperty(window, "vegaEmbed", {get: () => embed, set: f => {
  embed = (...given) => f(...given).then(done => { window.view = done.view; requestAnimationFrame(() =>
    setTimeout(() => { window.painted = performance.now(); })); return done; }); }}); })()"""
STEPS = """async ([kind, n]) => {
  const canvas = document.querySelector("canvas"), box = canvas.getBoundingClientRect(), times = [];
  const at = (type, x, y) => canvas.dispatchEvent(new PointerEvent(type, {clientX: box.left + x, clientY: box.top + y,
    bubbles: true, cancelable: true, view: window, pointerType: "mouse"}));
  const input = document.querySelector(`input[type=${kind === "find" ? "search" : "range"}]`);
  const menu = document.querySelector("select");
  if (kind === "brush") { at("pointermove", 120, 180); at("pointerdown", 120, 180); }
  for (let k = 1; k <= n; k++) {
    await new Promise(requestAnimationFrame);
    const start = performance.now();
    if (kind === "brush") window.dispatchEvent(new PointerEvent("pointermove", {view: window, bubbles: true,
      clientX: box.left + 120 + 10 * k, clientY: box.top + 180 + 10 * k}));
    if (kind === "slide") { input.value = (k % 50) / 50; input.dispatchEvent(new Event("input")); }
    if (kind === "find") view.signal("find", "abcdefghijklmnop"[k]);
    if (kind === "colour") { menu.selectedIndex = k % menu.options.length; menu.dispatchEvent(new Event("change")); }
    await view.runAsync();
    await new Promise(requestAnimationFrame);
    await new Promise(done => setTimeout(done));
    times.push(performance.now() - start);
  }
  if (kind === "brush") window.dispatchEvent(new PointerEvent("pointerup", {view: window, bubbles: true}));
  return times;
}"""


def make(n: int, seed: int = 0) -> explore.Exploration:
    """Products with pictures and predictions; a class is a cloud, wide before and narrow after."""
    rng = np.random.default_rng(seed)
    code = rng.choice(CLASSES, n, p=1 / np.arange(3, CLASSES + 3) / (1 / np.arange(3, CLASSES + 3)).sum())
    titles, pictures = generic_titles(min(n, DISTINCT), seed), generic_pictures(min(n, DISTINCT), seed, 64)[0]
    centres = rng.normal(0, 1, (CLASSES, 32))
    rows = {name: centres[code] + rng.normal(0, wide, (n, 32)) for name, wide in (("before", 1.2), ("after", 0.6))}
    table = pd.DataFrame({"title": [f"{titles[i % len(titles)]} {i}" for i in range(n)]})
    table["label"] = [f"Class {c}" for c in code]
    space = explore.explore(table, {name: lambda _, name=name: rows[name] for name in rows})
    space.picture = lambda row: pictures[row % len(pictures)]
    for view in space.views.values():
        guess = np.where(rng.random(n) < 0.7, table["label"], rng.choice(table["label"], n)).astype(object)
        view.predicted = np.where(rng.random(n) < 0.1, guess, None)
    return space


def measure(path: Path) -> dict[str, float]:
    """Milliseconds in headless Chromium, 1280 x 900."""
    with browser.started() as chromium, browser.opened(chromium, "about:blank") as page:
        page.add_init_script(CATCH)
        page.goto(path.as_uri())
        page.wait_for_function("window.painted")
        found = {"first_paint_ms": page.evaluate("window.painted")}
        for kind, n in (("brush", 12), ("slide", 15), ("find", 12), ("colour", 10)):
            found[f"{kind}_ms"] = statistics.median(page.evaluate(STEPS, [kind, n]))
        assert page.evaluate("Object.keys(view.signal('brush')).length") == 2
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, nargs="+", default=[2000, 5000])
    parser.add_argument("--keep", type=Path, help="write the last page here")
    parser.add_argument("--out", type=Path, help="the CSV to write")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in arguments.products:
            space, path = make(n), arguments.keep or Path(folder) / f"maps-{n}.html"
            start = time.perf_counter()
            chart = explore.linked_maps(space)
            drawn = time.perf_counter()
            chart.save(path, inline=True)
            row = {"products": n, "maps_s": drawn - start, "save_s": time.perf_counter() - drawn}
            rows.append(row | {"megabytes": path.stat().st_size / 1e6} | measure(path) | {"cpu": machine()["cpu"]})
    table = pd.DataFrame(rows).round(1)
    print(table.T.to_string(header=False))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
