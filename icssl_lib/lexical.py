"""The words of a title alone: TF-IDF and logistic regression, as a baseline and beside an encoder."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from icssl_lib.files import written_whole

WORDS, WEIGHTS = "lexical.json", "lexical.safetensors"
# What stands between blanks; of scripts without blanks (Thai to Khmer, kana, Han) each character
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
WORD = rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+"


class Lexical:
    """Titles to probabilities of ``labels``, float64 (N, C), by V words of inverse document frequency ``idf`` (V,). Of
    logits, ``weight`` is (C, V) and ``bias`` (C,), minus infinity where training did not show a label."""

    def __init__(self, words: list[str], idf: np.ndarray, weight: np.ndarray, bias: np.ndarray, labels: list[str]):
        self.vectorizer = TfidfVectorizer(token_pattern=WORD, vocabulary=words)
        self.vectorizer.idf_ = idf
        self.words, self.weight, self.bias, self.labels = words, weight, bias, labels

    @classmethod
    def fit(cls, titles: Sequence[str], label: Sequence[str], labels: list[str]) -> "Lexical":
        """Learn from titles, each with one of ``labels``; titles of one label alone make that the answer to all."""
        vectorizer = TfidfVectorizer(token_pattern=WORD)
        rows = vectorizer.fit_transform(titles)
        seen = sorted(set(label))
        weight, bias = np.zeros((len(labels), rows.shape[1])), np.full(len(labels), -np.inf)
        at = [labels.index(name) for name in seen]
        bias[at] = 0.0
        if len(seen) > 1:
            model = LogisticRegression(C=10, max_iter=2000).fit(rows, label)
            first = len(seen) == 2  # then it holds the logit of the second class alone
            weight[at[first:]], bias[at[first:]] = model.coef_, model.intercept_
        return cls(vectorizer.get_feature_names_out().tolist(), vectorizer.idf_, weight, bias, labels)

    def __call__(self, titles: Sequence[str]) -> np.ndarray:
        return softmax(self.vectorizer.transform(titles) @ self.weight.T + self.bias, axis=1)

    def save(self, folder: Path) -> None:
        """Write lexical.json and lexical.safetensors (float32) into ``folder``."""
        arrays = {"idf": self.vectorizer.idf_, "weight": self.weight, "bias": self.bias}
        with written_whole(folder / WEIGHTS) as path:
            save_file({name: np.ascontiguousarray(x, np.float32) for name, x in arrays.items()}, path)
        with written_whole(folder / WORDS) as path:
            path.write_text(json.dumps({"words": self.words, "labels": self.labels}), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Lexical":
        """What `save` wrote."""
        return cls(**json.loads((folder / WORDS).read_text(encoding="utf-8")), **load_file(folder / WEIGHTS))


def geometric_mean(encoder: np.ndarray, words: np.ndarray) -> np.ndarray:
    """The geometric mean of two readings' probabilities, (N, C) each, brought to sum to 1 (a product of experts:
    Hinton, 2002): either can rule a class out. A row that is left with nothing is the encoder's."""
    product = np.sqrt(encoder * words)
    total = product.sum(axis=1, keepdims=True)
    return np.where(total > 0, product / np.where(total > 0, total, 1), encoder)
