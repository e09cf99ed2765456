"""benchmarks/choose.py replaces settings, refuses those that do not exist, and adapts an encoder once."""

import choose
import pandas as pd
import pytest
import toys
from pydantic import ValidationError

from icssl_lib.catalogue import ingest
from icssl_lib.config import Run


def test_settings_replace_the_file_s(root):
    study = choose.changed(root / "config/smoke.yaml", "adapt.epochs=7 finetune.lr=1e-5 vision.frozen=true")
    assert (study.adapt.epochs, study.finetune.lr, study.vision.frozen) == (7, 1e-5, True)
    assert study.adapt.projection_dim == 32
    with pytest.raises(ValidationError, match="epohcs"):
        choose.changed(root / "config/smoke.yaml", "adapt.epohcs=7")


def test_dev_accuracy_of_an_adapted_encoder_which_is_adapted_once(tmp_path, monkeypatch, tiny_text, tiny_vision):
    monkeypatch.chdir(tmp_path)
    study = toys.study(tiny_text, tiny_vision)
    source = study.datasets["toy"].model_copy(update={"products": 120, "classes": 4})
    ingest("toy", source, toys.SIZE, 0, tmp_path / "runs/toy/catalogues/toy", progress=False)
    rows, again = (choose.dev_accuracy(study, "", Run("toy", "convirt", 0), [1.0]) for _ in range(2))
    assert rows == again
    assert rows[0]["fraction"] == 1.0
    assert 0 <= rows[0]["dev_accuracy"] <= 1
    assert len(list((tmp_path / "runs").glob("*/choices/*/config.json"))) == 1


def test_an_encoder_that_starts_from_another_one_adapts_that_first(tmp_path, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision)
    source = study.datasets["toy"].model_copy(update={"products": 120, "classes": 4})
    ingest("toy", source, toys.SIZE, 0, tmp_path / "catalogues/toy", progress=False)
    after, before = (choose.adapted(study, Run("toy", method, 0), tmp_path) for method in ("mlm_simcse", "mlm"))
    assert {path.parent for path in tmp_path.glob("choices/*/config.json")} == {after, before}
    spaces = [pd.read_csv(path / "space.csv").set_index(["measure", "when"]).value for path in (before, after)]
    assert spaces[1]["title uniformity", "before"] == spaces[0]["title uniformity", "after"]
