"""A study file is read strictly: what it says is what runs."""

from pathlib import Path

import pytest
import yaml

from icssl_lib.config import FRACTIONS, ConfigError, load_config
from icssl_lib.methods import METHODS
from icssl_lib.runs import check_methods, digest

GOOD = {
    "study": "mine",
    "datasets": {"shop": {"source": "table", "table": "shop.csv"}},
    "text": {"model": "bert-base-uncased"},
    "vision": {"model": "vit_base_patch16_224"},
}


def write(folder: Path, **changes) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(GOOD | changes))
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": [1]}, r"seed: unknown key; did you mean 'seeds'"),
        ({"adapt": {"epoch": 3}}, r"adapt\.epoch: unknown key; did you mean 'epochs'"),
        ({"datasets": {"a": {"source": "table", "tabel": "x"}}}, r"tabel: unknown key; did you mean 'table'"),
        ({"datasets": {"a": {"source": "synthetic", "genre": "toys"}}}, r"'automotive', 'beauty' or 'electronics'"),
        ({"datasets": {"../a": {"source": "table", "table": "x"}}}, r"should match pattern"),
        ({"datasets": {"2014": {"source": "table", "table": "x"}}}, r"2014\.\[key\]: .*read it back as a number"),
        ({"study": "nan"}, r"study: .*read it back as a number"),
        ({"variants": {"NA": {"of": "convirt"}}}, r"NA\.\[key\]: .*or nothing"),
        ({"variants": {"a": {"of": "convirt", "adpat": {}}}}, r"variants\.a\.adpat: unknown key; did you mean 'adapt'"),
        ({"variants": {"a": {"of": "convirt", "finetune": {"fractions": [0.02]}}}}, r"fractions: \[0\.02\] are none"),
        ({"adapt": {"alpha": 1.5}}, r"adapt\.alpha: .*less than or equal to 1"),
        ({"adapt": {"batch_size": 1}}, r"batch_size: .*greater than or equal to 2"),
        ({"finetune": {"fractions": [0]}}, r"fractions\.0: .*greater than 0"),
        ({"seeds": [1, 1]}, r"`seeds` holds a value twice"),
        ({"text": {}}, r"needs a `pretrain:` section"),
        ({"finetune": {"head": "mean"}}, r"keep_classifiers"),
    ],
)
def test_mistakes_are_refused_with_what_and_where(tmp_path, changes, message):
    path = write(tmp_path, **changes)
    with pytest.raises(ConfigError, match=message) as error:
        load_config(path)
    assert str(path) in str(error.value)


def test_a_file_that_is_no_study_is_refused(tmp_path):
    write(tmp_path)
    with pytest.raises(ConfigError, match=r"no such configuration file; did you mean 'study\.yaml'"):
        load_config(tmp_path / "studi.yaml")
    for text in ("[1, 2]", "a: [", ""):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(ConfigError, match=r"bad\.yaml"):
            load_config(tmp_path / "bad.yaml")


def test_relative_paths_start_at_the_file(tmp_path):
    (tmp_path / "bert").mkdir()
    study = load_config(
        write(tmp_path, text={"model": "bert"}, vision={"model": "x", "checkpoint": "../v.safetensors"})
    )
    assert study.datasets["shop"].table == tmp_path / "shop.csv"
    assert study.text.model == str(tmp_path / "bert")
    assert study.vision.checkpoint == tmp_path.parent / "v.safetensors"
    assert load_config(write(tmp_path)).text.model == "bert-base-uncased"


def test_relative_paths_of_a_variant_start_at_the_file_too(tmp_path):
    (tmp_path / "bert").mkdir()
    hub, here = {"of": "convirt", "text": {"model": "bert-base-uncased"}}, {"of": "convirt", "text": {"model": "bert"}}
    here["vision"] = {"model": "x", "checkpoint": "v.safetensors"}
    study = load_config(write(tmp_path, variants={"hub": hub, "here": here}))
    assert study.of("hub").text.model == "bert-base-uncased"
    assert study.of("here").text.model == str(tmp_path / "bert")
    assert study.of("here").vision.checkpoint == tmp_path / "v.safetensors"


def test_defaults_are_the_paper_s(tmp_path):
    study = load_config(write(tmp_path))
    a, f = study.adapt, study.finetune
    assert (a.lr, a.weight_decay, a.temperature, a.alpha, a.epochs, a.batch_size) == (1e-5, 1e-8, 0.1, 0.75, 50, 32)
    assert (f.lr, f.weight_decay, f.epochs, f.batch_size) == (5e-5, 1e-8, 30, 32)
    assert tuple(f.fractions) == FRACTIONS
    assert a.projection_dim == 768
    assert not a.positive_in_denominator
    assert set(study.methods) == {"origin", "simcse", "convirt", "convirt_shuffled"} <= set(METHODS)


def test_methods_are_checked_against_the_registry(tmp_path):
    with pytest.raises(ConfigError, match="no method 'convert'; did you mean 'convirt'"):
        check_methods(load_config(write(tmp_path, methods=["origin", "convert"])))
    with pytest.raises(ConfigError, match="'origin' is missing"):
        check_methods(load_config(write(tmp_path, methods=["simcse"])))


def test_every_shipped_configuration_loads(root):
    files = sorted((root / "config").glob("*.yaml"))
    assert files
    for path in files:
        check_methods(load_config(path))


def test_a_digest_follows_its_own_part_of_the_configuration(tmp_path):
    one, two = load_config(write(tmp_path)), load_config(write(tmp_path, finetune={"epochs": 3}))
    assert digest(one.adapt) == digest(two.adapt)
    assert digest(one.finetune) != digest(two.finetune)
