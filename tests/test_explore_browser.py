"""The linked maps in a real, headless Chromium with the network off: in JupyterLab, as a page, in a notebook's HTML.

The notebook is run once, in JupyterLab from top to bottom; what it leaves is opened from disk.
"""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browser
import nbformat
import numpy as np
import pytest
import toys
import yaml
from lab import IGNORE, LOOPBACK, lab, ran, wait
from maps import CATCH, Maps, alone, lit, marks, middle_third
from nbconvert import HTMLExporter
from PIL import Image

from icssl_lib import explore
from icssl_lib.config import load_config
from icssl_lib.space import Exploration

if TYPE_CHECKING:
    from playwright.sync_api import Page

NOTEBOOK = "explore_embeddings.ipynb"
HOSTILE = '<img src=x onerror="window.taken = 1"> & </script><script>window.taken = 1</script> __proto__'


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_text, tiny_vision) -> tuple[Path, Path]:
    """A run folder with a hostile title, and its configuration."""
    folder = tmp_path_factory.mktemp("run")
    study = toys.run_folder(folder / "runs" / "toy", tiny_text, tiny_vision, HOSTILE)
    (folder / "toy.yaml").write_text(yaml.safe_dump(study.model_dump(mode="json")))
    return folder / "runs" / "toy", folder / "toy.yaml"


@pytest.fixture(scope="module")
def space(run) -> Exploration:
    return explore.open_run(load_config(run[1]), run[0], "toy", ["origin", "convirt"])


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Any]":
    with browser.started() as found:
        yield found


@pytest.fixture(scope="module")
def in_lab(root, run, chromium, tmp_path_factory) -> "Iterator[tuple[Page, Path]]":
    """The notebook in JupyterLab, run from top to bottom and saved."""
    where = tmp_path_factory.mktemp("lab")
    content = json.loads((root / "notebooks" / NOTEBOOK).read_text("utf-8"))
    cell = next(c for c in content["cells"] if "parameters" in c["metadata"].get("tags", []))
    given = {"config": str(run[1]), "out": str(run[0]), "dataset": "toy"}
    cell["source"] = [*cell["source"], *(f"\n{name} = {value!r}" for name, value in given.items())]
    (where / "notebooks").mkdir()
    path = where / "notebooks" / NOTEBOOK
    path.write_text(json.dumps(content))
    with lab(path.parent, where, NOTEBOOK) as address:
        with browser.opened(chromium, address, width=1500, height=1250, allow=LOOPBACK, ignore=IGNORE) as page:
            ran(page, 200)

            def saved() -> bool:  # a click while JupyterLab is busy is lost
                page.locator('[data-command="docmanager:save"]').first.click()
                page.wait_for_timeout(1000)
                return "srcdoc" in path.read_text("utf-8")

            wait(saved, 60)
            yield page, path


@pytest.fixture(scope="module", params=["page", "notebook"])
def maps(request, in_lab, run, chromium, tmp_path_factory) -> Iterator[Maps]:
    """What the notebook left, from disk."""
    path = run[0] / "report" / "map-toy.html"
    if request.param == "notebook":
        path = tmp_path_factory.mktemp("html") / "notebook.html"
        exporter = HTMLExporter(mathjax_url="", require_js_url="", jquery_url="")
        body, _ = exporter.from_notebook_node(nbformat.read(in_lab[1], 4))
        path.write_text(body, encoding="utf-8")
    with browser.opened(chromium, "about:blank", width=1300, height=1100) as page:
        page.add_init_script(CATCH)
        page.goto(path.as_uri())
        if request.param == "notebook":
            page.locator("iframe").scroll_into_view_if_needed()
            wait(lambda: len(page.frames) == 2, 10)
        yield Maps(page, page.frames[-1])


