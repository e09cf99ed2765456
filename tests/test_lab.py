"""The exploring notebook in a real JupyterLab and a real, headless Chromium, from top to bottom.

`ICSSL_SCREENSHOTS=docs` writes docs/explore-lab.png and docs/explore-page.png, from the quick study in runs/quick.
"""

import base64
import io
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import browser
import numpy as np
import pandas as pd
import pytest
import toys
import yaml
from lab import IGNORE, LOOPBACK, lab, ran, wait
from PIL import Image

from icssl_lib import adapt, catalogue, explore
from icssl_lib.config import load_config
from icssl_lib.runs import piece

if TYPE_CHECKING:
    from playwright.sync_api import Locator, Page

NOTEBOOK = "explore_embeddings.ipynb"
HOSTILE = '<img src=x onerror="window.taken = 1"> & </script><script>window.taken = 1</script> "mug"'
CELL = ".jp-Cell:has(canvas)"  # the notebook's cell that shows the maps

MAPS = [f"{CELL} canvas >> nth=0", f"{CELL} canvas >> nth=2"]  # above each lies another canvas, for labels
# The lasso takes a point when its timer of 10 ms has run down, and input goes before timers: on a busy machine a mouse
# that does not wait for the page draws nothing.
PAUSE = "() => new Promise(done => setTimeout(() => requestAnimationFrame(() => setTimeout(done, 12)), 12))"


def vivid(page: "Page", selector: str) -> np.ndarray:
    """Pixels of strong colour: selected points keep theirs, the others fade."""
    return np.ptp(browser.pixels(page, selector).astype(int), axis=2) > 90


def a_third(mask: np.ndarray) -> tuple[float, float, float]:
    """A circle within the map that holds about a third of its vivid pixels: x, y and radius in shares of its width.

    UMAP's map is another on another kind of CPU, so where the products lie has to be seen.
    """
    (down, across), (height, width) = np.nonzero(mask), mask.shape
    circles = [
        (x, y, r)
        for r in (0.15, 0.2, 0.25)
        for x in np.arange(r, 1 - r, 0.05)
        for y in np.arange(r, height / width - r, 0.05)
    ]

    def share(circle: tuple[float, float, float]) -> float:
        x, y, r = (part * width for part in circle)
        return ((across - x) ** 2 + (down - y) ** 2 < r**2).mean()

    return min(circles, key=lambda circle: abs(share(circle) - 1 / 3))


def lasso(page: "Page", selector: str, x: float, y: float, radius: float) -> None:
    """Draw around a part of a map, in shares of its width, with its lasso button on."""
    toolbar = page.locator(f"{CELL} [data-jss-theme] >> nth={MAPS.index(selector)}").locator("button")
    toolbar.nth(1).click()
    canvas = page.locator(selector)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    turn = np.linspace(0, 2 * np.pi, 40)
    for step, angle in enumerate(turn):
        across, down = x + radius * np.cos(angle), y + radius * np.sin(angle)
        page.mouse.move(box["x"] + across * box["width"], box["y"] + down * box["width"])
        if step == 0:
            page.mouse.down()
        page.evaluate(PAUSE)
    page.mouse.up()
    toolbar.nth(0).click()


def hover(page: "Page", selector: str, seconds: float = 30) -> "Locator":
    """Rest the mouse on point after point of a map until the picture of one is shown; its tooltip."""
    points, box = np.argwhere(vivid(page, selector)), page.locator(selector).bounding_box()
    rng, end = np.random.default_rng(0), time.monotonic() + seconds
    picture = page.locator('div[style*="background-image: url(\\"data:image/jpeg"]')
    while time.monotonic() < end:
        y, x = rng.choice(points)
        page.mouse.move(box["x"] + float(x), box["y"] + float(y), steps=4)
        page.wait_for_timeout(900)
        for shown in picture.all():
            tooltip = shown.locator("xpath=../../..")
            if tooltip.evaluate("e => getComputedStyle(e).opacity") == "1":
                return tooltip
    raise AssertionError("no picture under the mouse")


def find(page: "Page", title: str) -> None:
    field = page.get_by_placeholder("Type a title")
    field.fill(title)
    field.press("Enter")


def titles(page: "Page", heading: str) -> list[str]:
    """Titles of the cards below a heading."""
    group = page.locator(".icssl-group").filter(has=page.get_by_role("heading", name=heading))
    return group.locator(".icssl-title").all_inner_texts()


