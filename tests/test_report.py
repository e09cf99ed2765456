"""The site and the notebooks that read, on a made-up run: nothing is trained here."""

import base64
import hashlib
import html
import html.parser
import io
import itertools
import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from markupsafe import escape
from PIL import Image

from icssl_lib import figures, metrics, report, runs
from icssl_lib.catalogue import CatalogueError, ingest, open_catalogue
from icssl_lib.config import Study, load_config

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
    """The run folder as the training notebooks leave it."""
    out = tmp_path_factory.mktemp("run")
    make_up(load_config(config), out)
    return out


def make_up(study: Study, out: Path, methods: dict[str, float] = METHODS) -> None:
    """Fill a run folder of the dataset beauty with numbers that are drawn."""
    rng = np.random.default_rng(0)
    folder = out / "catalogues" / "beauty"
    catalogue = ingest("beauty", study.datasets["beauty"], 32, study.split_seed, folder, progress=False)
    test = catalogue.part("test")
    head, tail = report.heads_and_tails(out, ["beauty"])["beauty"]
    rows = []
    for method, right in methods.items():
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


@pytest.fixture(scope="module")
def classes(page, out) -> str:
    """The page of beauty's classes."""
    return (out / "report" / "classes-beauty.html").read_text(encoding="utf-8")


