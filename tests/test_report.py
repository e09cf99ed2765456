"""The page and the notebooks that read, on a made-up run: nothing is trained here."""

import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from icssl_lib import metrics, report, runs
from icssl_lib.catalogue import CatalogueError, ingest, open_catalogue
from icssl_lib.config import load_config

METHODS = {"origin": 0.4, "simcse": 0.4, "convirt": 0.7, "tfidf": 0.5}  # with the share of items each gets right
LABEL = "<script>alert(1)</script> & more"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A study of one small table without pictures; class and title try to smuggle HTML."""
    folder = tmp_path_factory.mktemp("study")
    labels = np.repeat([LABEL, *(f"class {k}" for k in range(9))], [400, 300, 200, 150, 100, 100, 50, 50, 25, 25])
    table = pd.DataFrame({"id": [f"i{k:04d}" for k in range(len(labels))], "label": labels})
    table["title"] = [f"<img src=http://example.org/x.png> <b>{row.label}</b> {row.id}" for row in table.itertuples()]
    table.loc[[3, 7], "title"] = ""
    table.loc[5, "title"] += "\x07"  # repaired, and so an example in the ingest report
    table.to_csv(folder / "products.csv", index=False)
    source = {"source": "table", "table": "products.csv", "id": "id", "image": None}
    study = {"study": "made-up", "seeds": [0, 1], "datasets": {"beauty": source}, "methods": list(METHODS)}
    study |= {"text": {"model": "somewhere"}, "vision": {"model": "vit_tiny_patch16_224"}}
    study |= {"finetune": {"fractions": [0.05, 0.5, 1.0]}}
    (folder / "study.yaml").write_text(yaml.safe_dump(study))
    return folder / "study.yaml"


@pytest.fixture(scope="module")
def out(config, tmp_path_factory) -> Path:
    """The run folder as the training notebooks leave it, its numbers drawn."""
    out, study, rng = tmp_path_factory.mktemp("run"), load_config(config), np.random.default_rng(0)
    folder = out / "catalogues" / "beauty"
    catalogue = ingest("beauty", study.datasets["beauty"], 32, study.split_seed, folder, progress=False)
    test = catalogue.part("test")
    head, tail = report.heads_and_tails(out, ["beauty"])["beauty"]
    rows = []
    for method, right in METHODS.items():
        for seed in study.seeds:
            keys, frames = {"dataset": "beauty", "method": method, "seed": seed}, []
            for fraction in study.finetune.fractions:
                hit = rng.random(len(test)) < right * (0.7 + 0.3 * fraction)
                guess = rng.choice(catalogue.labels, len(test))
                predicted = np.where(hit, test["label"].to_numpy(str), guess)
                frame = test[["id", "label"]].assign(predicted=predicted, confidence=0.5, fraction=fraction, **keys)
                frames.append(frame)
                scores = metrics.scores(frame["label"], predicted, head, tail)
                rows.append(keys | scores | {"fraction": fraction, "n_train": 9, "split_hash": "0", "seconds": 1.0})
            path = runs.piece(out, "predictions", **keys).with_suffix(".parquet")
            path.parent.mkdir(parents=True, exist_ok=True)
            pd.concat(frames).to_parquet(path)
            path = runs.piece(out, "records", **keys).with_suffix(".json")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"machine": {"cpu": "Abacus <9000>", "cores": 4}}))
            if method in ("simcse", "convirt"):
                path = runs.piece(out, "encoders", **keys)
                path.mkdir(parents=True)
                steps = np.arange(200)
                history = pd.DataFrame({"step": steps, "epoch": 0, "loss": 3 - steps / 100, "seconds": steps})
                history.to_csv(path / "history.csv", index=False)
                space = [("title uniformity", "before", -1.0), ("title uniformity", "after", -2.0)]
                pd.DataFrame(space, columns=["measure", "when", "value"]).to_csv(path / "space.csv", index=False)
    pd.DataFrame(rows).to_csv(out / "results.csv", index=False)
    return out


@pytest.fixture(scope="module")
def page(root, config, out) -> str:
    """Notebooks 01, 04 and 05 executed as the DAG does, then the page."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel's own, so that figures stand in the notebooks
    notebooks = {"01_catalogue": {"dataset": "beauty"}, "04_table2": {}, "05_figure5": {}}
    for name, more in notebooks.items():
        parameters = {"config": str(config), "out": str(out), **more}
        runs.execute(root / "notebooks" / f"{name}.ipynb", out / "notebooks" / f"{name}.ipynb", parameters)
    monkeypatch.undo()
    return report.build(load_config(config), out).read_text(encoding="utf-8")


class Elements(html.parser.HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))