def test_a_brush_in_one_map_lights_up_in_the_other_and_two_meet(maps):
    left, right = (marks(maps.frame, f"points{i}") for i in range(2))
    everything = set(left["row"])
    assert len(everything) == 120
    box = middle_third(left)
    maps.drag(*box)
    inside = set(left["row"][left["x"].between(box[0], box[2])])
    assert 30 < len(inside) < 50
    assert len(lit(maps.frame, 0) ^ inside) <= 2  # points on the edge
    assert lit(maps.frame, 1) == lit(maps.frame, 0)
    other = middle_third(right)
    maps.drag(*other)
    both = inside & set(right["row"][right["x"].between(other[0], other[2])])
    assert len(lit(maps.frame, 0) ^ both) <= 2
    for points in (left, right):  # a click beside the brush clears it
        maps.page.mouse.click(*maps.at(points["x"].min() - 8, points["y"].min() - 8))
    assert lit(maps.frame, 1) == everything


def test_hovering_shows_picture_title_and_class(maps, space):
    point = alone(marks(maps.frame, "points1"))
    maps.page.mouse.move(*maps.at(point["x"] - 9, point["y"]))
    maps.page.mouse.move(*maps.at(point["x"], point["y"]))
    tooltip = maps.frame.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    product = space.products.loc[point["row"]]
    assert product["title"] in tooltip.inner_text()
    assert product["label"] in tooltip.inner_text()
    address = tooltip.locator("img").get_attribute("src")
    picture = Image.open(io.BytesIO(base64.b64decode(address.split("base64,")[1]))).convert("RGB")
    seen = np.asarray(picture).mean(axis=(0, 1))  # toys have their class's colour
    np.testing.assert_allclose(seen, np.array(toys.COLOURS[product["label"]]) + 25, atol=25)
    assert tooltip.locator("img").evaluate("picture => picture.decode().then(() => picture.naturalWidth)") == 64


def test_a_click_shows_the_nearest_of_each_encoder(maps, space):
    point = alone(marks(maps.frame, "points0"))
    maps.page.mouse.click(*maps.at(point["x"], point["y"]))
    for i, view in enumerate(space.views):
        near = space.nearest(view, int(point["row"]), 10)
        assert set(marks(maps.frame, f"zoom{i}")["row"]) == {point["row"], *near["row"]}
        shown = marks(maps.frame, f"concat_1_concat_{i}_layer_1").sort_values("y")
        assert list(shown["text"]) == [space.products["title"][point["row"]], *near["title"]]
        assert marks(maps.frame, f"concat_1_concat_{i}_layer_0")["url"].str.startswith("data:image/webp").all()


def test_a_search_leaves_the_hits(maps, space):
    field = maps.frame.locator("input[type=search]")
    for word, hits in (("MUG", {"mug"}), ("<script>", {"<script>"}), ("[(", set())):
        field.fill(word)
        expected = {row for row, title in space.products["title"].items() if any(hit in title for hit in hits)}
        wait(lambda e=expected: lit(maps.frame, 0) == lit(maps.frame, 1) == e, 5)
    field.fill("")
    wait(lambda: len(lit(maps.frame, 0)) == 120, 5)


def test_the_slider_leads_from_before_to_after(maps):
    before, after = (marks(maps.frame, f"points{i}").set_index("row")[["x", "y"]] for i in range(2))
    slider = maps.frame.locator("input[type=range]")
    for where, share in (("0", 0), ("0.5", 0.5), ("1", 1)):
        slider.fill(where)
        now = marks(maps.frame, "points1").set_index("row")[["x", "y"]].loc[before.index]
        way = share * after.loc[before.index] + (1 - share) * before
        offset = (now - way).median()  # the second map stands beside the first
        assert (now - way - offset).abs().max(axis=None) < 1
        assert abs(offset["y"]) < 30


