"""Classifiers to compare with: the words of a title, nearest neighbours, the picture alone, title and picture."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from icssl_lib.encoders import embed_titles, load_text, nearest_rows
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.finetune import Read, Task, accuracy, fit
from icssl_lib.lexical import Lexical


def tfidf(task: Task, train: pd.DataFrame) -> Read:
    """TF-IDF of words and logistic regression."""
    words = Lexical.fit(list(train.title), list(train.label), task.catalogue.labels)
    return lambda products: words(list(products.title))


def nearest_titles(task: Task, train: pd.DataFrame) -> Read:
    """The nearest titles of ``train`` by cosine, pooled before any projection; nothing is trained."""
    study, labels = task.study, task.catalogue.labels
    backbone, tokenizer = load_text(task.start.encoder)
    backbone.to(make_accelerator(study.runtime).device)

    def embed(products: pd.DataFrame) -> Tensor:
        with fast(backbone, study.runtime.fast):
            return embed_titles(backbone, tokenizer, list(products.title), study.text)

    known, label = embed(train), torch.tensor(pd.Index(labels).get_indexer(train.label))
    return lambda products: vote(embed(products), known, label, len(labels), k=5).numpy()


def vote(query: Tensor, known: Tensor, label: Tensor, classes: int, k: int) -> Tensor:
    """Each class's share, (N, classes), in the votes of the k of ``known`` (M, D) nearest to a ``query`` (N, D), a vote
    weighed by its cosine, or 1e-6 where that is less. label: int64 (M,), below ``classes``."""
    cosines, rows = nearest_rows(query, known, k)
    weight = cosines.double().clamp(min=1e-6)
    votes = weight.new_zeros(len(query), classes).scatter_add(1, label[rows], weight)
    return votes / votes.sum(dim=1, keepdim=True)


def picture_reader(task: Task, train: pd.DataFrame) -> Callable[..., np.ndarray]:
    """A classifier of pictures, trained on the products that have one. Call: products, and probabilities (N, C) for
    those that it knows nothing of, for want of a picture here or in all of ``train``."""
    pictured = train[train.image_row >= 0].reset_index(drop=True)
    predict_image = fit(task, pictured, "image", beside="-image") if len(pictured) else None

    def read(products: pd.DataFrame, otherwise: np.ndarray) -> np.ndarray:
        seen, probability = (products.image_row >= 0).to_numpy(), otherwise.copy()
        if predict_image is not None and seen.any():
            probability[seen] = predict_image(products[seen].reset_index(drop=True))
        return probability

    return read


def image(task: Task, train: pd.DataFrame) -> Read:
    """Pictures alone. A product without one gets the classes' shares in ``train``, so the most frequent class."""
    predict_image = picture_reader(task, train)
    share = train.label.value_counts(normalize=True).reindex(task.catalogue.labels, fill_value=0.0)
    return lambda products: predict_image(products, np.tile(share, (len(products), 1)))


def late(task: Task, train: pd.DataFrame) -> Read:
    """Late fusion: the probabilities of a title's and of its picture's classifier, averaged with the weight, of 0, 0.1,
    ..., 1, that is best on Dev, the smallest of equals. Without a picture the title decides alone."""
    predict_title, predict_image = fit(task, train), picture_reader(task, train)
    dev = task.catalogue.part("dev")
    title = predict_title(dev)
    picture = predict_image(dev, title)
    weight = max(np.arange(11) / 10, key=lambda w: accuracy((1 - w) * title + w * picture, dev, task.catalogue.labels))

    def read(products: pd.DataFrame) -> np.ndarray:
        title = predict_title(products)
        return (1 - weight) * title + weight * predict_image(products, title)

    return read