def notebook(root: Path, folder: Path, **parameters: object) -> Path:
    """A copy of the notebook with other parameters."""
    content = json.loads((root / "notebooks" / NOTEBOOK).read_text("utf-8"))
    cell = next(c for c in content["cells"] if "parameters" in c["metadata"].get("tags", []))
    cell["source"] = [*cell["source"], *(f"\n{name} = {value!r}" for name, value in parameters.items())]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTEBOOK).write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_text, tiny_vision) -> tuple[Path, Path]:
    """A run folder of 120 toys, one with a hostile title, origin and ConVIRT, and its configuration."""
    folder = tmp_path_factory.mktemp("run")
    out, config = folder / "runs" / "toy", folder / "toy.yaml"
    study = toys.study(tiny_text, tiny_vision, adapt={"batch_size": 30}, finetune={"fractions": [1.0]})
    study = study.model_copy(update={"methods": ["origin", "convirt"]})
    config.write_text(yaml.safe_dump(study.model_dump(mode="json")))
    toy = toys.catalogue(out / "catalogues" / "toy")
    toy.products.loc[0, "title"] = HOSTILE
    catalogue._save("toy", toy.products, catalogue.Report().frame(), toys.SIZE, 0, toy.folder)
    adapt.save(adapt.adapt("convirt", toy, study, 0, out, progress=False), piece(out, "encoders", "toy", "convirt", 0))
    test = toy.part("test")
    for method, guess in (("origin", "rug"), ("convirt", test["label"])):
        path = piece(out, "predictions", "toy", method, 0).with_suffix(".parquet")
        path.parent.mkdir(parents=True)
        test[["id", "label"]].assign(fraction=1.0, predicted=guess).to_parquet(path)
    return out, config


@pytest.fixture(scope="module")
def page(root, run, tmp_path_factory) -> "Iterator[Page]":
    """The notebook in JupyterLab, run from top to bottom."""
    out, config = run
    where = tmp_path_factory.mktemp("lab")
    folder = notebook(root, where / "notebooks", config=str(config), out=str(out), dataset="toy")
    with browser.started() as chromium, lab(folder, where, NOTEBOOK) as address:
        with browser.opened(chromium, address, width=1500, height=1250, allow=LOOPBACK, ignore=IGNORE) as opened:
            ran(opened, 400)
            opened.locator(MAPS[0]).scroll_into_view_if_needed()
            yield opened


def test_every_cell_ran_and_left_its_files(page, run):
    out, _ = run
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    figures = {path.name for path in (out / "figures").iterdir()}
    assert {f"toy_maps.{kind}" for kind in ("png", "svg", "csv")} <= figures
    assert {"toy_neighbours.png", "toy_neighbours.csv", "toy_measures.csv", "toy_recall.csv"} <= figures
    assert (out / "report" / "map-toy.html").stat().st_size > 50_000
    assert page.locator(".jp-OutputArea img").count() >= 4  # it reads without widgets


@pytest.mark.parametrize("selector", MAPS)
def test_the_maps_are_drawn(page, selector):
    pixels = browser.pixels(page, selector).reshape(-1, 3).astype(int)
    coloured = pixels[np.ptp(pixels, axis=1) > 90]
    assert len(coloured) > 120  # a pixel per product at the least
    hues = {tuple(np.argsort(pixel)) for pixel in coloured}
    assert len(hues) > 2


def test_a_lasso_in_one_map_lights_up_in_the_other(page):
    before = [vivid(page, selector) for selector in MAPS]
    assert page.get_by_text("products are selected").count() == 0
    status = page.get_by_text("products are selected")

    circle = a_third(before[0])

    def drawn() -> bool:
        """A busy machine may swallow a part of the line; a person would draw it again."""
        lasso(page, MAPS[0], *circle)
        page.wait_for_timeout(5000)
        return status.count() == 1

    wait(drawn, 240, lambda: page.locator(CELL).first.inner_text()[:2000])
    count = int(status.inner_text().split()[0])
    assert 20 < count < 80
    for selector, vivid_before in zip(MAPS, before, strict=True):  # what is not selected fades, in both maps
        wait(lambda s=selector, d=vivid_before: abs(vivid(page, s)[d].mean() - count / 120) < 0.2, 10)
    assert page.get_by_role("tab", name="Selection").get_attribute("aria-selected") == "true"
    assert len(titles(page, "Selected products")) == min(count, 24)
    page.get_by_role("button", name="Clear selection").click()
    wait(lambda: vivid(page, MAPS[1])[before[1]].mean() > 0.97, 10)