def test_page_loads_nothing_and_runs_nothing(page):
    elements = Elements(page).found
    assert len(elements) > 100
    assert not [tag for tag, _ in elements if tag in ("script", "iframe", "object", "embed")]
    for tag, attributes in elements:
        for name in ("src", "srcset", "href"):
            address = attributes.get(name)
            if address and tag != "a":
                assert address.startswith("data:"), (tag, address)
    style = "".join(re.findall(r"<style>(.*?)</style>", page, re.DOTALL))
    assert "prefers-color-scheme" in style
    assert "url(" not in style
    assert "@import" not in style


def test_page_escapes_what_the_catalogue_says(page):
    assert "&lt;img src=http://example.org/x.png&gt;" in page
    assert "<script>" not in page
    assert "Abacus &lt;9000&gt;" in page


def test_every_picture_has_an_alternative_text(page):
    pictures = [attributes for tag, attributes in Elements(page).found if tag == "img"]
    assert len(pictures) == 6  # Figure 5, accuracy, label efficiency, one tail, loss, space
    assert all(len(p["alt"]) > 40 for p in pictures)


def test_page_shows_the_tables(page, out):
    table = pd.read_csv(out / "figures" / "table2.csv")
    ours = table[(table["method"] == "convirt") & (table["fraction"] == 0.05)].iloc[0]
    assert f"<td>{ours['accuracy']:.3f}</td>" in page
    assert "<td>0.599</td>" in page  # the paper's Beauty, ConVIRT, 5%
    assert ours["paper"] == 0.599
    differences = pd.read_csv(out / "figures" / "differences.csv")
    convirt = differences.query("method == 'convirt' and metric == 'accuracy'")
    assert len(convirt) == 3
    assert (convirt["low"] > 0).all()  # it was made to be right more often
    assert "199757" in page


def test_links_lead_to_the_executed_notebooks(page, out):
    links = [a["href"] for tag, a in Elements(page).found if tag == "a" and a["href"].endswith(".html")]
    assert len(links) == 3
    for link in links:
        text = (out / "report" / link).read_text(encoding="utf-8")
        assert "Notice" in text
        assert "<b>class" not in text  # titles are escaped in the notebooks as well
        loaded = [a["src"] for tag, a in Elements(text).found if tag == "script" and a.get("src")]
        assert all("mathjax" in address.lower() for address in loaded)


def test_each_figure_stands_once_in_its_notebook(page, out):
    shown = {}
    for path in (out / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        outputs = [o for cell in cells for o in cell.get("outputs", [])]
        shown[path.stem] = sum("image/png" in o.get("data", {}) for o in outputs)
    assert shown == {"01_catalogue": 1, "04_table2": 2, "05_figure5": 1}


def test_notebooks_leave_pictures_beside_their_tables(page, out):
    figures = out / "figures"
    drawn = ("figure5", "accuracy", "label_efficiency", "beauty_class_sizes", "loss_curves", "space")
    for stem in drawn:
        assert {p.suffix for p in figures.glob(f"{stem}.*")} == {".png", ".svg", ".csv"}
    assert not list(out.rglob("*.partial"))
    efficiency = pd.read_csv(figures / "label_efficiency.csv")
    assert list(efficiency) == ["dataset", "method", "fraction", "factor", "low", "high"]
    text = "".join(p.read_text() for p in figures.glob("*.csv"))
    assert "class 1" not in text  # no row of the data


def test_table1_stands_beside_the_papers(out):
    table = report.table1([open_catalogue(out / "catalogues" / "beauty")])
    assert list(table["source"]) == ["this run", "paper"]
    assert table["products"].tolist() == [1398, 199_757]
    assert table["classes"].tolist() == [10, 229]
    assert table.loc[0, ["ssl", "train", "dev", "test"]].sum() == 1398


def test_class_sizes_puts_labels_absent_from_train_into_the_tail(out):
    catalogue = open_catalogue(out / "catalogues" / "beauty")
    products = catalogue.products.copy()
    products.loc[products["part"] == "test", "label"] = "only in Test"
    catalogue.products = products
    sizes = report.class_sizes([catalogue])
    assert sizes.iloc[-1][["label", "count", "part"]].tolist() == ["only in Test", 0, "tail"]
    assert sizes["rank"].tolist() == list(range(1, len(sizes) + 1))


def test_clear_errors_where_nothing_ran(tmp_path, config):
    with pytest.raises(runs.RunError, match=r"results\.csv.*make study"):
        report.build(load_config(config), tmp_path)
    with pytest.raises(CatalogueError, match="beauty"):
        report.heads_and_tails(tmp_path, ["beauty"])
    results = pd.DataFrame([{"dataset": "beauty", "method": "origin", "seed": 0}])
    with pytest.raises(runs.RunError, match=r"seed0\.parquet.*make study"):
        report.read_predictions(tmp_path, results)
