"""What we would use ourselves: labels' names as titles, self-training on unlabelled titles, and TF-IDF beside it."""

from unicodedata import category

import numpy as np
import pandas as pd

from icssl_lib.finetune import Read, Reader, Task, fit
from icssl_lib.lexical import Lexical, geometric_mean


def named(labels: list[str]) -> pd.DataFrame:
    """Each label's name, its separators made blanks, as a title of that label: title, label, image_row (-1). A shop
    knows what its categories are called before it has labelled anything; a classifier of few labels does not."""
    letters = ("".join(c if category(c)[0] in "LMN" else " " for c in label) for label in labels)  # M: vowel signs
    titles = [" ".join(name.split()) or label for name, label in zip(letters, labels, strict=True)]
    return pd.DataFrame({"title": titles, "label": labels, "image_row": -1})


def distilled(task: Task, train: pd.DataFrame) -> Reader:
    """Self-training by distillation (Hinton et al., 2015): a classifier of the few labels is the teacher of one more,
    whose targets are the labels and the teacher's probabilities of the SSL part's products."""
    if task.study.finetune.imbalance == "class_balanced":
        raise ValueError("finetune.imbalance: class_balanced: a teacher's probabilities are of no one class")
    soft = fit(task, train, beside="-teacher")(task.catalogue.part("ssl"))
    return fit(task, train, soft=soft.astype(np.float32))


def with_words(read: Read, words: Lexical) -> Read:
    """What an encoder and the words of a title say together."""
    return lambda products: geometric_mean(read(products), words(list(products.title)))
