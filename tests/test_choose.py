"""docs/choose.py replaces settings, and refuses those that do not exist."""

import importlib.util
from pathlib import Path

import pytest
from pydantic import ValidationError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def choose():
    spec = importlib.util.spec_from_file_location("choose", ROOT / "docs" / "choose.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_settings_replace_the_file_s(choose):
    study = choose.changed(ROOT / "config" / "smoke.yaml", "adapt.epochs=7 finetune.lr=1e-5 vision.frozen=true")
    assert (study.adapt.epochs, study.finetune.lr, study.vision.frozen) == (7, 1e-5, True)
    assert study.adapt.projection_dim == 32


def test_an_unknown_setting_is_refused(choose):
    with pytest.raises(ValidationError, match="epohcs"):
        choose.changed(ROOT / "config" / "smoke.yaml", "adapt.epohcs=7")


def test_dev_accuracy_of_an_adapted_encoder_which_is_adapted_once(
    choose, tmp_path, monkeypatch, toy, tiny_text, tiny_vision
):
    import toys

    monkeypatch.chdir(tmp_path)
    study = toys.study(tiny_text, tiny_vision)
    monkeypatch.setattr(choose, "changed", lambda path, settings: study)
    monkeypatch.setattr("icssl_lib.catalogue.open_catalogue", lambda folder: toy)
    rows = [choose.dev_accuracy(Path("x.yaml"), "", "toy", "convirt", 0, [1.0]) for _ in range(2)]
    assert rows[0] == rows[1]
    assert rows[0][0]["fraction"] == 1.0
    assert 0 <= rows[0][0]["dev_accuracy"] <= 1
    assert len(list((tmp_path / "runs").glob("*/choices/*/config.json"))) == 1
