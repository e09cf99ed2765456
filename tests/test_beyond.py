"""Notebooks 07 and 08 on made-up runs: what they write, and what they do without the methods they ask about."""

import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import report
import yaml
from made_up import run_folder

from icssl_lib import notebooks
from icssl_lib.config import load_config
from icssl_lib.dag import ROOT

RIGHT = {"origin": 0.4, "convirt": 0.6, "convirt_shuffled": 0.35, "tfidf": 0.4, "taught_picture": 0.8}
VARIANTS = {
    "cooler": {"of": "convirt", "adapt": {"temperature": 0.05}},
    "warmer": {"of": "convirt", "adapt": {"temperature": 1}},
    "plain": {"of": "convirt", "adapt": {"positive_in_denominator": True, "projection_depth": 1}},
    "origin_names": {"of": "origin", "finetune": {"label_names": True}},
}


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """600 products in six classes, as a CSV."""
    path = tmp_path_factory.mktemp("table") / "products.csv"
    label = np.repeat([f"class $ {k}" for k in range(6)], [300, 150, 80, 40, 20, 10])
    frame = pd.DataFrame({"id": [f"i{k:04d}" for k in range(600)], "label": label})
    frame.assign(title=frame["label"] + " " + frame["id"]).to_csv(path, index=False)
    return path


def made_up(folder, table, methods, variants=None, datasets=None):
    """A configuration and its run folder."""
    source = {"source": "table", "table": str(table), "id": "id", "image": None}
    datasets = {name: source | own for name, own in (datasets or {"beauty": {}}).items()}
    study = {"study": "made-up", "seeds": [0, 1, 2, 3], "datasets": datasets, "methods": list(methods)}
    study |= {"text": {"model": "somewhere"}, "vision": {"model": "vit_tiny_patch16_224"}, "variants": variants or {}}
    study |= {"finetune": {"fractions": [0.4, 1.0]}}
    folder.mkdir()
    (folder / "study.yaml").write_text(yaml.safe_dump(study, sort_keys=False))
    run_folder(load_config(folder / "study.yaml"), folder / "run", methods)
    return folder / "study.yaml", folder / "run"


@pytest.fixture(scope="module")
def full(tmp_path_factory, table):
    """A run with all that is asked about, and both notebooks executed as the DAG does."""
    methods = RIGHT | dict(zip(VARIANTS, (0.7, 0.2, 0.6, 0.5), strict=True))
    config, out = made_up(tmp_path_factory.mktemp("full") / "study", table, methods, VARIANTS)
    root = ROOT / "notebooks"
    for name in ("07_beyond", "08_ablations"):
        parameters = {"config": str(config), "out": str(out)}
        notebooks.execute(root / f"{name}.ipynb", out / "notebooks" / f"{name}.ipynb", parameters)
    return config, out


def here(name, config, out):
    """A notebook's cells in this process, without a kernel; its namespace."""
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
    space = {}
    for cell in (c for c in cells if c["cell_type"] == "code"):
        exec("".join(cell["source"]), space)
        if "parameters" in cell["metadata"].get("tags", []):
            space |= {"config": str(config), "out": str(out)}
    plt.close("all")
    return space


def test_beyond_compares_methods_and_leaves_variants_out(full):
    figures = full[1] / "figures"
    found = pd.read_csv(figures / "compare.csv")
    assert set(found["method"]) == set(RIGHT) - {"origin"}
    assert set(found["against"]) == {"origin", "convirt"}
    assert set(found["dataset"]) == {"beauty", "all"}
    assert not found.duplicated(["dataset", "method", "against", "metric", "fraction"]).any()
    assert found.query("metric == 'accuracy'")["p_holm"].between(0, 1).all()
    share = pd.read_csv(figures / "share_kept.csv")
    assert set(share["method"]) == {"convirt", "convirt_shuffled", "tfidf"}
    assert set(share["dual"]) == {"taught_picture"}
    kept = share.query("method == 'convirt' and dataset == 'all' and fraction == 1")["share"].item()
    assert 0.2 < kept < 0.8  # drawn half way
    factor = pd.read_csv(figures / "factor.csv")
    assert set(factor["method"]) == {"origin", "convirt"}
    worth = factor.dropna(subset="factor").set_index(["baseline", "method", "fraction"])["factor"]
    assert set(worth.index) == {(b, "convirt", f) for b in ("origin", "origin_names") for f in (0.4, 1.0)}
    assert worth["origin_names", "convirt", 0.4] < worth["origin", "convirt", 0.4]  # the baseline knows more
    gain = pd.read_csv(figures / "gain_by_size.csv")
    assert set(gain["dataset"]) == {"beauty", "all"}
    assert gain.query("dataset == 'beauty' and fraction == 1")["classes"].sum() == 6
    assert (gain["at_least"] <= gain["at_most"]).all()
    for name in ("factor", "gain_by_size"):
        assert all((figures / f"{name}.{kind}").is_file() for kind in ("png", "csv"))


