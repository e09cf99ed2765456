"""The explorer with 50,000 products: seconds to the first map, and how long an answer takes.

    .venv/bin/python tests/scale_explore.py --out figures/scale/explore.csv        about five minutes on 2 cores

Made-up products (of scale_page.py) in two views, by encoders of one layer and width 96 without training, so embedding
costs next to nothing: add your encoder's time. What a question costs is the time of the widget's callback, in the
kernel; in JupyterLab, headless and drawing in software, the time from the end of a lasso in one map until the other has
changed, and the frames while one map is panned, which pans both.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import browser
import numpy as np
import pandas as pd
import scale_page
import test_lab
import toys

from icssl_lib import explore as ask
from icssl_lib import widgets
from icssl_lib.runs import machine

CELL = """import sys
sys.path.insert(0, {tests!r})
import scale_explore
explorer = scale_explore.kept({folder!r})
explorer"""


def make(n: int, folder: Path) -> ask.Exploration:
    """Products with pictures in two views; embeddings and map are kept in ``folder``."""
    given = scale_page.make(n)
    shape = {"hidden_size": 96, "intermediate_size": 192}
    encoders = {}
    for name, layers in (("before", 1), ("after", 2)):
        path = folder / name
        encoders[name] = str(path if path.exists() else toys.save_text(path, num_hidden_layers=layers, **shape))
    space = ask.of_table(given["products"], encoders, cache=folder / "cache")
    space.images = given["thumbnails"]
    space.products["image_row"] = np.arange(n)
    for name, view in space.views.items():
        view.predicted = np.array(given["predicted"][name], dtype=object)
    return space


def kept(folder: str) -> widgets.Explorer:
    """The same again, in JupyterLab's kernel."""
    return widgets.explore(make(int((Path(folder) / "n").read_text()), Path(folder)))


def seconds(act: Callable[[], object]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def answers(explorer: widgets.Explorer) -> dict[str, float]:
    """Milliseconds of the callbacks: medians of five."""
    count, rng = len(explorer.space.products), np.random.default_rng(0)
    first = explorer._scatters[0].widget

    def several() -> None:
        near = np.argsort(
            ((explorer.positions["before"] - explorer.positions["before"][rng.integers(count)]) ** 2).sum(1)
        )
        first.selection = near[:500].astype(np.uint32)

    def colour() -> None:
        explorer._colour.value = "Head or tail" if explorer._colour.value == "Class" else "Class"

    asked = {
        "lasso_500_ms": several,
        "click_ms": lambda: setattr(first, "selection", rng.integers(count, size=1).astype(np.uint32)),
        "typed_title_ms": lambda: setattr(explorer._query, "value", f"title number {rng.integers(10**6)}"),
        "colour_ms": colour,
        "hover_ms": lambda: setattr(first, "hovering", int(rng.integers(count))),
    }
    return {name: 1000 * statistics.median(seconds(act) for _ in range(5)) for name, act in asked.items()}


def in_lab(folder: Path) -> dict[str, float]:
    """JupyterLab in headless Chromium: the link between the maps, and frames."""
    cell = {"cell_type": "code", "id": "maps", "metadata": {}, "outputs": [], "execution_count": None}
    cell["source"] = CELL.format(tests=str(Path(__file__).parent), folder=str(folder))
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    content = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
    where = folder / "lab"
    (where / "notebooks").mkdir(parents=True)
    (where / "notebooks" / test_lab.NOTEBOOK).write_text(json.dumps(content))
    options = {"width": 1500, "height": 1250, "allow": test_lab.LOOPBACK, "ignore": test_lab.IGNORE}
    with browser.started() as chromium, test_lab.lab(where / "notebooks", where) as address:
        with browser.opened(chromium, address, **options) as page:
            test_lab.ran(page, 300)
            page.locator(test_lab.MAPS[0]).scroll_into_view_if_needed()
            page.wait_for_timeout(5000)
            before = browser.pixels(page, test_lab.MAPS[1])
            test_lab.lasso(page, test_lab.MAPS[0], 0.4, 0.4, 0.1, 0.1)

            def lit() -> None:
                test_lab.wait(lambda: (browser.pixels(page, test_lab.MAPS[1]) != before).mean() > 0.01, 60)

            linked = seconds(lit)
            page.wait_for_timeout(3000)
            page.evaluate(scale_page._RECORD)
            box = page.locator(test_lab.MAPS[0]).bounding_box()
            x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
            page.mouse.move(x, y)
            page.mouse.down()
            for k in range(120):
                page.mouse.move(x + 90 * np.sin(k / 9), y + 60 * np.sin(k / 7))
            page.mouse.up()
            frames = page.evaluate("frames")
    return {"lab_link_ms": 1000 * linked, "lab_pan_median_ms": statistics.median(frames)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--products", type=int, default=50_000)
    parser.add_argument(
        "--movement", action="store_true", help="every product's neighbours in both views, too: minutes"
    )
    parser.add_argument("--out", type=Path, help="the CSV to write")
    arguments = parser.parse_args()
    row: dict[str, object] = {"products": arguments.products}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "n").write_text(str(arguments.products))
        start = time.perf_counter()
        space = make(arguments.products, folder)
        row["embed_s"] = time.perf_counter() - start
        row["project_s"] = seconds(lambda: ask.project(space))
        start = time.perf_counter()
        explorer = widgets.explore(space)
        row["widget_s"] = time.perf_counter() - start
        row |= answers(explorer)
        if arguments.movement:
            row["movement_s"] = seconds(lambda: setattr(explorer._colour, "value", "Movement"))
        row |= in_lab(folder)
    table = pd.DataFrame([row | {"cpu": machine()["cpu"]}]).round(1)
    print(table.T.to_string(header=False))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(arguments.out, index=False)


if __name__ == "__main__":
    main()
