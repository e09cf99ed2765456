"""The report's tables by hand, and its pages from a made-up run: nothing is trained, no notebook is executed."""

import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import nbformat
import numpy as np
import pandas as pd
import pytest
import report
import yaml
from bs4 import BeautifulSoup
from made_up import METHODS, class_scores, predictions, run_folder

from icssl_lib import metrics
from icssl_lib.catalogue import open_catalogue
from icssl_lib.config import load_config
from icssl_lib.runs import RunError

HOSTILE = '05_x"><img src=x onerror=alert(1)>'  # a file's name


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A study of a table without pictures, in a folder whose name would be HTML."""
    folder = tmp_path_factory.mktemp("study") / "<script>alert(1)<script>"
    folder.mkdir()
    labels = np.repeat([f"class {k}" for k in range(6)], [200, 150, 100, 50, 50, 50])
    table = pd.DataFrame({"id": [f"i{k:04d}" for k in range(600)], "label": labels})
    table.assign(title=table["label"] + " " + table["id"]).to_csv(folder / "products.csv", index=False)
    source = {"source": "table", "table": "products.csv", "id": "id", "image": None}
    study = {"study": "made-up", "seeds": [0, 1], "datasets": {"beauty": source}, "methods": list(METHODS)}
    study |= {"text": {"model": "somewhere"}, "vision": {"model": "vit_tiny_patch16_224"}}
    study |= {"finetune": {"fractions": [0.05, 0.5, 1.0]}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


def notebook(path: Path, *cells: str) -> None:
    """An executed notebook of Markdown."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(nbformat.v4.new_notebook(cells=list(map(nbformat.v4.new_markdown_cell, cells)))))


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory) -> Path:
    """A run folder that lacks nothing."""
    out = tmp_path_factory.mktemp("run")
    run_folder(load_config(config), out)
    for folder, name, text in (("figures", "figure5.svg", "<svg/>"), ("report", "map-beauty.html", "a map")):
        (out / folder).mkdir()
        (out / folder / name).write_text(text)
    for name in ("01_catalogue-beauty", "04_table2", "05_figure5", HOSTILE):
        notebook(out / "notebooks" / f"{name}.ipynb", f"# {name}")
    return out


@pytest.fixture
def out(whole, tmp_path) -> Path:
    """A copy, to change."""
    return shutil.copytree(whole, tmp_path / "run")


def current_in(out: Path) -> list[Path]:
    return [*out.glob("notebooks/*.ipynb"), *out.glob("report/map-*.html")]


def elements(page: Path) -> BeautifulSoup:
    return BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")


def test_what_settings_that_are_gone_have_left_is_moved_away(config, out):
    stale = ["notebooks/03_finetune-beauty-convirt.ipynb", "notebooks/07_beyond.ipynb", "notebooks/07_beyond.html"]
    stale += ["report/map-beauty.html"]
    stale += [f"classifiers/beauty/{name}/config.json" for name in ("convirt/seed0/f100", "origin/seed0/f050")]
    stays = ["notebooks/03_finetune-beauty-origin.ipynb", "classifiers/beauty/origin/seed0/f100/config.json"]
    for _ in range(2):  # and again, when they have come again
        for name in stale + stays:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            notebook(out / name, "# Old")
        current = [path for path in current_in(out) if path.relative_to(out).as_posix() not in stale]
        page = report.build(load_config(config), out, [*current, out / stays[1]]).read_text(encoding="utf-8")
        assert all((out / "earlier" / name).is_file() and not (out / name).exists() for name in stale)
        assert all((out / name).is_file() for name in stays)
        assert not any(Path(name).stem in page for name in stale[:4])


def test_index_shows_table_2_beside_the_papers_and_head_and_tail(config, out):
    page = report.build(load_config(config), out, current_in(out)).read_text(encoding="utf-8")
    results = report.read_results(out)
    means = results[results["fraction"] == 0.05].groupby("method")[list(metrics.METRICS)].mean()
    for metric in ("accuracy", "head_macro_f1", "tail_macro_f1"):
        assert f"<td>{means.loc['convirt', metric]:.3f}</td>" in page
    assert "<th>paper: ConVIRT</th>" in page
    assert "<td>0.599</td>" in page  # the paper's Beauty, ConVIRT, 5%
    assert all(text in page for text in ("Table 2", "Figure 5", "Head macro-F1", "Tail macro-F1", "5%"))
    assert '"temperature": 0.1' in page  # a default among the settings


def test_index_runs_nothing_loads_nothing_and_its_links_lead_somewhere(config, out):
    notebook(out / "notebooks" / "07_beyond.failed.ipynb", "half")
    index = report.build(load_config(config), out, current_in(out))
    page = elements(index)
    assert not page.find_all(["script", "iframe", "object", "embed", "link"])
    assert not [name for tag in page.find_all() for name in tag.attrs if name.startswith("on")]
    assert all(img["src"].startswith("data:") and len(img["alt"]) > 40 for img in page.find_all("img"))
    links = {unquote(a["href"]) for a in page.find_all("a")}
    assert {"map-beauty.html", "../results.csv", f"../notebooks/{HOSTILE}.html"} <= links
    assert all((index.parent / link).is_file() and "failed" not in link for link in links)


@pytest.mark.parametrize(
    "missing", ["results.csv", "figures/figure5.svg", "notebooks/04_table2.ipynb", "notebooks/05_figure5.ipynb"]
)
def test_what_is_missing_is_named(missing, config, out):
    (out / missing).unlink()
    with pytest.raises(RunError, match=rf"{missing}: not there yet.*make study"):
        report.build(load_config(config), out, current_in(out))
    assert not (out / "report" / "index.html").exists()