def test_hovering_shows_the_picture_and_a_click_the_neighbours(page, run):
    out, _ = run
    products = pd.read_parquet(out / "catalogues" / "toy" / "products.parquet").set_index("title")
    tooltip = hover(page, MAPS[1])
    title, label, _ = (" ".join(text.split()) for text in tooltip.locator(".value-text").all_inner_texts())
    assert products["label"].loc[[title]].tolist()[0] == label
    address = tooltip.locator("[style*='background-image']").evaluate("e => e.style.backgroundImage")
    picture = Image.open(io.BytesIO(base64.b64decode(address.split("base64,")[1].rstrip('")'))))
    seen = np.asarray(picture.convert("RGB")).mean(axis=(0, 1))
    np.testing.assert_allclose(seen, np.array(toys.COLOURS[label]) + 25, atol=25)  # toys have their class's colour
    page.mouse.down()
    page.mouse.up()
    page.get_by_text(f": {title}", exact=False).first.wait_for()
    page.get_by_role("heading", name="This product").wait_for()
    assert titles(page, "This product") == [title]
    assert len(titles(page, "Nearest titles in origin")) == 8


def test_typing_a_title_lists_its_neighbours_in_both_encoders(page, run):
    out, config = run
    space = explore.of_study(load_config(config), out, "toy", [("origin", 0), ("convirt", 0)])
    find(page, "hava vase")
    page.get_by_text("products are selected").wait_for()
    for view in space.views:
        expected = explore.neighbours(space, view, "hava vase", 8)["title"].tolist()
        wait(lambda e=expected, v=view: titles(page, f"Nearest titles in {v}") == e, 10)
    pictures = page.locator(".icssl-card img")
    assert pictures.evaluate_all("all => all.every(e => e.complete && e.naturalWidth > 0)")


def test_titles_find_pictures(page):
    page.get_by_role("tab", name="Titles and pictures").click()
    page.get_by_role("heading", name="Pictures nearest to “hava vase”").wait_for()
    page.get_by_text("Recall among the k nearest of Dev").wait_for()
    page.get_by_role("tab", name="Moved most").click()
    card = page.locator(".icssl-card:visible").first
    title = card.locator(".icssl-title").inner_text()
    card.press("Enter")  # by keyboard
    page.get_by_text(f": {title}").first.wait_for()


def test_a_hostile_title_is_shown_and_does_nothing(page):
    find(page, "#0")
    wait(lambda: titles(page, "This product") == [HOSTILE], 10)
    page.get_by_role("tab", name="Selection").click()
    page.wait_for_timeout(300)
    assert page.evaluate("window.taken") is None


def test_no_console_error(page):
    assert [text for text in page.problems if not any(known in text for known in IGNORE)] == []


@pytest.mark.skipif("ICSSL_SCREENSHOTS" not in os.environ, reason="set ICSSL_SCREENSHOTS=docs to write them")
def test_screenshots(root, tmp_path):
    """Of the quick study in runs/quick, whose catalogue is embedded: no real shop's picture is shown."""
    into, out = root / os.environ["ICSSL_SCREENSHOTS"], root / "runs" / "quick"
    screenshots(root, root / "config" / "quick.yaml", out, into, tmp_path)


def screenshots(root: Path, config: Path, out: Path, into: Path, where: Path) -> None:
    folder = notebook(root, where / "notebooks", config=str(config), out=str(out))
    size = {"width": 1320, "height": 1240}
    with browser.started() as chromium:
        with lab(folder, where, NOTEBOOK) as address:
            with browser.opened(chromium, address, allow=LOOPBACK, ignore=IGNORE, **size) as page:
                ran(page, 400)
                page.keyboard.press("Control+b")  # without the list of files
                find(page, "#1624")  # a lipstick of Dev that lost its way among creams
                page.get_by_role("heading", name="This product").wait_for()
                page.get_by_title("Select Liquid Lipsticks").click()
                page.get_by_role("tab", name="Neighbours").click()
                page.locator(f"{CELL} select").first.evaluate("e => e.scrollIntoView()")
                page.wait_for_timeout(3000)
                hover(page, MAPS[1])
                save(page, into / "explore-lab.png")
        page_size = {"width": 1280, "height": 860}
        with browser.opened(chromium, (out / "report" / "map-beauty.html").as_uri(), **page_size) as page:
            page.wait_for_timeout(1500)
            page.locator("#examples button").first.click()
            page.wait_for_timeout(1500)
            save(page, into / "explore-page.png")


def save(page: "Page", path: Path) -> None:
    """A screenshot with a palette of 256 colours: below 300 kB."""
    Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(256).save(path, optimize=True)
    assert path.stat().st_size < 300_000
