"""TF-IDF with logistic regression against scikit-learn's own, on disk, and beside an encoder."""

import numpy as np
import pytest
import toys
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from icssl_lib.classify import classify
from icssl_lib.config import Run
from icssl_lib.deploy import TitleClassifier
from icssl_lib.finetune import Start
from icssl_lib.lexical import Lexical, geometric_mean

TITLES = ["alma red lamp", "alma mug", "bera lamp 7", "red mug mug", "bera rug", "soft rug 7", "a lamp", "the mug"]
LABELS = ["lamp", "mug", "lamp", "mug", "rug", "rug", "lamp", "mug"]


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_scikit_learns_own_and_a_label_that_was_not_shown_has_nothing(classes):
    shown = [i for i, label in enumerate(LABELS) if classes == 3 or label != "rug"]
    titles, label = [TITLES[i] for i in shown], [LABELS[i] for i in shown]
    plain = make_pipeline(TfidfVectorizer(token_pattern=r"\S+"), LogisticRegression(C=10, max_iter=2000))
    plain.fit(titles, label)
    found = Lexical.fit(titles, label, ["bowl", "rug", "mug", "lamp"])([*TITLES, "of no known word"])
    at = [["bowl", "rug", "mug", "lamp"].index(name) for name in plain.classes_]
    np.testing.assert_allclose(found[:, at], plain.predict_proba([*TITLES, "of no known word"]), atol=1e-12)
    assert (np.delete(found, at, axis=1) == 0).all()


def test_titles_of_one_label_make_it_the_answer_to_all():
    found = Lexical.fit(TITLES, ["mug"] * 8, ["lamp", "mug"])(["lamp", "mug"])
    np.testing.assert_array_equal(found, [[0, 1], [0, 1]])


def test_what_was_saved_answers_the_same(tmp_path):
    words = Lexical.fit(TITLES, LABELS, ["lamp", "mug", "rug", "bowl"])
    words.save(tmp_path)
    again = Lexical.load(tmp_path)
    assert again.labels == ["lamp", "mug", "rug", "bowl"]
    np.testing.assert_allclose(again(TITLES), words(TITLES), atol=1e-6)


def test_the_geometric_mean_in_plain_loops():
    encoder, words = np.array([[0.5, 0.3, 0.2], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0]]), np.array([[0.2, 0.2, 0.6]] * 3)
    words[2] = [0, 0.5, 0.5]
    for row, a, b in zip(geometric_mean(encoder, words), encoder, words, strict=True):
        product = [(x * y) ** 0.5 for x, y in zip(a, b, strict=True)]
        expected = [x / sum(product) for x in product] if sum(product) else a  # they agree on nothing: the encoder's
        np.testing.assert_allclose(row, expected)


def test_recommended_is_the_student_together_with_tfidf_and_both_are_kept(toy, tiny_text, tiny_vision, tmp_path):
    study, titles = toys.study(tiny_text, tiny_vision), list(toy.part("test").title)
    start = Start(str(tiny_text))
    read = classify(Run("toy", "recommended", 0), 0.5, toy, study, start, keep=tmp_path / "f100")
    both, alone = (TitleClassifier(tmp_path / "f100", words=words) for words in (True, False))
    found = both(titles)
    assert [both.labels[i] for i in found.argmax(axis=1)] == read.predictions.predicted.tolist()
    np.testing.assert_allclose(found.max(axis=1), read.predictions.confidence, atol=1e-4)
    np.testing.assert_allclose(found, geometric_mean(alone(titles), both.words(titles)), atol=1e-6)
    assert not np.allclose(found, alone(titles))
    student = classify(Run("toy", "self_trained_names", 0), 0.5, toy, study, start)
    np.testing.assert_allclose(alone(titles).max(axis=1), student.predictions.confidence, atol=1e-4)
