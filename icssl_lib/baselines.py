"""Classifiers that train in seconds: on the words of a title, on frozen encoders, on both. And what bounds them all."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
from safetensors.torch import load_file
from scipy import sparse
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize
from torch import nn

from icssl_lib.adapt import picture_features
from icssl_lib.encoders import VisionTower, embed_titles, load_text, load_vision
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.files import verify
from icssl_lib.finetune import Read, Task
from icssl_lib.lexical import KINDS, regression

Features = Callable[[pd.DataFrame], np.ndarray | sparse.csr_matrix]  # products to unit rows (N, F)


def tfidf(task: Task, train: pd.DataFrame, kind: str) -> Features:
    """Titles by TF-IDF, with the terms of ``train`` of a kind of `lexical.KINDS`."""
    vectorizer = TfidfVectorizer(**KINDS[kind]).fit(train.title)
    return lambda products: vectorizer.transform(products.title)


def encoder_of(task: Task, share: float = 1.0) -> tuple[nn.Module, object]:
    """The encoder that a task starts from, its weights moved back to the study's own but for a ``share`` of the way
    (WiSE-FT: Wortsman et al., 2022), and the tokenizer."""
    backbone, tokenizer = load_text(task.start.encoder)
    if share < 1:
        before = load_text(task.study.text.model)[0].parameters()
        for weight, own in zip(backbone.parameters(), before, strict=True):
            weight.data.lerp_(own.data, 1 - share)
    return backbone, tokenizer


def title(task: Task, train: pd.DataFrame, share: float = 1.0) -> Features:
    """The frozen encoder's pooled titles, before any projection. share: see `encoder_of`."""
    study = task.study  # the fractions of a seed ask for the same titles
    known = task.catalogue.memory.setdefault((task.start.encoder, share, study.text), {})  # title to unit vector (H,)

    def embed(products: pd.DataFrame) -> np.ndarray:
        if new := sorted(set(products.title) - known.keys()):
            backbone, tokenizer = encoder_of(task, share)
            backbone.to(make_accelerator(study.runtime).device)
            with fast(backbone, study.runtime.fast):
                vectors = embed_titles(backbone, tokenizer, new, study.text)
            known.update(zip(new, normalize(vectors.numpy()), strict=True))
        return np.stack([known[title] for title in products.title])

    return embed


def picture(task: Task, train: pd.DataFrame, shuffled: bool = False) -> Features:
    """The frozen vision tower's features; zeros for a product without a picture. shuffled: of another picture."""
    accelerator = make_accelerator(task.study.runtime)
    tower = VisionTower(load_vision(task.start.vision), 1, 0, frozen=True, size=task.start.vision.image_size)
    if task.start.towers:  # those of an adaptation
        verify(task.start.towers.parent)
        adapted = {name.removeprefix("vision."): w for name, w in load_file(task.start.towers).items()}
        tower.load_state_dict(adapted, strict=False)
    known = normalize(picture_features(task.catalogue, tower.to(accelerator.device), accelerator).numpy())
    known = np.random.default_rng([task.seed, 5]).permutation(known) if shuffled else known
    known = np.vstack([known, np.zeros_like(known[:1])])  # row -1: no picture
    return lambda products: known[products.image_row]


FEATURES = {
    "words": partial(tfidf, kind="words"), "ngrams": partial(tfidf, kind="ngrams"),
    "title": title, "picture": picture, "picture_shuffled": partial(picture, shuffled=True),
}  # fmt: skip


@dataclass(frozen=True)
class Frozen:
    """Logistic regression on features side by side. Call: `finetune.Read`."""

    features: list[Features]
    weight: np.ndarray  # (C, F)
    bias: np.ndarray  # (C,)

    @classmethod
    def fit(
        cls, features: list[Features], train: pd.DataFrame, labels: list[str], weight: np.ndarray | None = None
    ) -> "Frozen":
        """weight: (N,), of the rows of ``train``; None: all alike."""
        target = pd.Index(labels).get_indexer(train.label)
        return cls(features, *regression(_side_by_side(features, train), target, len(labels), weight))

    def __call__(self, products: pd.DataFrame) -> np.ndarray:
        return softmax(_side_by_side(self.features, products) @ self.weight.T + self.bias, axis=1)


def _side_by_side(features: list[Features], products: pd.DataFrame) -> np.ndarray | sparse.csr_matrix:
    parts = [each(products) for each in features]
    return sparse.hstack(parts, format="csr") if any(map(sparse.issparse, parts)) else np.hstack(parts)


def frozen(task: Task, train: pd.DataFrame, features: tuple[str, ...] = ("title",)) -> Frozen:
    """Logistic regression on the ``features`` of these names."""
    return Frozen.fit([FEATURES[name](task, train) for name in features], train, task.catalogue.labels)


Reading = Callable[[pd.DataFrame], list[Features]]  # labelled products to what a classifier of them reads


def taught(task: Task, train: pd.DataFrame, student: Reading, teacher: Reading) -> Frozen:
    """One round of self-training (Lee, 2013): a teacher labels the titles without a label, those of the SSL part and of
    the rest of Train; of each class the student learns the surest 30% as well, at weight 0.3."""
    labels, parts = task.catalogue.labels, [task.catalogue.part(part) for part in ("ssl", "train")]
    pool = pd.concat([part[~part.id.isin(train.id)] for part in parts], ignore_index=True)
    probability = Frozen.fit(teacher(train), train, labels)(pool)
    pool["label"] = np.array(labels, dtype=object)[probability.argmax(axis=1)]
    rank = pd.Series(probability.max(axis=1)).groupby(pool.label).rank(ascending=False, method="first", pct=True)
    both = pd.concat([train, pool[rank <= 0.3]], ignore_index=True)
    return Frozen.fit(student(both), both, labels, np.where(both.index < len(train), 1.0, 0.3))


def self_taught(task: Task, train: pd.DataFrame, features: tuple[str, ...]) -> Frozen:
    """`taught` with a teacher and a student that read the same."""
    return taught(task, train, *[lambda rows: [FEATURES[name](task, rows) for name in features]] * 2)


def labelled(task: Task, train: pd.DataFrame) -> Read:
    """A ceiling: right wherever the class has a label in ``train``, so the share of products that any classifier of
    these labels alone can name. It reads the answers."""
    labels, first = pd.Index(task.catalogue.labels), train.label.iloc[0]

    def read(products: pd.DataFrame) -> np.ndarray:
        answer = products.label.where(products.label.isin(train.label), first)  # wrong where the class has no label
        return np.eye(len(labels))[labels.get_indexer(answer)]

    return read


def oracle(task: Task, train: pd.DataFrame, features: tuple[str, ...]) -> Read:
    """A ceiling: what titles alone tell, by a classifier of all products but Test's; no method has its labels."""
    everything, memory = task.catalogue.products, task.catalogue.memory
    if features not in memory:  # it is the same for all seeds and fractions
        known = everything[(everything.part != "test") & everything.label.isin(task.catalogue.labels)]
        memory[features] = frozen(task, known.reset_index(drop=True), features)
    return memory[features]