class Elements(html.parser.HTMLParser):
    """Every start tag with its attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs) -> None:
        self.found.append((tag, dict(attrs)))


def test_first_page_runs_nothing(page):
    elements = Elements(page).found
    assert len(elements) > 100
    assert not [tag for tag, _ in elements if tag in ("script", "iframe", "object", "embed")]


def test_pages_load_nothing(page, classes):
    for text in (page, classes):
        for tag, attributes in Elements(text).found:
            for name in ("src", "srcset", "href"):
                address = attributes.get(name)
                if address and tag != "a":
                    assert address.startswith("data:"), (tag, address)
        style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
        assert "prefers-color-scheme" in style
        assert "url(" not in style
        assert "@import" not in style


def test_policy_names_the_hashes_of_what_stands_in_the_page(page, classes):
    def hashed(text: str) -> str:
        return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"

    for text, scripts in ((page, 0), (classes, 1)):
        (policy,) = [a["content"] for t, a in Elements(text).found if t == "meta" and "http-equiv" in a]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == "'none'"
        assert "unsafe" not in policy
        assert rules["style-src"] == hashed(*re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
        inline = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
        assert len(inline) == scripts
        assert [hashed(script) for script in inline] == ([rules["script-src"]] if scripts else [])
        assert not [attributes for _, attributes in Elements(text).found if "style" in attributes]


def test_page_escapes_what_the_catalogue_says(page):
    assert "&lt;img src=http://example.org/x.png&gt;" in page
    assert "<script>" not in page
    assert "Abacus &lt;9000&gt;" in page


def test_page_of_classes_escapes_what_the_catalogue_says(classes, out):
    assert f"<bdi>{html.escape(LABEL)}</bdi>" in classes
    assert LABEL not in classes
    assert classes.count("<script") == 2  # the data and the script
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', classes)
    assert "<" not in data
    shown = [product["title"] for product in json.loads(data)["products"]]
    titles = set(open_catalogue(out / "catalogues" / "beauty").part("test")["title"])
    assert shown
    assert titles.issuperset(shown)


def test_page_of_classes_shows_what_the_predictions_say(classes, out):
    results = report.read_results(out)
    predictions = report.read_predictions(out, results)
    table = report.per_class(predictions, report.class_sizes([open_catalogue(out / "catalogues" / "beauty")]))
    rows = re.findall(r"<tr><th scope=\"row\"><bdi>(.*?)</bdi></th>(.*?)</tr>", classes, re.DOTALL)
    assert len(rows) == table["label"].nunique() > 5
    few = table[table["fraction"] == 0.05].set_index(["label", "method"])
    net = []
    for label, cells in rows:
        values = re.findall(r">([^<>]*)</td>", cells)
        ours = few.loc[html.unescape(label)]
        assert values[3] == f"{ours.loc['convirt', 'difference']:+.3f}"
        assert values[4:7] == [str(ours.loc["origin", c]) for c in ("test", "train", "part")]
        assert values[7:] == [f"{ours.loc[m, 'f1']:.3f}" for m in METHODS]
        assert int(values[0]) == int(values[1]) - int(values[2])
        net.append(int(values[0]))
    assert net == sorted(net, reverse=True)
    changed = report.gained_and_lost(predictions).query("fraction == 0.05 and method == 'convirt'")
    assert sum(net) == (changed["change"] == "gained").sum() - (changed["change"] == "lost").sum()


def test_every_page_leads_to_every_other(page, classes):
    for text, here in ((page, "index.html"), (classes, "classes-beauty.html")):
        links = [a for tag, a in Elements(text.split("</nav>")[0]).found if tag == "a"]
        assert {"index.html", "index.html#results", "classes-beauty.html"} <= {a["href"] for a in links}
        assert [a["href"] for a in links if "aria-current" in a] == [here]
        anchors = {a["href"].partition("#")[2] for a in links if a["href"].startswith("index.html#")}
        assert anchors <= {a.get("id") for _, a in Elements(page).found}


def test_headings_are_in_order(page, classes):
    for text in (page, classes):
        levels = [int(tag[1]) for tag, _ in Elements(text).found if re.fullmatch("h[1-6]", tag)]
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_what_the_exploring_notebook_left_is_shown_where_it_is(config, page, out, tmp_path):
    assert "The space of embeddings" not in page
    run = shutil.copytree(out, tmp_path / "run")
    keys = {"dataset": "beauty", "method": ["origin", "convirt", "convirt"], "seed": [0, 0, 1], "n": 9}
    measures = pd.DataFrame(keys | {"measure": "uniformity", "part": "all", "value": [-1.0, -2.0, -3.0]})
    recall = pd.DataFrame(keys | {"direction": "title to <picture>", "k": 5, "recall": [0.1, 0.4, 0.6], "chance": 0.05})
    maps = pd.DataFrame({"view": ["a", "b"] * 2, "position": [0, 0, 1, 1], "label": "None", "x": 0.0, "y": range(4)})
    neighbours = pd.DataFrame({"query": 0, "view": "a", "rank": [0, 1], "label": "None"})
    left = {
        "beauty_maps.png": ("maps", maps),
        "beauty_neighbours.png": ("neighbour_pictures", neighbours),
    }
    for name, frame in (("measures", measures), ("recall", recall)):
        frame.to_csv(run / "figures" / f"beauty_{name}.csv", index=False)
    for name, (_, frame) in left.items():
        path = run / "figures" / name
        shutil.copy((out / "figures" / "figure5").with_suffix(path.suffix), path)
        frame.to_csv(path.with_suffix(".csv"), index=False)
    (run / "report" / "map-beauty.html").write_text("a map")
    text = report.build(load_config(config), run).read_text(encoding="utf-8")
    assert len([tag for tag, _ in Elements(text).found if tag == "img"]) == 6 + 4
    drawn = {name: pd.read_csv(run / "figures" / f"{name}.csv") for name in ("measures", "recall")}
    assert drawn["measures"]["value"].tolist() == [-1.0, -2.5]
    half = 12.7062 * math.sqrt(0.5) / math.sqrt(2)  # Student's t with one degree of freedom, at 97.5%
    assert drawn["measures"]["high"].tolist() == pytest.approx([np.nan, -2.5 + half], nan_ok=True, rel=1e-4)
    for kind, frame in [*left.values(), *drawn.items()]:
        assert f"<figcaption>{escape(figures.caption(kind, frame))}</figcaption>" in text
    assert re.findall("<dt>(.*?)</dt>", text) == ["uniformity"]
    links = [a for tag, a in Elements(text).found if tag == "a" and a["href"] == "map-beauty.html"]
    assert len(links) == 3  # in the menu, round the picture, and below it
    (run / "figures" / "beauty_maps.csv").unlink()
    with pytest.raises(runs.RunError, match=r"beauty_maps\.csv"):
        report.build(load_config(config), run)


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
    links = [a["href"] for tag, a in Elements(page).found if tag == "a" and a["href"].startswith("../")]
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


# --- classes


def predicted(label: str, **methods: list[str]) -> pd.DataFrame:
    """Predictions of one dataset and fraction: labels are letters, a text of them is one seed."""
    rows = [
        {
            "dataset": "toy",
            "method": method,
            "fraction": 1.0,
            "seed": seed,
            "id": f"i{k}",
            "label": true,
            "predicted": p,
        }
        for method, seeds in methods.items()
        for seed, text in enumerate(seeds)
        for k, (true, p) in enumerate(zip(label, text, strict=True))
    ]
    return pd.DataFrame(rows)


TOY = predicted("AABC", origin=["ABBA"] * 3, convirt=["AABZ", "AABZ", "ABBA"])
SIZES = pd.DataFrame({"dataset": "toy", "label": [*"ABC"], "rank": [1, 2, 3], "count": [9, 3, 0]})
SIZES["part"] = ["head", "tail", "tail"]


def test_per_class_by_hand():
    table = report.per_class(TOY, SIZES)
    assert list(table["label"]) == [*"ABC"] * 2  # Z has no true instance
    theirs, ours = (table[table["method"] == m].set_index("label") for m in ("origin", "convirt"))
    assert ours["part"].tolist() == ["head", "tail", "tail"]
    assert ours["train"].tolist() == [9, 3, 0]
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


def test_mean_over_classes_is_macro_f1():
    table = report.per_class(TOY, SIZES)
    for method, group in table.groupby("method"):
        seeds = TOY[TOY["method"] == method].groupby("seed")
        macro = np.mean([metrics.macro_f1(rows["label"], rows["predicted"]) for _, rows in seeds])
        assert group["f1"].mean() == pytest.approx(macro)


def test_per_class_wants_the_baseline_of_each_seed():
    with pytest.raises(ValueError, match=r"baseline 'origin'.*\['toy', 2\]"):
        report.per_class(TOY[(TOY["method"] != "origin") | (TOY["seed"] < 2)], SIZES)


def test_gained_and_lost_by_hand():
    # i0 and i1: as they were; i2: gained in all seeds; i3: gained in two of three, and origin says C twice and D once;
    # i4: lost in two; i5: wrong by both; i6: right by convirt in one of three only
    found = report.gained_and_lost(
        predicted(
            "AABBABA",
            origin=["AACCACB", "AACCACB", "AACDACB"],
            convirt=["AABBDCA", "AABBDCB", "AABCADB"],
        )
    )
    assert list(found["id"]) == ["i2", "i3", "i4"]
    assert list(found["label"]) == ["B", "B", "A"]
    assert list(found["change"]) == ["gained", "gained", "lost"]
    assert list(found["instead"]) == ["C", "C", "D"]
    assert found["margin"].tolist() == pytest.approx([1, 2 / 3, -2 / 3])
    assert set(found["method"]) == {"convirt"}


def test_half_of_the_seeds_is_not_most():
    found = report.gained_and_lost(predicted("AB", origin=["BA", "BB"], convirt=["AB", "BB"]))
    assert found.empty


def test_instead_takes_the_first_by_name_of_equals():
    found = report.gained_and_lost(predicted("A", origin=["D", "C"], convirt=["A", "A"]))
    assert found["instead"].tolist() == ["C"]


def test_mistaken_by_hand():
    found = report.mistaken(predicted("AAAAB", origin=["ABBCA", "ABDEB"]))
    of = {label: list(rows.itertuples(index=False)) for label, rows in found.groupby("label")[["predicted", "share"]]}
    assert of == {"A": [("B", 3 / 8), ("C", 1 / 8)], "B": [("A", 1 / 2)]}  # of A: 3 times B, once C, D and E


def test_caption_of_classes_by_hand():
    predictions = predicted("AAABB", origin=["CCABB"] * 2, convirt=["AAAAB"] * 2)
    sizes = SIZES.assign(part=["head", "tail", "tail"])
    table, changed = report.per_class(predictions, sizes), report.gained_and_lost(predictions)
    # A: F1 from 1/2 to 6/7; B: from 1 to 2/3
    assert report.classes_caption(table[table["method"] == "convirt"], changed) == [
        "At 100% of Train, F1 of ConVIRT is above that of BERT (origin) in 1 of 2 classes (1 in every seed) and below "
        "in 1 (1 in every seed); mean difference +0.357 in the head and -0.333 in the tail. Of 5 products in Test 2 "
        "are gained and 1 lost.",
        "Most gained: A (2 gained, 0 lost of 3; BERT (origin) called 2 of the gained “C”).",
        "Most lost: B (0 gained, 1 lost of 2).",
    ]


def test_nothing_gained_nothing_lost():
    predictions = predicted("AB", origin=["AB", "BA"], convirt=["AB", "BA"])
    table, changed = report.per_class(predictions, SIZES), report.gained_and_lost(predictions)
    assert changed.empty
    (said,) = report.classes_caption(table[table["method"] == "convirt"], changed)
    assert said.endswith("Of 2 products in Test 0 are gained and 0 lost.")


def test_examples_are_few_and_every_class_keeps_its_first():
    changed = pd.DataFrame({"id": [f"i{k}" for k in range(10)], "label": ["A"] * 7 + ["B"] * 3})
    changed = changed.assign(dataset="toy", fraction=1.0, method="convirt", change="gained", instead="C", margin=1.0)
    changed.loc[6, "margin"] = -1.0
    changed.loc[:5, "margin"] = 0.5
    shown = report._examples(changed, each=3, most=4)
    assert sorted(shown["id"]) == ["i0", "i6", "i7", "i8"]  # by margin, then by name; the first of each class first
    assert list(shown["id"])[:2] == ["i6", "i7"]


def test_thumbnails_are_the_products_pictures(toy):
    products = toy.products.iloc[:3]
    found = report._thumbnails(toy, np.array([*products["image_row"], -1]))
    assert found[-1] is None
    for picture, row in zip(found, products["image_row"], strict=False):
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(picture))).convert("RGB"))
        assert pixels.shape == (report.SIDE, report.SIDE, 3)
        mean = toy.images[[row]][0].mean(axis=(0, 1))
        np.testing.assert_allclose(pixels.mean(axis=(0, 1)), mean, atol=6)
