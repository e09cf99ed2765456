"""The supervised stage on toys: the same labels for every method, Test read once, folders that anyone can load."""

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
import toys

from icssl_lib import finetune as stage
from icssl_lib.catalogue import train_subset
from icssl_lib.finetune import classify, classify_fractions
from icssl_lib.runs import piece

METHODS = ["origin", "simcse", "convirt", "convirt_shuffled", "tfidf"]


@pytest.fixture
def study(tiny_text, tiny_vision):
    return toys.study(tiny_text, tiny_vision)


@pytest.fixture(scope="module")
def out(tiny_text, tmp_path_factory):
    """A run folder whose adapted encoders are all the tiny one, renamed."""
    out = tmp_path_factory.mktemp("run")
    for method in METHODS[1:4]:
        folder = piece(out, "encoders", "toy", method, 0)
        folder.parent.mkdir(parents=True)
        folder.symlink_to(tiny_text)
    return out


def relabelled(catalogue, part, labels):
    products = catalogue.products.copy()
    products.loc[products.part == part, "label"] = labels
    return dataclasses.replace(catalogue, products=products)


@pytest.fixture
def reads(monkeypatch):
    """The titles of each call of `predict`, in order."""
    calls = []

    def spy(model, tokenizer, titles, *rest, original=stage.predict, **options):
        calls.append(titles)
        return original(model, tokenizer, titles, *rest, **options)

    monkeypatch.setattr(stage, "predict", spy)
    return calls


# --- what it trains on and reads


def test_every_method_gets_the_same_products(toy, study, out, monkeypatch):
    drawn = {}

    def spy(train, fraction, seed):
        subset = train_subset(train, fraction, seed)
        drawn.setdefault(method, []).append(list(subset.id))
        return subset

    monkeypatch.setattr(stage, "train_subset", spy)
    for method in METHODS:
        scores, _ = classify_fractions(method, toy, study, 0, out, progress=False)
        assert list(scores.n_train) == [6, 30]
    few, all_of_it = drawn["origin"]
    assert all_of_it[: len(few)] == few
    assert set(all_of_it) == set(toy.part("train").id)
    assert all(lists == drawn["origin"] for lists in drawn.values())


def test_tables_hold_what_the_records_need(toy, study, out):
    scores, predictions = classify_fractions("origin", toy, study, 0, out, progress=False)
    keys = ["dataset", "method", "fraction", "seed"]
    metrics = ["accuracy", "macro_f1", "head_macro_f1", "tail_macro_f1"]
    assert list(scores.columns) == [*keys, "n_train", *metrics, "dev_accuracy", "test_readings", "seconds"]
    assert list(predictions.columns) == [*keys, "id", "label", "predicted", "confidence"]
    test = toy.part("test")
    for _, rows in predictions.groupby("fraction"):
        assert list(rows.id) == list(test.id)
        assert list(rows.label) == list(test.label)
    assert predictions.confidence.between(1 / len(toy.labels) - 1e-6, 1).all()


@pytest.mark.parametrize("selection", ["last", "best_dev"])
def test_test_is_read_once_and_last(selection, toy, tiny_text, tiny_vision, out, reads):
    study = toys.study(tiny_text, tiny_vision, finetune={"selection": selection, "fractions": [1.0]})
    classify_fractions("origin", toy, study, 0, out, progress=False)
    test, dev = list(toy.part("test").title), list(toy.part("dev").title)
    assert not set(test) & set(dev)
    assert reads[-1] == test
    assert all(titles == dev for titles in reads[:-1])
    assert len(reads) == (2 if selection == "last" else 4)  # Dev after each epoch too


@pytest.mark.parametrize("selection", ["last", "best_dev"])
def test_labels_of_test_change_nothing(selection, toy, tiny_text, tiny_vision, out):
    study = toys.study(tiny_text, tiny_vision, finetune={"selection": selection})
    expected = classify("origin", str(tiny_text), toy, study, 1.0, 0).predictions
    wrong = classify("origin", str(tiny_text), relabelled(toy, "test", "mug"), study, 1.0, 0).predictions
    pd.testing.assert_frame_equal(wrong.drop(columns="label"), expected.drop(columns="label"))


def test_best_dev_keeps_the_earliest_best_epoch(toy, tiny_text, tiny_vision, monkeypatch):
    study = toys.study(tiny_text, tiny_vision, finetune={"selection": "best_dev", "epochs": 4})
    states = []  # at each reading: of Dev after four epochs, then of Dev and of Test
    accuracy = iter([0.2, 0.7, 0.7, 0.1, 0.7])

    def predict(model, *rest, original=stage.predict):
        states.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return original(model, *rest)

    monkeypatch.setattr(stage, "_accuracy", lambda *_: next(accuracy))
    monkeypatch.setattr(stage, "predict", predict)
    read = classify("origin", str(tiny_text), toy, study, 1.0, 0)
    assert len(states) == 6
    assert all(torch.equal(final, states[1]) for final in states[4:])
    assert not any(torch.equal(states[5], states[i]) for i in (0, 2, 3))
    assert read.dev_accuracy == 0.7