def test_the_menu_colours_and_the_legend_selects(maps, space):
    menu = maps.frame.locator("select")
    texts = lambda: list(marks(maps.frame, "concat_0_concat_2_layer_1")["text"])  # noqa: E731
    options = menu.locator("option").all_inner_texts()
    assert options[:2] == ["class", "head or tail"]
    assert options[-1] == "neighbours kept"
    assert len(options) == 5
    sign = marks(maps.frame, "legend").iloc[0]
    maps.page.mouse.click(*maps.at(sign["x"], sign["y"]))
    label = texts()[0].rpartition(" (")[0]
    assert lit(maps.frame, 0) == lit(maps.frame, 1) == set(space.products.index[space.products["label"] == label])
    menu.select_option("right or wrong: ConVIRT")
    assert [text.split(" (")[0] for text in texts()] == ["right", "not asked"]
    assert len(lit(maps.frame, 1)) == 120  # what was selected was of another menu
    menu.select_option("class")
    maps.page.mouse.click(*maps.at(sign["x"] + 150, sign["y"] + 50))
    assert len(lit(maps.frame, 1)) == 120


def test_the_wheel_zooms_and_a_shifted_drag_pans_both(maps):
    first, second = (marks(maps.frame, f"points{i}") for i in range(2))
    middle = first["x"].mean(), first["y"].mean()
    maps.page.mouse.move(*maps.at(*middle))
    maps.page.mouse.wheel(0, -200)
    wait(lambda: np.ptp(marks(maps.frame, "points0")["x"]) > 1.2 * np.ptp(first["x"]), 5)
    ratio = [np.ptp(marks(maps.frame, f"points{i}")["x"]) / np.ptp(p["x"]) for i, p in enumerate((first, second))]
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-3)
    before = marks(maps.frame, "points1")["x"]
    maps.page.keyboard.down("Shift")
    maps.drag(*middle, middle[0] + 40, middle[1])
    maps.page.keyboard.up("Shift")
    assert (marks(maps.frame, "points1")["x"] - before).mean() == pytest.approx(40, abs=2)
    maps.page.mouse.dblclick(*maps.at(*middle))
    wait(lambda: np.allclose(marks(maps.frame, "points0")["x"], first["x"], atol=0.5), 5)


def test_a_hostile_title_is_text(maps):
    assert maps.frame.evaluate("window.taken") is None
    assert maps.page.evaluate("window.taken") is None
    assert maps.frame.locator("script").count() == 2  # the library and the chart


def test_in_jupyterlab_the_maps_are_linked_and_python_is_told(in_lab, run):
    page, _ = in_lab
    assert page.locator('[data-mime-type="application/vnd.jupyter.error"]').count() == 0
    left = {path.name for path in (run[0] / "figures").iterdir()}
    assert {"toy_maps.png", "toy_neighbours.png", "toy_measures.csv", "toy_recall.csv"} <= left
    canvas = page.locator(".jp-OutputArea canvas").first
    canvas.scroll_into_view_if_needed()
    box, before = canvas.bounding_box(), browser.pixels(page, ".jp-OutputArea canvas >> nth=0").astype(int)
    page.mouse.move(box["x"] + 60, box["y"] + 100)
    page.mouse.down()
    page.mouse.move(box["x"] + 150, box["y"] + 250)
    page.mouse.move(box["x"] + 230, box["y"] + 380)
    page.mouse.up()
    page.wait_for_timeout(500)
    after = browser.pixels(page, ".jp-OutputArea canvas >> nth=0").astype(int)
    half = slice(60, 480), slice(440, 830)  # the second map
    vivid = [(np.ptp(pixels[half], axis=2) > 60).sum() for pixels in (before, after)]
    assert 0.1 * vivid[0] < vivid[1] < 0.9 * vivid[0]
    cell = page.locator(".jp-CodeCell:has-text('live.selected')").first
    cell.locator(".jp-InputArea-editor").click()
    page.keyboard.press("Control+Enter")
    wait(lambda: "outside" in cell.locator(".jp-OutputArea").inner_text(), 20)
    assert [text for text in page.problems if not any(known in text for known in IGNORE)] == []
