"""The static page with many products: its size, the time to the first map, and how it feels under the hand.

    .venv/bin/python tests/scale_page.py --out figures/scale/page.csv                two or three minutes
    .venv/bin/python tests/scale_page.py --products 4000 --keep /tmp/map.html        keeps the page, to look at

Made-up products in two views, k = 10 neighbours each, and pictures of 64 px; headless Chromium, drawing in software.
A frame is what requestAnimationFrame counts, so 16.7 ms is the best that can be seen. Latencies are from the event
to the end of the next frame.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import browser
import numpy as np
import pandas as pd

from icssl_lib import page
from icssl_lib.runs import machine
from icssl_lib.sources.synthetic import generic_pictures, generic_titles

DISTINCT = 2048  # pictures and titles that are rendered; the others repeat them
CLASSES = 229


class Pictures:
    """A store of ``n`` pictures that repeats a few; sheets are encoded one by one, so sizes are real."""

    def __init__(self, pixels: np.ndarray, n: int) -> None:
        self.pixels, self.n = pixels, n

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return self.pixels[np.asarray(rows) % len(self.pixels)]


def make(n: int, seed: int = 0) -> dict:
    """The arguments of `write_map`: products, positions, thumbnails, predictions, neighbours."""
    rng = np.random.default_rng(seed)
    weights = 1 / np.arange(3, CLASSES + 3)
    code = rng.choice(CLASSES, n, p=weights / weights.sum())
    titles = generic_titles(min(n, DISTINCT), seed)
    products = pd.DataFrame({"id": [f"B{i:08d}" for i in range(n)], "image_row": np.arange(n)})
    products["title"] = [f"{titles[i % len(titles)]} {i}" for i in range(n)]
    products["label"] = [f"Class {c}" for c in code]
    products["size"] = np.where(code < 60, "head", "tail")
    centres = rng.normal(0, 6, (CLASSES, 2))
    before = centres[code] + rng.normal(0, 4, (n, 2))
    after = centres[code] + rng.normal(0, 1, (n, 2))
    guess = np.where(rng.random(n) < 0.7, code, rng.integers(0, CLASSES, n))
    predicted = [f"Class {g}" if asked else None for g, asked in zip(guess, rng.random(n) < 0.1, strict=True)]
    return {
        "products": products,
        "positions": {"before": before, "after": after},
        "thumbnails": Pictures(generic_pictures(min(n, DISTINCT), seed, 64)[0], n),
        "predicted": {"before": predicted, "after": predicted},
        "neighbours": {view: rng.integers(0, n, (n, 10)) for view in ("before", "after")},
        "caption": "Made-up products.",
    }


def measure(path: Path) -> dict[str, float]:
    """Milliseconds in headless Chromium, 1280 x 900."""
    with browser.started() as chromium, browser.opened(chromium, path.as_uri()) as shown:
        while not shown.evaluate("icssl.state().drawn"):
            time.sleep(0.05)
        first = shown.evaluate("icssl.state().drawn")
        shown.wait_for_timeout(1500)  # sheets of pictures
        box = shown.locator("canvas.draw").first.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        shown.evaluate(_RECORD)

        def frames(act) -> list[float]:
            shown.evaluate("frames.length = 0")
            act()
            return shown.evaluate("frames")

        def pan() -> None:
            shown.mouse.move(x, y)
            shown.mouse.down()
            for k in range(120):
                shown.mouse.move(x + 90 * np.sin(k / 9), y + 60 * np.sin(k / 7))
            shown.mouse.up()

        def wheel() -> None:
            for k in range(60):
                shown.mouse.wheel(0, -120 if k < 30 else 120)

        panning = frames(pan)
        splat = shown.evaluate("Math.max(...icssl.state().cost)")
        zooming = frames(wheel)
        latency = {name: statistics.median(shown.evaluate(_LATENCY, what)) for name, what in _EVENTS.items()}
    return {
        "first_map_ms": first,
        "pan_median_ms": statistics.median(panning),
        "pan_p95_ms": float(np.quantile(panning, 0.95)),
        "zoom_median_ms": statistics.median(zooming),
        "zoom_p95_ms": float(np.quantile(zooming, 0.95)),
        "points_of_a_map_ms": splat,
        **latency,
    }


_RECORD = """() => {
  window.frames = [];
  let last = performance.now();
  const step = now => { window.frames.push(now - last); last = now; requestAnimationFrame(step); };
  requestAnimationFrame(step);
}"""
_EVENTS = {"hover_ms": "hover", "search_ms": "search", "colour_ms": "colour"}
_LATENCY = """async what => {
  const canvas = document.querySelector("canvas.draw"), box = canvas.getBoundingClientRect();
  const field = document.getElementById("search"), menu = document.getElementById("colour");
  const acts = {
    hover: k => canvas.dispatchEvent(new PointerEvent("pointermove",
      {clientX: box.left + 150 + 9 * k, clientY: box.top + 200, pointerType: "mouse"})),
    search: k => { field.value = "abcdefghijklmnop"[k]; field.dispatchEvent(new Event("input")); },
    colour: k => { menu.selectedIndex = k % menu.options.length; menu.dispatchEvent(new Event("change")); },
  };
  const times = [];
  for (let k = 0; k < 15; k++) {
    await new Promise(requestAnimationFrame);
    const start = performance.now();
    acts[what](k);
    await new Promise(requestAnimationFrame);
    await new Promise(done => setTimeout(done));
    times.push(performance.now() - start);
  }
  return times;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, nargs="+", default=[4000, 50_000])
    parser.add_argument("--keep", type=Path, help="write the last page here")
    parser.add_argument("--out", type=Path, help="the CSV to write")
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for n in arguments.products:
            path = arguments.keep or Path(folder) / f"map-{n}.html"
            given = make(n)
            start = time.perf_counter()
            page.write_map(path, f"{n:,} made-up products", **given)
            row = {"products": n, "write_s": time.perf_counter() - start, "megabytes": path.stat().st_size / 1e6}
            rows.append(row | measure(path) | {"cpu": machine()["cpu"]})
    table = pd.DataFrame(rows).round(1)
    print(table.T.to_string(header=False))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
