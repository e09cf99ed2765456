"""What we would use ourselves: words, letters and an adapted encoder in one logistic regression, labels' names as
titles, and what a teacher that sees pictures says of titles without a label. It trains in seconds."""

from dataclasses import dataclass
from pathlib import Path
from unicodedata import category

import numpy as np
import pandas as pd
import torch
from torch import nn

from icssl_lib.baselines import FEATURES, Features, Frozen, encoder_of, taught, title
from icssl_lib.encoders import Normalize, TextTower, save_pretrained
from icssl_lib.files import seal
from icssl_lib.finetune import Task, accuracy, named_classes
from icssl_lib.lexical import Lexical

SHARES = (1.0, 0.5, 0.0)  # of adaptation in the encoder's weights, of which Dev chooses one


def named(labels: list[str]) -> pd.DataFrame:
    """Each label's name, its separators made blanks, as a title of that label: title, label, image_row (-1). A shop
    knows what its categories are called before it has labelled anything; a classifier of few labels does not."""
    letters = ("".join(c if category(c)[0] in "LMN" else " " for c in label) for label in labels)  # M: vowel signs
    titles = [" ".join(name.split()) or label for name, label in zip(letters, labels, strict=True)]
    return pd.DataFrame({"title": titles, "label": labels, "image_row": -1})


@dataclass(frozen=True)
class Recommended(Frozen):
    """A classifier of titles by words and letters (`Lexical`) and an encoder (`baselines.title`)."""

    task: Task
    share: float  # of adaptation, one of `SHARES`

    def save(self, folder: Path) -> None:
        """The encoder's part of the logits as a SentenceTransformer, the words' part beside it (see `Lexical.save`)."""
        backbone, tokenizer = encoder_of(self.task, self.share)
        width, (classes, features) = backbone.config.hidden_size, self.weight.shape
        tower = TextTower(backbone, self.task.study.text.pooling, 1, depth=0)
        tower.projection = nn.Sequential(Normalize(), nn.Linear(width, classes))
        bias = np.maximum(self.bias, -1e4)  # minus infinity where training did not show a label
        arrays = {"1.weight": self.weight[:, features - width :], "1.bias": bias}
        tower.projection.load_state_dict({name: torch.tensor(x, dtype=torch.float32) for name, x in arrays.items()})
        backbone.config.update(named_classes(self.task.catalogue.labels))
        tokenizer.model_max_length = self.task.study.text.max_tokens
        save_pretrained(backbone, tokenizer, folder, tower.pooling, tower.projection)
        self.features[0].save(self.weight[:, : features - width], folder)
        seal(folder)


def recommended(task: Task, train: pd.DataFrame, features: tuple[str, ...] = ()) -> Recommended:
    """Self-training of a student that reads titles by a teacher that reads them and ``features`` (the picture). Dev
    chooses how much of adaptation the encoder keeps (WiSE-FT: Wortsman et al., 2022), the most of equals."""
    dev, labels, words = task.catalogue.part("dev"), task.catalogue.labels, Lexical.fit(train.title)
    shares = SHARES if task.start.encoder != task.study.text.model else SHARES[:1]
    titles = {share: title(task, train, share) for share in shares}
    share = max(shares, key=lambda each: accuracy(Frozen.fit([words, titles[each]], train, labels)(dev), dev, labels))
    shown = [FEATURES[name](task, train) for name in features]

    def student(rows: pd.DataFrame) -> list[Features]:
        return [Lexical.fit(rows.title), titles[share]]

    read = taught(task, train, student, lambda rows: [*student(rows), *shown])
    return Recommended(**vars(read), task=task, share=share)
