"""What we would use ourselves: words, letters and an adapted encoder in one logistic regression, labels' names as
titles, and what a teacher that sees pictures says of titles without a label. It trains in seconds."""

from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import normalize
from torch import nn

from icssl_lib.baselines import FEATURES, Features, Frozen, encoder_of, taught, title
from icssl_lib.encoders import Normalize, TextTower, save_pretrained
from icssl_lib.finetune import Task, accuracy, named_classes
from icssl_lib.lexical import Lexical

SHARES = (1.0, 0.5, 0.0)  # of adaptation in the encoder's weights, of which Dev chooses one
LENGTH = 0.7  # of a title's and of a picture's row, beside 1 of its words and 1 of its letters


def named(labels: list[str]) -> pd.DataFrame:
    """Each label's name, its separators made blanks, as a title of that label: title, label, image_row (-1). A shop
    knows what its categories are called before it has labelled anything; a classifier of few labels does not."""
    letters = ("".join(c if category(c)[0] in "LMN" else " " for c in label) for label in labels)  # M: vowel signs
    titles = [" ".join(name.split()) or label for name, label in zip(letters, labels, strict=True)]
    return pd.DataFrame({"title": titles, "label": labels, "image_row": -1})


@dataclass(frozen=True)
class Even:
    """Rows of ``features`` with their directions evened: centred, divided along each principal axis by the root of its
    deviation, and made of `LENGTH`. Mean (F,) and axes (F, F) are of the titles of the SSL part and of Train."""

    features: Features
    mean: np.ndarray
    axes: np.ndarray

    @classmethod
    def fit(cls, features: Features, task: Task) -> "Even":
        rows = np.vstack([features(task.catalogue.part(part)) for part in ("ssl", "train")])
        rows = rows[rows.any(axis=1)]
        values, axes = np.linalg.eigh(np.cov(rows.T))
        return cls(features, rows.mean(axis=0), axes / np.maximum(values, values.max() * 1e-4) ** 0.25)

    def __call__(self, products: pd.DataFrame) -> np.ndarray:
        rows = self.features(products)
        return LENGTH * normalize((rows - self.mean) @ self.axes) * rows.any(axis=1)[:, None]  # no picture: zeros


@dataclass(frozen=True)
class Recommended:
    """A classifier of titles by words, letters and an encoder. Call: `finetune.Read`."""

    read: Frozen  # features: `Lexical`, `Even`
    task: Task
    share: float  # of adaptation, one of `SHARES`

    def __call__(self, products: pd.DataFrame) -> np.ndarray:
        return self.read(products)

    def save(self, folder: Path) -> None:
        """The encoder's part of the logits as a SentenceTransformer, the words' part beside it (see `Lexical.save`)."""
        words, even = self.read.features
        backbone, tokenizer = encoder_of(self.task, self.share)
        width, (classes, features) = backbone.config.hidden_size, self.read.weight.shape
        tower = TextTower(backbone, self.task.study.text.pooling, 1, depth=0)
        tower.projection = nn.Sequential(Normalize(), nn.Linear(width, width), Normalize(), nn.Linear(width, classes))
        arrays = {"1.weight": even.axes.T, "1.bias": -even.mean @ even.axes}
        arrays["3.weight"] = LENGTH * self.read.weight[:, features - width :]
        arrays["3.bias"] = np.maximum(self.read.bias, -1e4)  # minus infinity where training did not show a label
        tower.projection.load_state_dict({name: torch.tensor(x, dtype=torch.float32) for name, x in arrays.items()})
        backbone.config.update(named_classes(self.task.catalogue.labels))
        tokenizer.model_max_length = self.task.study.text.max_tokens
        save_pretrained(backbone, tokenizer, folder, tower.pooling, tower.projection)
        words.save(self.read.weight[:, : features - width], folder)


def recommended(task: Task, train: pd.DataFrame, features: tuple[str, ...] = ()) -> Recommended:
    """Self-training of a student that reads titles by a teacher that reads them and ``features`` (the picture). Dev
    chooses how much of adaptation the encoder keeps (WiSE-FT: Wortsman et al., 2022), the most of equals."""
    dev, labels, words = task.catalogue.part("dev"), task.catalogue.labels, Lexical.fit(train.title)
    shares = SHARES if task.start.encoder != task.study.text.model else SHARES[:1]
    evens = {share: Even.fit(title(task, train, share), task) for share in shares}
    share = max(shares, key=lambda each: accuracy(Frozen.fit([words, evens[each]], train, labels)(dev), dev, labels))
    shown = [Even.fit(FEATURES[name](task, train), task) for name in features]

    def student(rows: pd.DataFrame) -> list[Features]:
        return [Lexical.fit(rows.title), evens[share]]

    return Recommended(taught(task, train, student, lambda rows: [*student(rows), *shown]), task, share)
