"""The report in a real browser, from disk, with the network off: executed notebooks of a catalogue of hostile names."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import browser
import numpy as np
import pytest
import report
import yaml
from made_up import METHODS, class_scores, run_folder
from PIL import Image

from icssl_lib.config import load_config
from icssl_lib.notebooks import execute

ATTACK = "window.hacked = 1"
LABELS = [
    f"<script>{ATTACK}</script>",
    f"</script><img src=x onerror='{ATTACK}'>",
    "__proto__",
    "Quotes \" and ' & <b> $x$ \ud800",
    "مصابيح",
    *(f"class {k}" for k in range(5)),
]


@pytest.fixture(scope="module")
def out(tmp_path_factory, root) -> Path:
    """Notebooks 01, 04 and 05 executed as the DAG does, 02 as it is, for its formula; and the report."""
    folder, rng = tmp_path_factory.mktemp("study"), np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(folder / "picture.png")
    labels = np.repeat(LABELS, [200, 150, 100, 80, 60, 60, 40, 40, 20, 20])
    with (folder / "products.jsonl").open("w") as file:
        for k, label in enumerate(labels):
            title = f"</script><img src=x onerror='{ATTACK}'> \ud83d __proto__ \"{k}\" {label[:3]}"
            product = {"id": f"<b>{k:04d}\udc00", "title": title, "label": label, "image": "picture.png"}
            file.write(json.dumps(product) + "\n")
    source = {"source": "table", "table": "products.jsonl", "id": "id", "image": "image", "image_folder": "."}
    study = {"study": "made-up", "seeds": [0, 1], "datasets": {"beauty": source}, "methods": list(METHODS)}
    study |= {"pretrain": {}}
    study |= {"finetune": {"fractions": [0.05, 0.5, 1.0]}}
    config, out = folder / "study.yaml", tmp_path_factory.mktemp("run")
    config.write_text(yaml.safe_dump(study))
    run_folder(load_config(config), out)
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own, so that figures stand in the notebooks
    for name, more in {"01_catalogue": {"dataset": "beauty"}, "04_table2": {}, "05_figure5": {}}.items():
        parameters = {"config": str(config), "out": str(out), **more}
        execute(root / "notebooks" / f"{name}.ipynb", out / "notebooks" / f"{name}.ipynb", parameters)
    monkeypatch.undo()
    shutil.copy(root / "notebooks" / "02_adapt.ipynb", out / "notebooks")
    report.build(load_config(config), out, [*out.glob("notebooks/*.ipynb"), *out.glob("report/map-*.html")])
    return out


@pytest.fixture(scope="module")
def chromium() -> Iterator[object]:
    with browser.started() as found:
        yield found


@pytest.fixture
def classes(chromium, out) -> Iterator[object]:
    """Notebook 05's page, once its two tables are there."""
    with browser.opened(chromium, (out / "notebooks" / "05_figure5.html").as_uri()) as page:
        page.locator(".dt-scroll-body tbody tr").nth(19).wait_for()
        yield page
        assert page.evaluate("window.hacked") is None


def heads(page, table: int = 0) -> dict[str, int]:
    """Names of a table's columns, and their positions."""
    names = page.locator(".dt-container").nth(table).locator(".dt-scroll-head th").all_inner_texts()
    return {name.strip(): position for position, name in enumerate(names)}


def head(page, name: str):
    return page.locator(".dt-scroll-head").first.locator("th").nth(heads(page)[name])


def column(page, name: str, table: int = 0) -> list[str]:
    """The texts in one column of the rows that a table shows."""
    rows = page.locator(".dt-container").nth(table).locator(".dt-scroll-body tbody")
    return rows.locator(f"td:nth-child({heads(page, table)[name] + 1})").all_inner_texts()