def test_ablations_are_differences_from_the_method_that_is_varied(full):
    _, out = full
    found = pd.read_csv(out / "figures" / "ablations.csv", dtype={"value": str})
    rows = found.query("dataset == 'all' and metric == 'accuracy' and fraction == 1").set_index("value")
    assert list(rows.index) == ["0.05", "1.0", "True, 1", "True"]
    assert list(rows["reference"]) == ["0.1", "0.1", "False, 2", "False"]
    both = "adapt.positive_in_denominator + adapt.projection_depth"
    assert list(rows["setting"]) == ["adapt.temperature", "adapt.temperature", both, "finetune.label_names"]
    results = report.read_results(out).query("fraction == 1").groupby("method")["accuracy"].mean()
    assert rows.loc["1.0", "difference"] == pytest.approx(results["warmer"] - results["convirt"], abs=1e-5)
    assert (out / "figures" / "ablation_grid.png").is_file()


def test_the_notebooks_say_what_to_notice(full):
    for name in ("07_beyond", "08_ablations"):
        cells = json.loads((full[1] / "notebooks" / f"{name}.ipynb").read_text())["cells"]
        text = "".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        assert text.count("**Notice**") >= 2
        shown = [o for c in cells for o in c.get("outputs", [])]
        assert sum("image/png" in o.get("data", {}) for o in shown) == (2 if name == "07_beyond" else 1)
        printed = "".join("".join(o["text"]) for o in shown if o["output_type"] == "stream")
        assert not re.search(r"\bnan\b", printed)


@pytest.mark.parametrize("methods", [{"origin": 0.4}, {"origin": 0.4, "tfidf": 0.5}, {"origin": 0.4, "convirt": 0.6}])
def test_questions_whose_methods_are_missing_are_skipped(tmp_path, table, methods):
    config, out = made_up(tmp_path / "study", table, methods)
    space = here("07_beyond", config, out)
    assert space["chosen"] == list(methods)[1:]
    assert space["share"].empty
    assert len(space["table"]) == 2 * 2 * 2 * len(space["chosen"])
    assert (out / "figures" / "gain_by_size.csv").is_file()
    space = here("08_ablations", config, out)
    assert space["table"].empty
    assert list(pd.read_csv(out / "figures" / "ablations.csv"))[:2] == ["setting", "value"]


LAW = {"origin": 0.4, "convirt": 0.7, "convirt_shuffled": 0.4, "image": 0.5, "oracle": 0.9}
LADDER = {"names": "convirt_names", "taught": "taught", "picture": "taught_picture"}


def test_the_law_has_a_point_for_each_catalogue_and_masking_and_takes_those_of_other_studies(tmp_path, table):
    datasets = {"shop_000": {}, "shop_100": {"mask_class_words": 1.0}}
    variants = {f"ladder_{rung}": {"of": of, "finetune": {"fractions": [0.4]}} for rung, of in LADDER.items()}
    config, out = made_up(tmp_path / "study", table, LAW | dict.fromkeys(variants, 0.75), variants, datasets)
    for name in ("09_law", "09_law with the first's points beside"):
        parameters = {"config": str(config), "out": str(out)}
        parameters |= {"beside": [str(tmp_path / "law.csv")]} if "beside" in name else {}
        notebooks.execute(ROOT / "notebooks" / "09_law.ipynb", out / "notebooks" / f"{name}.ipynb", parameters)
        law = pd.read_csv(out / "figures" / "law.csv")
        law.to_csv(tmp_path / "law.csv", index=False)
    assert len(law) == 2 * 2 * 2  # data sets, ConVIRT and its control, studies
    results = report.read_results(out)
    oracle = results.query("method == 'oracle' and fraction == 1").groupby("dataset")["accuracy"].mean()
    for row in law.itertuples():
        assert row.title == pytest.approx(oracle[row.dataset], abs=1e-5)
        assert row.masked == {"shop_000": 0, "shop_100": 1}[row.dataset]
        assert row.low <= row.difference <= row.high
        assert row.factor_low <= row.factor <= row.factor_high
    gained = law.groupby("method")["difference"].mean()
    assert gained["convirt"] > gained["convirt_shuffled"] + 0.1
    ladder = pd.read_csv(out / "figures" / "ladder.csv")
    assert list(ladder.groupby("dataset", sort=False).size()) == [6, 6]
    assert all((out / "figures" / f"{name}.png").is_file() for name in ("law", "ladder"))
