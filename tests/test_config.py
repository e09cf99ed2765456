"""A study file is read strictly: what it says is what runs."""

from pathlib import Path

import pytest
import yaml

from icssl_lib.config import FRACTIONS, ConfigError, Run, load_config
from icssl_lib.dag import check_methods
from icssl_lib.methods import METHODS
from icssl_lib.runs import digest

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
        ({"seed": [1]}, r"file: unknown key 'seed'; did you mean 'seeds'"),
        ({"pretrain": {"zzz": 3}}, r"pretrain: unknown key 'zzz'; known: heads, "),
        ({"adapt": {"epoch": 3}}, r"adapt: unknown key 'epoch'; did you mean 'epochs'"),
        ({"datasets": {"a": {"source": "table", "tabel": "x"}}}, r"unknown key 'tabel'; did you mean 'table'"),
        ({"datasets": {"a": {"source": "synthetic", "genre": "toys"}}}, r"'automotive', 'beauty' or 'electronics'"),
        ({"datasets": {"../a": {"source": "table", "table": "x"}}}, r"should match pattern"),
        ({"datasets": {"2014": {"source": "table", "table": "x"}}}, r"2014\.\[key\]: .*should match pattern"),
        ({"study": "nan"}, r"study: .*read as a number"),
        ({"variants": {"NA": {"of": "convirt"}}}, r"NA\.\[key\]: .*or missing"),
        ({"variants": {"a": {"of": "convirt", "adpat": {}}}}, r"variants\.a: unknown key 'adpat'; did you mean 'adapt"),
        ({"variants": {"a": {"of": "convirt", "finetune": {"fractions": [0.02]}}}}, r"fractions: \[0\.02\] are not"),
        ({"adapt": {"alpha": 1.5}}, r"adapt\.alpha: .*less than or equal to 1"),
        ({"adapt": {"batch_size": 1}}, r"batch_size: .*greater than or equal to 2"),
        ({"finetune": {"fractions": [0]}}, r"fractions\.0: .*greater than 0"),
        ({"seeds": [1, 1]}, r"`seeds` holds a value twice"),
        ({"seeds": [2**32]}, r"seeds\.0: .*less than 4294967296"),
        ({"finetune": {"fractions": [0.5, 0.5]}}, r"`finetune\.fractions` holds a value twice"),
        ({"finetune": {"fractions": [0.1, 0.1 + 1e-10]}}, r"as a percentage` holds a value twice: \['010', '010'\]"),
        ({"seeds": [7] * 90_000}, r"^.{,500}$"),
        ({"seeds": ["a"] * 90_000}, r"^.{,1500}$"),
        (
            {"datasets": {"a": {"source": "table", "table": "x", "labels": {"table": "y", "id": "i", "label": "l"}}}},
            r"datasets\.a: `labels` are found by `id`; name the table's column",
        ),
        ({"datasets": {"all": {"source": "table", "table": "x"}}}, r"'all' stands for all of them"),
        ({"datasets": {"a": {"source": "table", "table": "~nobody_here/x.csv"}}}, r"a\.table: .*no such user"),
        ({"datasets": {"a": {"source": "table", "table": "a{b}/x.csv"}}}, r"a\.table: .*a brace"),
        ({"text": {}}, r"needs a `pretrain:` section"),
        ({"text": {"model": "a" * 300}}, r"File name too long"),
        ({"datasets": {"a": {"source": "table", "table": "a\0.csv"}}}, r"embedded null byte"),
        ({"study": "a" * 101}, r"study: .*should match pattern"),
        ({"adapt": {"lr": float("inf")}}, r"adapt\.lr: .*a finite number"),
        ({"adapt": {"epochs": True}}, r"adapt: epochs: True is neither number nor text"),
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


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("study: a\nstudy: b\n", r"'study' is given twice.*line 1"),
        ("adapt:\n  lr: 1\n  lr: 2\n", r"'lr' is given twice.*line 2"),
        ("study: 2024-02-30\n", r"no such value \(day is out of range.*line 1"),
        ("study: !!bool x\n", r"no such value.*line 1"),
        ("study: !!int x\n", r"no such value.*line 1"),
        ("study: " + "[" * 5000, r"not YAML: .*recursion"),
        ("a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [{f'*a{i}, ' * 9}]\n" for i in range(9)), "and 30 aliases"),
        ("#" * 200_001, "at most 200,000 characters"),
    ],
)
def test_yaml_that_makes_no_sense_is_refused_with_its_line(tmp_path, text, message):
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"(?s)bad\.yaml: .*" + message):
        load_config(tmp_path / "bad.yaml")


