"""Notebooks 02 and 03 take ten steps before they train: by every kind of method, or they say why not."""

import json
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import toys

from icssl_lib.adapt import adapt
from icssl_lib.catalogue import open_catalogue, save
from icssl_lib.config import Run, load_config
from icssl_lib.runs import path_of
from icssl_lib.sources.raw import Report

VARIANTS = {
    "frozen": {"of": "convirt", "vision": {"frozen": True}},
    "on_words": {"of": "origin", "finetune": {"features": ["words"]}},
}
ADAPTING = ["simcse", "convirt", "convirt_sigmoid", "mlm", "mlm_simcse"]
CLASSIFYING = ["origin", "recommended", "labelled"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_text, tiny_vision):
    """A run folder of toys, with encoders to go on from, and a configuration for one process and for two."""
    out = tmp_path_factory.mktemp("steps")
    products = toys.catalogue(out / "catalogues" / "toy").products
    save("toy", products, Report().frame(), out / "catalogues" / "toy")
    for method in ("mlm", "convirt"):
        shutil.copytree(tiny_text, path_of(out, "encoders", Run("toy", method, 0)))
    for processes in (1, 2):
        study = toys.study(tiny_text, tiny_vision, runtime={"processes": processes})
        methods = [*ADAPTING, *CLASSIFYING, *VARIANTS]
        settings = study.model_dump(mode="json") | {"methods": methods, "variants": VARIANTS}
        (out / f"{processes}.yaml").write_text(json.dumps(settings))
    return out


def steps(root, folder, name, method, processes=1):
    """The losses that a notebook draws; its cells run in this process, up to the one that trains all seeds."""
    space = {}
    for cell in json.loads((root / "notebooks" / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"]) if cell["cell_type"] == "code" else ""
        if "_seeds(" in source:
            break
        exec(source, space)
        if "parameters" in cell["metadata"].get("tags", []):
            space |= {"config": folder / f"{processes}.yaml", "out": folder, "dataset": "toy", "method": method}
    assert len(plt.get_fignums()) == bool(space["ten"])
    plt.close("all")
    return space["ten"]


@pytest.mark.parametrize("method", [*ADAPTING, "frozen"])
def test_ten_steps_of_adaptation(root, folder, method):
    ten = steps(root, folder, "02_adapt", method)
    assert len(ten) == 10
    assert np.isfinite(ten).all()
    assert len(set(ten)) > 1


@pytest.mark.parametrize("method", ["origin", "convirt"])
def test_ten_steps_of_fine_tuning(root, folder, method):
    ten = steps(root, folder, "03_finetune", method)
    assert len(ten) == 10
    assert np.mean(ten[-3:]) < np.mean(ten[:3])


def test_where_nothing_is_trained_a_sentence_says_so(root, folder, capsys):
    for name, method, processes in (
        ("03_finetune", "labelled", 1), ("03_finetune", "recommended", 1), ("03_finetune", "on_words", 1),
        ("03_finetune", "origin", 2), ("02_adapt", "simcse", 2),
    ):  # fmt: skip
        assert steps(root, folder, name, method, processes) == []
        assert "No step is shown: " in capsys.readouterr().out


def test_what_is_trained_afterwards_is_the_same(root, folder):
    toy, study = open_catalogue(folder / "catalogues" / "toy"), load_config(folder / "1.yaml")
    before = adapt(Run("toy", "convirt", 0), toy, study, progress=False).history
    steps(root, folder, "02_adapt", "convirt")
    after = adapt(Run("toy", "convirt", 0), toy, study, progress=False).history
    assert list(after.loss) == list(before.loss)
