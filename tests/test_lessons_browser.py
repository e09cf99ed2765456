"""The lessons' pictures that move, in a real, headless Chromium: on a page without a kernel, and in JupyterLab."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import browser
import pytest
from lab import IGNORE, LOOPBACK, lab, ran

from icssl_lib import lessons

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# The page asks for MathJax, which a page read without network goes without.
MATHJAX = ("mathjax", "MathJax", "Failed to load resource: net::ERR_FAILED")


def up_to(root: Path, name: str, call: str) -> dict:
    """The lesson, cut behind the cell that makes the picture: what follows has no part in it."""
    notebook = json.loads((root / "notebooks" / "lessons" / name).read_text(encoding="utf-8"))
    calls = [i for i, c in enumerate(notebook["cells"]) if c["cell_type"] == "code" and call in "".join(c["source"])]
    assert calls, f"{name} has no {call}...)"
    return notebook | {"cells": notebook["cells"][: calls[0] + 1]}


def exported(root: Path, folder: Path, name: str, call: str) -> str:
    """The address of the lesson's beginning, executed and made a page."""
    import nbformat
    import papermill
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    stateless = Config({"NotebookClient": {"store_widget_state": False}})  # as icssl_lib.runs.execute

    lessons.workshop()
    source, executed, page = folder / "cut.ipynb", folder / "executed.ipynb", folder / "page.html"
    source.write_text(json.dumps(up_to(root, name, call)))
    papermill.execute_notebook(
        str(source), str(executed), kernel_name="python3", progress_bar=False, cwd=str(folder), config=stateless
    )
    exporter = HTMLExporter(template_name="lab", require_js_url="", jquery_url="", mermaid_js_url="")
    page.write_text(exporter.from_notebook_node(nbformat.read(executed, 4))[0], encoding="utf-8")
    return page.as_uri()


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    with browser.started() as started:
        yield started


def slides(page: "Page") -> None:
    """Move the slider by keyboard, as a person may: the value and the picture follow, and only one is shown."""
    figure = page.locator("figure.icssl-slider")
    handle, shown, value = figure.locator("input[type=range]"), figure.locator("img:visible"), figure.locator("output")
    assert shown.count() == 1
    first = value.inner_text(), shown.get_attribute("src")
    handle.press("ArrowRight")
    assert float(value.inner_text()) > float(first[0])
    handle.press("ArrowLeft")
    assert (value.inner_text(), shown.get_attribute("src")) == first
    seen = {}
    for key in ("Home", "End"):
        handle.press(key)
        assert shown.count() == 1
        assert shown.evaluate("e => e.complete && e.naturalWidth > 200")
        seen[float(value.inner_text())] = browser.pixels(page, "figure.icssl-slider img:visible").astype(int)
    low, high = sorted(seen)
    assert low < float(first[0]) < high
    assert (abs(seen[low] - seen[high]).max(axis=2) > 60).mean() > 0.02  # another picture, not another caption


def test_the_temperature_slider_changes_the_plot_on_a_page(root, chromium, tmp_path):
    address = exported(root, tmp_path, "02_infonce.ipynb", "lessons.slider(")
    with browser.opened(chromium, address, ignore=MATHJAX) as page:
        slides(page)


def test_the_animation_plays_on_a_page(root, chromium, tmp_path):
    address = exported(root, tmp_path, "03_simcse.ipynb", "lessons.animate(")
    with browser.opened(chromium, address, ignore=MATHJAX) as page:
        plays(page)


def plays(page: "Page") -> None:
    """From its first frame to its last, by the play button; then one frame back."""
    player = page.locator(".animation")
    picture, position = player.locator("img"), player.locator("input[type=range]")
    last = int(position.get_attribute("max"))
    assert last >= 10
    player.locator("button[title='First frame']").click()
    first = browser.pixels(page, ".animation img").astype(int)
    frames = {picture.get_attribute("src")}
    player.locator("button[title='Play']").click()
    for _ in range(600):
        frames.add(picture.get_attribute("src"))
        if int(position.input_value()) == last:
            break
        page.wait_for_timeout(50)
    assert int(position.input_value()) == last
    assert len(frames) > last / 2  # it went through them, and did not jump
    assert all(re.match("data:image/png;base64,", frame) for frame in frames)
    assert (abs(browser.pixels(page, ".animation img").astype(int) - first).max(axis=2) > 60).mean() > 0.005
    player.locator("button[title='Previous frame']").click()
    assert int(position.input_value()) == last - 1


@pytest.mark.parametrize(
    ("name", "call", "moves"),
    [("02_infonce.ipynb", "lessons.slider(", slides), ("03_simcse.ipynb", "lessons.animate(", plays)],
)
def test_pictures_move_in_jupyterlab(root, chromium, tmp_path, name, call, moves):
    lessons.workshop()
    folder = tmp_path / "notebooks"
    folder.mkdir()
    (folder / name).write_text(json.dumps(up_to(root, name, call)))
    with lab(folder, tmp_path, name) as address:
        with browser.opened(chromium, address, width=1300, height=1200, allow=LOOPBACK, ignore=IGNORE) as page:
            ran(page, 400)
            moves(page)
