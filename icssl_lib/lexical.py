"""The words and letters of a title: TF-IDF of both, and logistic regression on it and on whatever else has rows."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from icssl_lib.files import written_whole

WORDS, WEIGHTS = "lexical.json", "lexical.safetensors"
# What stands between blanks; of scripts without blanks (Thai to Khmer, kana, Han) each character
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f"
WORD = rf"[{_UNSPACED}]|[^\s{_UNSPACED}]+"
KINDS = {  # of terms: words, and 2 to 5 letters in a row inside of words; the most frequent of them
    "words": {"token_pattern": WORD, "max_features": 100_000},
    "ngrams": {"analyzer": "char_wb", "ngram_range": (2, 5), "max_features": 100_000},
}
C = 30  # of logistic regression: chosen on Dev over all catalogues at once (docs/decisions.md)


@dataclass(frozen=True)
class Lexical:
    """TF-IDF of a title's words and n-grams, side by side. Call: N products -> rows (N, V), sparse."""

    vectorizers: dict[str, TfidfVectorizer]  # of each of `KINDS`

    @classmethod
    def fit(cls, titles: Sequence[str]) -> "Lexical":
        """With the terms of ``titles``."""
        return cls({kind: TfidfVectorizer(**options).fit(titles) for kind, options in KINDS.items()})

    def __call__(self, products: pd.DataFrame) -> sparse.csr_matrix:
        return sparse.hstack([found.transform(products.title) for found in self.vectorizers.values()], format="csr")

    def padded(self, titles: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Of each title the numbers of its terms, int64 (N, K), and their values, float32 (N, K); 0 and 0 fill up."""
        rows = self(pd.DataFrame({"title": titles}))
        here = np.arange(max(1, np.diff(rows.indptr).max())) < np.diff(rows.indptr)[:, None]  # (N, K)
        terms, values = np.zeros(here.shape, np.int64), np.zeros(here.shape, np.float32)
        terms[here], values[here] = rows.indices, rows.data
        return terms, values

    def save(self, weight: np.ndarray, folder: Path) -> None:
        """Write into ``folder`` lexical.json, the terms and their IDF, and lexical.safetensors, ``weight`` (C, V)."""
        with written_whole(folder / WEIGHTS) as path:
            save_file({"weight": np.ascontiguousarray(weight, np.float32)}, path)
        found = {k: dict(zip(v.get_feature_names_out(), v.idf_, strict=True)) for k, v in self.vectorizers.items()}
        with written_whole(folder / WORDS) as path:
            path.write_text(json.dumps(found), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> "Lexical":
        """What `save` wrote, less the weight."""
        idf, found = json.loads((folder / WORDS).read_text(encoding="utf-8")), {}
        for kind, options in KINDS.items():
            found[kind] = TfidfVectorizer(**options, vocabulary=list(idf[kind]))
            found[kind].idf_ = np.array(list(idf[kind].values()))
        return cls(found)


def regression(
    x: np.ndarray | sparse.csr_matrix, target: np.ndarray, classes: int, weight: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Multinomial logistic regression of rows ``x`` (N, F) with ``target`` (N,) and, unless all are alike, ``weight``
    (N,). Returns: of logits the weight (C, F) and bias (C,), minus infinity for a class that ``target`` lacks."""
    coef, bias, seen = np.zeros((classes, x.shape[1])), np.full(classes, -np.inf), np.unique(target)
    bias[seen] = 0.0
    if len(seen) == 1:
        return coef, bias
    # On thousands of n-grams saga, stopped early, is as accurate on Dev as lbfgs and ten times as fast.
    solver = {"solver": "saga", "tol": 1e-2, "random_state": 0} if sparse.issparse(x) else {"max_iter": 1000}
    model = LogisticRegression(C=C, **solver).fit(x, target, weight)
    first = len(seen) == 2  # then it holds the logit of the second class alone
    coef[seen[first:]], bias[seen[first:]] = model.coef_, model.intercept_
    return coef, bias
