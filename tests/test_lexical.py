"""Logistic regression against scikit-learn's own; the recommended recipe in plain steps, and its folder at work."""

import numpy as np
import pandas as pd
import pytest
import torch
import toys
from scipy.special import softmax
from sentence_transformers import SentenceTransformer
from serving import without_words
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from icssl_lib.baselines import Frozen
from icssl_lib.classify import classify
from icssl_lib.config import Run
from icssl_lib.deploy import TitleClassifier
from icssl_lib.encoders import embed_titles, load_text, save_pretrained
from icssl_lib.finetune import Start, Task
from icssl_lib.lexical import C, Lexical
from icssl_lib.recommended import named, recommended

TITLES = ["alma red lamp", "alma mug", "bera lamp 7", "red mug mug", "bera rug", "soft rug 7", "a lamp", "the mug"]
LABELS = ["lamp", "mug", "lamp", "mug", "rug", "rug", "lamp", "mug"]
KNOWN = pd.DataFrame({"title": TITLES, "label": LABELS})
ALL = ["bowl", "rug", "mug", "lamp"]


@pytest.mark.parametrize("classes", [2, 3])
def test_it_is_scikit_learns_own_and_a_label_that_was_not_shown_has_nothing(classes):
    known = KNOWN[(KNOWN.label != "rug") | (classes == 3)]
    kinds = {"token_pattern": r"\S+"}, {"analyzer": "char_wb", "ngram_range": (2, 5)}
    vectorizers = [TfidfVectorizer(**kind).fit(known.title) for kind in kinds]
    rows, asked = (np.hstack([v.transform(titles).toarray() for v in vectorizers]) for titles in (known.title, TITLES))
    plain = LogisticRegression(C=C, solver="saga", tol=1e-6, max_iter=10_000).fit(rows, known.label)
    found = Frozen.fit([Lexical.fit(known.title)], known, ALL)(KNOWN)
    at = [ALL.index(name) for name in plain.classes_]
    np.testing.assert_allclose(found[:, at], plain.predict_proba(asked), atol=0.05)  # the library's stops early
    assert (np.delete(found, at, axis=1) == 0).all()


@pytest.fixture
def adapted(tiny_text, tmp_path):
    """An encoder that is not the study's own: its weights moved a little."""
    model, tokenizer = load_text(str(tiny_text))
    torch.manual_seed(1)
    for weight in model.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    save_pretrained(model, tokenizer, tmp_path / "adapted")
    return Start(str(tmp_path / "adapted"), None)


def task_of(toy, text, vision, start) -> Task:
    study = toys.study(text, vision)
    return Task(toy, study, Start(start.encoder, study.vision), seed=0)


def test_the_recommended_recipe_in_plain_steps(toy, tiny_text, tiny_vision, adapted):
    task = task_of(toy, tiny_text, tiny_vision, adapted)
    train = toy.part("train").iloc[::4].reset_index(drop=True)
    train = pd.concat([train, named(toy.labels)], ignore_index=True)
    found = recommended(task, train, ("picture",))
    own, test = pd.concat([toy.part("ssl"), toy.part("train")]), toy.part("test")
    model, tokenizer = load_text(adapted.encoder)
    for weight, before in zip(model.parameters(), load_text(str(tiny_text))[0].parameters(), strict=True):
        weight.data = found.share * weight.data + (1 - found.share) * before.data
    vectors = embed_titles(model, tokenizer, list(test.title), task.study.text).numpy()
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    words, _ = found.features
    pool = own[~own.id.isin(train.id)]
    assert set(words.vectorizers["words"].vocabulary_) <= set(" ".join([*train.title, *pool.title]).split())
    assert len(words.vectorizers["words"].vocabulary_) > len(set(" ".join(train.title).split()))  # it was taught
    logits = np.hstack([words(test).toarray(), vectors]) @ found.weight.T + found.bias
    np.testing.assert_allclose(found(test), softmax(logits, axis=1), atol=2e-3)


@pytest.mark.parametrize(("best", "expected"), [(0.0, 0.0), (0.5, 0.5), (None, 1.0)])  # None: all shares are alike
def test_dev_chooses_how_much_of_adaptation_stays(best, expected, toy, tiny_text, tiny_vision, adapted, monkeypatch):
    def title(task, train, share):
        """Rows that say the label at the best share, and nothing at the others."""
        labels = pd.Index(toy.labels)
        return lambda products: np.eye(len(labels))[labels.get_indexer(products.label)] * float(share == best)

    monkeypatch.setattr("icssl_lib.recommended.title", title)
    task = task_of(toy, tiny_text, tiny_vision, adapted)
    assert recommended(task, toy.part("train").head(16)).share == expected


def test_its_folder_answers_as_it_did_and_is_a_sentence_transformer(toy, tiny_text, tiny_vision, adapted, tmp_path):
    study, titles = toys.study(tiny_text, tiny_vision), list(toy.part("test").title)
    start = Start(adapted.encoder, study.vision)
    read = classify(Run("toy", "recommended", 0), 0.5, toy, study, start, keep=tmp_path / "f100")
    both, alone = TitleClassifier(tmp_path / "f100"), without_words(tmp_path / "f100")
    found = both(titles)
    assert [both.labels[i] for i in found.argmax(axis=1)] == read.predictions.predicted.tolist()
    np.testing.assert_allclose(found.max(axis=1), read.predictions.confidence, atol=1e-3)
    elsewhere = SentenceTransformer(str(tmp_path / "f100"), device="cpu")
    np.testing.assert_allclose(softmax(elsewhere.encode(titles), axis=1), alone(titles), atol=1e-4)
    assert elsewhere[0].auto_model.config.id2label[1] == toy.labels[1]