def test_a_seed_gives_the_same_predictions(toy, study, tiny_text):
    one, same, other = (classify("origin", str(tiny_text), toy, study, 1.0, seed).predictions for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, same)
    assert not one.confidence.equals(other.confidence)


def test_it_learns(toy, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision, finetune={"epochs": 40, "lr": 3e-3})
    read = classify("origin", str(tiny_text), toy, study, 1.0, 0).predictions
    named = toy.part("test").title.str.contains("|".join(toys.COLOURS)).to_numpy()  # the others cannot be known
    assert named.sum() >= 5
    assert (read.label == read.predicted)[named].mean() >= 0.8


# --- heads and baselines


def test_mean_head_is_another_classifier_that_works(toy, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision, finetune={"head": "mean"})
    read = classify("origin", str(tiny_text), toy, study, 1.0, 0)
    assert set(read.predictions.predicted) <= set(toy.labels)
    usual = classify("origin", str(tiny_text), toy, toys.study(tiny_text, tiny_vision), 1.0, 0)
    assert not read.predictions.confidence.equals(usual.predictions.confidence)


def test_tfidf_needs_no_encoder_and_survives_a_single_class(toy, study, tmp_path):
    read = classify("tfidf", "unused", toy, study, 1.0, 0)
    named = toy.part("test").title.str.contains("|".join(toys.COLOURS)).to_numpy()
    assert (read.predictions.label == read.predictions.predicted)[named].mean() >= 0.8
    one = classify("tfidf", "unused", relabelled(toy, "train", "mug"), study, 1.0, 0).predictions
    assert set(one.predicted) == {"mug"}
    assert (one.confidence == 1).all()


def test_labels_absent_from_train_count_in_the_tail(toy, study, out, monkeypatch):
    """Test: 6 mugs (head), 4 lamps (tail), 5 chairs that Train never saw; by hand, all predicted mug but two lamps."""
    n = len(toy.part("train"))
    catalogue = relabelled(toy, "train", ["mug"] * (n - 3) + ["lamp"] * 3)
    catalogue = relabelled(catalogue, "test", ["mug"] * 6 + ["lamp"] * 4 + ["chair"] * 5)
    predicted = np.array([[0, 1]] * 6 + [[1, 0]] * 2 + [[0, 1]] * 7, dtype=float)  # labels: lamp, mug
    calls = iter([predicted[: len(toy.part("dev"))], predicted] * 2)
    monkeypatch.setattr(stage, "predict", lambda *_: next(calls))
    scores, predictions = classify_fractions("origin", catalogue, study, 0, out, progress=False)
    assert catalogue.labels == ["lamp", "mug"]
    assert set(predictions.predicted) == {"lamp", "mug"}
    mug, lamp, chair = 2 * 6 / (6 + 13), 2 * 2 / (4 + 2), 0.0
    assert list(scores.accuracy) == pytest.approx([8 / 15] * 2)
    assert list(scores.macro_f1) == pytest.approx([(mug + lamp + chair) / 3] * 2)
    assert list(scores.head_macro_f1) == pytest.approx([mug] * 2)
    assert list(scores.tail_macro_f1) == pytest.approx([(lamp + chair) / 2] * 2)


def test_a_loss_that_is_not_finite_stops(toy, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision, finetune={"lr": 1e30})
    with pytest.raises(FloatingPointError, match=r"lower finetune\.lr"):
        classify("origin", str(tiny_text), toy, study, 1.0, 0)


# --- what it keeps

FRESH = """
import json, sys
sys.modules["icssl_lib"] = None  # importing it raises ImportError
from transformers import pipeline
folder, titles = json.load(sys.stdin)
classify = pipeline("text-classification", model=folder, device="cpu")
json.dump([classify(titles, truncation=True), classify.model.config.id2label], sys.stdout)
"""


def test_kept_classifier_predicts_the_same_in_a_process_without_this_library(toy, tiny_text, tiny_vision, out):
    products = toy.products.copy()
    last = products.index[products.part == "test"][-1]
    products.loc[last, "title"] = "alma mug " * 20  # longer than max_tokens
    catalogue = dataclasses.replace(toy, products=products)
    study = toys.study(tiny_text, tiny_vision, finetune={"keep_classifiers": [1.0]})
    _, predictions = classify_fractions("origin", catalogue, study, 0, out, progress=False)
    folder = piece(out, "classifiers", "toy", "origin", 0)
    assert [path.name for path in folder.iterdir()] == ["f100"]
    expected = predictions[predictions.fraction == 1.0]
    request = json.dumps([str(folder / "f100"), list(catalogue.part("test").title)])
    command = [sys.executable, "-I", "-c", FRESH]
    done = subprocess.run(command, input=request, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    answers, names = json.loads(done.stdout)
    assert list(names.values()) == catalogue.labels
    assert [answer["label"] for answer in answers] == list(expected.predicted)
    assert [answer["score"] for answer in answers] == pytest.approx(list(expected.confidence), abs=1e-4)