def test_a_key_may_stand_again_where_a_mapping_is_merged(tmp_path):
    text = "a: &a {x: 1, y: 2}\nb: {inner: &b {<<: *a, x: 3}}\nc: {<<: *b, y: 4}\n"
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(ConfigError, match="unknown key 'a'"):  # read, and no study
        load_config(tmp_path / "study.yaml")


def test_a_text_model_beside_a_folder_of_models_is_no_hub_name(tmp_path):
    (tmp_path / "models" / "bert").mkdir(parents=True)
    for model, found in (("models/bret", tmp_path / "models" / "bret"), ("elsewhere/bert", "elsewhere/bert")):
        study = load_config(write(tmp_path, text={"model": model}, vision={"model": "x"}))
        assert study.text.model == str(found)


def test_relative_paths_start_at_the_file(tmp_path):
    (tmp_path / "bert").mkdir()
    here = {"text": {"model": "bert"}, "vision": {"model": "x", "checkpoint": "../v.safetensors"}}
    hub = {"of": "convirt", "text": {"model": "bert-base-uncased"}}
    study = load_config(write(tmp_path, **here, variants={"here": {"of": "convirt"} | here, "hub": hub}))
    assert study.datasets["shop"].table == tmp_path / "shop.csv"
    assert study.variants["here"].settings.keys() == {"text", "vision"}
    for own in (study, study.of("here")):
        assert own.text.model == str(tmp_path / "bert")
        assert own.vision.checkpoint == tmp_path.parent / "v.safetensors"
    assert study.of("hub").text.model == "bert-base-uncased"


def test_how_a_study_is_run_is_no_part_of_what_it_is(tmp_path):
    runtime = {"job_per": "seed", "checkpoint_minutes": 1}
    fast, plain = (load_config(write(tmp_path, runtime=section)) for section in (runtime, {}))
    assert (fast.runtime.job_per, plain.runtime.job_per) == ("seed", "method")
    assert fast.model_dump() == plain.model_dump()


def test_a_run_is_a_name_and_a_key():
    assert str(Run("beauty", "convirt", 0)) == "beauty convirt seed 0"
    assert len({Run("beauty", "convirt", 0), Run("beauty", "convirt", 0), Run("beauty", "convirt", 1)}) == 2


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
    with pytest.raises(ConfigError, match="'mlm_simcse' starts from the encoder of 'mlm'; add 'mlm'"):
        check_methods(load_config(write(tmp_path, methods=["origin", "mlm_simcse"])))
    check_methods(load_config(write(tmp_path, methods=["origin", "mlm_simcse", "mlm"])))
    other = {"methods": ["origin"], "variants": {"other": {"of": "mlm_simcse", "text": {"model": "bert-base-uncased"}}}}
    with pytest.raises(ConfigError, match=r"other\.text\.model: 'mlm_simcse' starts from 'mlm'; vary that method"):
        check_methods(load_config(write(tmp_path, **other)))


def test_every_shipped_configuration_loads(root):
    files = sorted((root / "config").glob("*.yaml"))
    assert files
    for path in files:
        check_methods(load_config(path))


def test_a_digest_follows_its_own_part_of_the_configuration(tmp_path):
    one, two = load_config(write(tmp_path)), load_config(write(tmp_path, finetune={"epochs": 3}))
    assert digest(one.adapt) == digest(two.adapt)
    assert digest(one.finetune) != digest(two.finetune)