def test_missing_predictions_are_named(tmp_path):
    results = pd.DataFrame([{"dataset": "beauty", "method": "origin", "seed": 0}])
    with pytest.raises(RunError, match=r"seed0\.parquet: not there yet"):
        report.read_predictions(tmp_path, results)


def test_a_page_is_made_again_when_its_notebook_changed(tmp_path):
    path = tmp_path / "n.ipynb"
    notebook(path, "first")
    page = report.convert(path)
    page.write_text("kept")
    assert report.convert(path).read_text() == "kept"
    notebook(path, "second")
    assert "second" in report.convert(path).read_text()
    assert not list(tmp_path.glob("*.partial"))


def test_pages_show_the_formulas_of_all_notebooks_without_a_script_from_elsewhere(root, tmp_path):
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        cells = [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown"]
        notebook(tmp_path / path.name, *(cell for cell in cells if "$" in cell), "Inline $a_i < b$.")
        page = elements(report.convert(tmp_path / path.name))
        assert len(page.find_all("math")) == len(page.find_all("math", display="block")) + 1
        assert not re.search(r"\$\$|\\frac|mathjax|require\.?js|unpkg|mermaid", str(page), re.IGNORECASE)
        assert not [tag for tag in page.find_all(["script", "link"]) if "src" in tag.attrs or "href" in tag.attrs]
    assert elements(tmp_path / "02_adapt.html").find("math", display="block")


def test_markdown_of_a_notebook_is_no_html(tmp_path):
    notebook(tmp_path / "n.ipynb", "<script>alert(1)</script>", "a <b>b</b> $x<y$ \ud800 [c](javascript:alert(1))")
    page = elements(report.convert(tmp_path / "n.ipynb"))
    assert not page.find_all(["script", "b"])
    assert not [a for a in page.find_all("a") if a["href"].startswith("javascript")]


# --- tables by hand


def test_class_sizes_puts_labels_absent_from_train_into_the_tail(out):
    catalogue = open_catalogue(out / "catalogues" / "beauty")
    products = catalogue.products.copy()
    products.loc[products["part"] == "test", "label"] = "only in Test"
    catalogue.products = products
    sizes = report.class_sizes([catalogue])
    assert sizes.iloc[-1][["label", "count", "part"]].tolist() == ["only in Test", 0, "tail"]
    assert sizes["rank"].tolist() == list(range(1, len(sizes) + 1))
    assert sizes["count"].is_monotonic_decreasing


SCORED = predictions([*"AABC"], {"origin": [[*"ABBA"]] * 3, "convirt": [[*"AABZ"], [*"AABZ"], [*"ABBA"]]})


def test_class_scores_by_hand():
    table = class_scores(SCORED)
    theirs, ours = (table[table["method"] == m].set_index("label") for m in ("origin", "convirt"))
    assert list(ours.index) == [*"ABC"]  # Z has no true instance
    assert ours["test"].tolist() == [2, 1, 1]
    # origin: A is called twice, once rightly, of 2; B twice, once rightly, of 1; C never
    assert theirs["precision"].tolist() == pytest.approx([1 / 2, 1 / 2, 0])
    assert theirs["recall"].tolist() == pytest.approx([1 / 2, 1, 0])
    assert theirs["f1"].tolist() == pytest.approx([1 / 2, 2 / 3, 0])
    assert (theirs[["difference", "low", "high"]] == 0).all(axis=None)
    # convirt: A and B without fault in two seeds, as origin in the third
    assert ours["f1"].tolist() == pytest.approx([(1 + 1 + 1 / 2) / 3, (1 + 1 + 2 / 3) / 3, 0])
    assert ours["recall"].tolist() == pytest.approx([(1 + 1 + 1 / 2) / 3, 1, 0])
    assert ours["difference"].tolist() == pytest.approx([1 / 3, 2 / 9, 0])
    assert ours["low"].tolist() == pytest.approx([0, 0, 0])
    assert ours["high"].tolist() == pytest.approx([1 / 2, 1 / 3, 0])


def test_gained_and_lost_by_hand():
    # i0 and i1: as they were; i2: gained in all seeds; i3: gained in two of three, and origin says C twice and D once;
    # i4: lost in two; i5: wrong by both; i6: right by convirt in one of three only
    origin, convirt = ["AACCACB", "AACCACB", "AACDACB"], ["AABBDCA", "AABBDCB", "AABCADB"]
    found = report.gained_and_lost(
        predictions([*"AABBABA"], {"origin": list(map(list, origin)), "convirt": list(map(list, convirt))})
    ).sort_values("id")
    assert found["id"].tolist() == ["i0002", "i0003", "i0004"]
    assert found["change"].tolist() == ["gained", "gained", "lost"]
    assert found["instead"].tolist() == ["C", "C", "D"]
    assert found["margin"].tolist() == pytest.approx([1, 2 / 3, -2 / 3])
    assert set(found["method"]) == {"convirt"}


@pytest.mark.parametrize("convirt", [None, [[*"AB"], [*"BB"]]])
def test_half_of_the_seeds_is_not_most_and_one_method_changes_nothing(convirt):
    methods = {"origin": [[*"BA"], [*"BB"]]} | ({"convirt": convirt} if convirt else {})
    assert report.gained_and_lost(predictions([*"AB"], methods)).empty