def test_figures_and_tables_stand_in_the_notebooks(out):
    shown = {}
    for path in sorted((out / "notebooks").glob("*.ipynb")):
        outputs = [o for c in json.loads(path.read_text())["cells"] for o in c.get("outputs", [])]
        shown[path.stem] = sum("image/png" in o.get("data", {}) for o in outputs)
    assert shown == {"01_catalogue": 2, "02_adapt": 0, "04_table2": 2, "05_figure5": 3}
    assert "199757" in (out / "notebooks" / "01_catalogue.html").read_text()  # Table 1: the paper's products
    assert "class 1" not in "".join(p.read_text() for p in (out / "figures").glob("*.csv"))  # no row of the data
    assert not list(out.rglob("*.partial"))


def test_the_index_fits_a_phone_and_leads_to_notebooks_and_back(chromium, out):
    with browser.opened(chromium, (out / "report" / "index.html").as_uri(), width=390) as page:
        assert browser.overflow(page) == 0
        assert browser.low_contrast(page) == []
        assert page.locator("figure img").evaluate("p => p.decode().then(() => p.naturalWidth)") > 100
        page.get_by_role("link", name="05_figure5").click()
        page.get_by_role("link", name="Report").click()
        assert page.get_by_role("heading", level=1).inner_text() == "made-up"


def test_notebooks_open_offline_draw_formulas_and_run_nothing_of_the_catalogue(chromium, out):
    for path in sorted((out / "notebooks").glob("*.html")):
        with browser.opened(chromium, path.as_uri()) as page:
            page.wait_for_timeout(300)
            assert page.evaluate("window.hacked") is None
            assert page.locator("img[src=x], [onerror]").count() == 0
            if path.stem == "02_adapt":
                assert page.locator("math").first.bounding_box()["height"] > 30  # a fraction, not a line of TeX


def test_classes_are_sorted_by_a_click_and_searched_by_a_word(classes):
    net = [int(text) for text in column(classes, "net")]
    assert net == sorted(net, reverse=True)
    for direction, order in ((1, "ascending"), (-1, "descending")):
        head(classes, "f1").locator(".dt-column-title").click()
        classes.locator(f".dt-scroll-head th[aria-sort={order}]:has-text('f1')").first.wait_for()
        f1 = [direction * float(text) for text in column(classes, "f1")]
        assert f1 == sorted(f1)
    assert len(set(f1)) > 3
    search = classes.get_by_role("searchbox").first
    for text in ("class 3", LABELS[0], LABELS[1], "__proto__", "مصابيح"):
        search.fill(f'"{text}"')  # words side by side
        rows = list(zip(column(classes, "class"), column(classes, "mistaken for"), strict=True))
        assert rows
        assert all(text in row for row in rows)
    search.fill("no such class")
    assert classes.get_by_text("No matching records found").count() == 1


def choose(page, name: str, choice: str) -> None:
    """Choose in the list of a column of the first table."""
    head(page, name).get_by_role("button").last.click()
    page.locator(f".dtcc-list-buttons button:has-text('{choice}'):visible").click()
    page.keyboard.press("Escape")


def test_lists_choose_what_is_shown_and_that_is_what_the_predictions_say(classes, out):
    choose(classes, "method", "convirt")
    choose(classes, "fraction", "0.05")
    labels, predictions = column(classes, "class"), report.read_predictions(out, report.read_results(out))
    only = "fraction == 0.05 and method == 'convirt'"
    scores = class_scores(predictions).query(only).set_index("label")
    gained = report.gained_and_lost(predictions).query(f"{only} and change == 'gained'")["label"].value_counts()
    assert set(labels) == set(scores.index)
    for name, wanted in (("f1", scores["f1"]), ("difference", scores["difference"]), ("gained", gained)):
        expected = wanted.reindex(labels, fill_value=0)
        assert list(map(float, column(classes, name))) == pytest.approx(list(expected), abs=6e-4)
    choose(classes, "part", "tail")
    assert set(column(classes, "part")) == {"tail"}
    assert all(title.startswith("</script><img src=x") for title in column(classes, "title", table=1))
