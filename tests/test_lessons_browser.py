"""The lessons' slider in a real, headless Chromium: on a page without a kernel, and in JupyterLab."""

import shutil
from pathlib import Path

import browser
import execute
import nbformat
from lab import IGNORE, LOOPBACK, lab, ran
from nbconvert import HTMLExporter

MATHJAX = ("mathjax", "MathJax", "Failed to load resource: net::ERR_FAILED")  # read without network, a page has none


def lesson(root: Path, folder: Path) -> Path:
    """Lesson 2, cut behind the cell that makes the slider, with its tools beside it; its cosines are made up."""
    lessons = root / "notebooks" / "lessons"
    notebook = nbformat.read(lessons / "02_infonce.ipynb", 4)
    (end,) = [i for i, cell in enumerate(notebook.cells) if "Moving(alt" in cell.source]
    code = [cell for cell in notebook.cells[: end + 1] if cell.cell_type == "code"]
    code[0].source = code[0].source.replace("study, out = workshop()", "")
    code[1].source = "s = torch.linspace(0.95, 0.2, 64).view(8, 8)"
    notebook.cells = code
    for tools in lessons.glob("*.py"):
        shutil.copy(tools, folder)
    nbformat.write(notebook, folder / "lesson.ipynb")
    return folder / "lesson.ipynb"


def slides(page) -> None:
    """Move the slider by keyboard, as a person may: another value, another picture."""
    handle, seen = page.frame_locator("iframe").locator("input[type=range]"), {}
    for key in ("Home", "End"):
        handle.press(key)
        page.wait_for_timeout(500)
        seen[float(handle.input_value())] = browser.pixels(page, "iframe").astype(int)
    assert list(seen) == [-2, 0]
    assert (abs(seen[-2] - seen[0]).max(axis=2) > 60).mean() > 0.02  # another picture, not another caption


def test_the_temperature_slider_changes_the_plot_on_a_page_and_in_jupyterlab(root, tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    with browser.started() as chromium:
        notebook = lesson(root, folder)
        executed, page = tmp_path / "executed.ipynb", tmp_path / "page.html"
        *_, problem = execute.execute(notebook, executed, limit=400)
        assert problem == ""
        exporter = HTMLExporter(template_name="lab", require_js_url="", jquery_url="", mermaid_js_url="")
        page.write_text(exporter.from_filename(str(executed))[0], encoding="utf-8")
        with browser.opened(chromium, page.as_uri(), ignore=MATHJAX) as opened:
            slides(opened)
        with lab(folder, tmp_path, notebook.name) as address:
            options = {"width": 1300, "height": 1200, "allow": LOOPBACK, "ignore": IGNORE}
            with browser.opened(chromium, address, **options) as opened:
                ran(opened, 400)
                slides(opened)
