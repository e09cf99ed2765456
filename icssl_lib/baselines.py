"""Classifiers that train in seconds: on the words of a title, on frozen encoders, on both. And what bounds them all."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from scipy import sparse
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import normalize

from icssl_lib.adapt import picture_features
from icssl_lib.encoders import VisionTower, embed_titles, load_text, load_vision
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.finetune import Read, Task, accuracy, fit
from icssl_lib.lexical import WORD

Features = Callable[[pd.DataFrame], np.ndarray | sparse.csr_matrix]  # products to unit rows (N, F)
C = 30  # of logistic regression: chosen on Dev over all catalogues at once (docs/decisions.md)


def tfidf(task: Task, train: pd.DataFrame, **options: Any) -> Features:
    """Titles by TF-IDF, with the vocabulary of ``train``; options: of scikit-learn's TfidfVectorizer."""
    vectorizer = TfidfVectorizer(**options).fit(train.title)
    return lambda products: vectorizer.transform(products.title)


def title(task: Task, train: pd.DataFrame) -> Features:
    """The frozen encoder's pooled titles, before any projection."""
    study = task.study  # the fractions of a seed ask for the same titles
    known = task.catalogue.memory.setdefault((task.start.encoder, study.text), {})  # title to unit vector (H,)

    def embed(products: pd.DataFrame) -> np.ndarray:
        if new := sorted(set(products.title) - known.keys()):
            backbone, tokenizer = load_text(task.start.encoder)
            backbone.to(make_accelerator(study.runtime).device)
            with fast(backbone, study.runtime.fast):
                vectors = embed_titles(backbone, tokenizer, new, study.text)
            known.update(zip(new, normalize(vectors.numpy()), strict=True))
        return np.stack([known[title] for title in products.title])

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


FEATURES = {
    "words": partial(tfidf, token_pattern=WORD),
    "ngrams": partial(tfidf, analyzer="char_wb", ngram_range=(2, 5)),  # 2 to 5 letters in a row, inside of words
    "title": title, "picture": picture,
}  # fmt: skip


def frozen(
    task: Task, train: pd.DataFrame, features: tuple[str, ...] = ("title",), weight: np.ndarray | None = None
) -> Read:
    """Logistic regression on ``features`` side by side. weight: (N,), of the rows of ``train``; None: all alike."""
    blocks, labels = [FEATURES[name](task, train) for name in features], task.catalogue.labels

    def rows(products: pd.DataFrame) -> np.ndarray | sparse.csr_matrix:
        parts = [block(products) for block in blocks]
        return sparse.hstack(parts, format="csr") if any(map(sparse.issparse, parts)) else np.hstack(parts)

    x = rows(train)
    # On thousands of n-grams saga, stopped early, is as accurate on Dev as lbfgs and ten times as fast.
    solver = {"solver": "saga", "tol": 1e-2, "random_state": 0} if sparse.issparse(x) else {"max_iter": 1000}
    model = LogisticRegression(C=C, **solver) if train.label.nunique() > 1 else DummyClassifier()
    model.fit(x, train.label, weight)

    def read(products: pd.DataFrame) -> np.ndarray:
        probability = np.zeros((len(products), len(labels)))
        probability[:, pd.Index(labels).get_indexer(model.classes_)] = model.predict_proba(rows(products))
        return probability

    return read


def self_taught(task: Task, train: pd.DataFrame, features: tuple[str, ...]) -> Read:
    """One round of self-training (Lee, 2013): `frozen` labels the titles without a label, those of the SSL part and of
    the rest of Train; of each class the surest 30% are learnt from as well, at weight 0.3."""
    parts = [task.catalogue.part(part) for part in ("ssl", "train")]
    pool = pd.concat([part[~part.id.isin(train.id)] for part in parts], ignore_index=True)
    probability = frozen(task, train, features)(pool)
    pool["label"] = np.array(task.catalogue.labels, dtype=object)[probability.argmax(axis=1)]
    rank = pd.Series(probability.max(axis=1)).groupby(pool.label).rank(ascending=False, method="first", pct=True)
    both = pd.concat([train, pool[rank <= 0.3]], ignore_index=True)
    return frozen(task, both, features, np.where(both.index < len(train), 1.0, 0.3))


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
    everything, memory = task.catalogue.products, task.catalogue.memory
    if features not in memory:  # it is the same for all seeds and fractions
        known = everything[(everything.part != "test") & everything.label.isin(task.catalogue.labels)]
        memory[features] = frozen(task, known.reset_index(drop=True), features)
    return memory[features]
