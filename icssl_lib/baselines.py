"""Classifiers that train in seconds: on the words of a title, on frozen encoders, on both. And what bounds them all."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from scipy import sparse
from sklearn.base import ClassifierMixin
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import normalize

from icssl_lib.adapt import picture_features
from icssl_lib.encoders import VisionTower, embed_titles, load_text, load_vision
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.finetune import Read, Task, accuracy, fit

Features = Callable[[pd.DataFrame], np.ndarray | sparse.csr_matrix]  # products to unit rows (N, F)
C = 30  # of logistic regression: chosen on Dev over all catalogues at once (docs/decisions.md)


def words(task: Task, train: pd.DataFrame) -> Features:
    """TF-IDF of words, with the vocabulary of ``train``."""
    vectorizer = TfidfVectorizer(token_pattern=r"\S+").fit(train.title)
    return lambda products: vectorizer.transform(products.title)


def ngrams(task: Task, train: pd.DataFrame) -> Features:
    """TF-IDF of 2 to 5 letters in a row inside of words: it knows parts of words, and plurals."""
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5)).fit(train.title)
    return lambda products: vectorizer.transform(products.title)


def title(task: Task, train: pd.DataFrame) -> Features:
    """The frozen encoder's pooled titles, before any projection."""
    backbone, tokenizer = load_text(task.start.encoder)
    backbone.to(make_accelerator(task.study.runtime).device)

    def embed(products: pd.DataFrame) -> np.ndarray:
        with fast(backbone, task.study.runtime.fast):
            return normalize(embed_titles(backbone, tokenizer, list(products.title), task.study.text).numpy())

    return embed


def picture(task: Task, train: pd.DataFrame) -> Features:
    """The frozen vision tower's features; zeros for a product without a picture."""
    accelerator = make_accelerator(task.study.runtime)
    tower = VisionTower(load_vision(task.start.vision), 1, 0, frozen=True, size=task.start.vision.image_size)
    if task.start.towers:  # those of an adaptation
        adapted = {name.removeprefix("vision."): w for name, w in load_file(task.start.towers).items()}
        tower.load_state_dict(adapted, strict=False)
    known = normalize(picture_features(task.catalogue, tower.to(accelerator.device), accelerator).numpy())
    known = np.vstack([known, np.zeros_like(known[:1])])  # row -1: no picture
    return lambda products: known[products.image_row]


FEATURES = {"words": words, "ngrams": ngrams, "title": title, "picture": picture}


def frozen(task: Task, train: pd.DataFrame, features: tuple[str, ...], model: ClassifierMixin | None = None) -> Read:
    """A classifier of scikit-learn, logistic regression where none is given, on ``features`` side by side."""
    blocks, labels = [FEATURES[name](task, train) for name in features], task.catalogue.labels

    def rows(products: pd.DataFrame) -> np.ndarray | sparse.csr_matrix:
        parts = [block(products) for block in blocks]
        return sparse.hstack(parts, format="csr") if any(map(sparse.issparse, parts)) else np.hstack(parts)

    several = train.label.nunique() > 1
    model = (model or LogisticRegression(C=C, max_iter=1000)) if several else DummyClassifier()
    model.fit(rows(train), train.label)

    def read(products: pd.DataFrame) -> np.ndarray:
        probability = np.zeros((len(products), len(labels)))
        probability[:, pd.Index(labels).get_indexer(model.classes_)] = model.predict_proba(rows(products))
        return probability

    return read


def nearest_titles(task: Task, train: pd.DataFrame, features: tuple[str, ...]) -> Read:
    """The vote of the five nearest products by cosine, each weighed by its cosine, or 1e-6 where that is less."""
    weights = lambda distance: np.maximum(1 - distance, 1e-6)  # noqa: E731
    model = KNeighborsClassifier(min(5, len(train)), weights=weights, metric="cosine")
    return frozen(task, train, features, model)


def late(task: Task, train: pd.DataFrame) -> Read:
    """Late fusion: the probabilities of the fine-tuned title and of the frozen picture, averaged with the weight, of 0,
    0.1, ..., 1, that is best on Dev, the smallest of equals. Without a picture the title decides alone."""
    of_title, of_picture = fit(task, train), frozen(task, train, ("picture",))
    dev, labels = task.catalogue.part("dev"), task.catalogue.labels

    def both(products: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        own, shown = of_title(products), (products.image_row >= 0).to_numpy()[:, None]
        return own, np.where(shown, of_picture(products), own)

    title, picture = both(dev)
    weight = max(np.arange(11) / 10, key=lambda w: accuracy((1 - w) * title + w * picture, dev, labels))

    def read(products: pd.DataFrame) -> np.ndarray:
        title, picture = both(products)
        return (1 - weight) * title + weight * picture

    return read


def labelled(task: Task, train: pd.DataFrame) -> Read:
    """A ceiling: right wherever the class has a label in ``train``, so the share of products that any classifier of
    these labels alone can name. It reads the answers."""
    labels, first = pd.Index(task.catalogue.labels), train.label.iloc[0]

    def read(products: pd.DataFrame) -> np.ndarray:
        answer = products.label.where(products.label.isin(train.label), first)  # wrong where the class has no label
        return np.eye(len(labels))[labels.get_indexer(answer)]

    return read


def oracle(task: Task, train: pd.DataFrame, features: tuple[str, ...]) -> Read:
    """A ceiling: what titles alone tell, by a classifier of all products but Test's, the SSL part's labels among them.
    It reads answers that no method has."""
    everything = task.catalogue.products
    known = everything[(everything.part != "test") & everything.label.isin(task.catalogue.labels)]
    return frozen(task, known.reset_index(drop=True), features)
