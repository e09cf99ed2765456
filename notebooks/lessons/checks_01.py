"""Checks of lesson 1, "Why": metrics, nearest neighbours, and what words can tell."""

from typing import Any

import numpy as np
import pandas as pd
from lesson_tools import Hint, call

from icssl_lib import metrics


def accuracy_and_macro_f1(answer: Any) -> str:
    """1.1: label, predicted (n each) -> (accuracy, macro-F1)."""
    # a: 2 * 3 / (3 + 5) = 3/4; b: 2 * 1 / (2 + 1) = 2/3; c, never predicted: 0
    label, predicted = np.array(list("aaabbc")), np.array(list("aaabaa"))
    accuracy, macro = _two(call(answer, label, predicted))
    if not np.isclose(accuracy, 4 / 6):
        raise Hint(f"accuracy is the share of products whose predicted label is the true one; not {accuracy:.3f} here")
    for wrong, hint in {
        4 / 6: "your macro-F1 equals the accuracy: F1 over all products at once (micro). Take it class by class",
        (3 / 4 + 2 / 3) / 2: "a class that is never predicted has F1 = 0 and counts; you left it out",
        (3 * 3 / 4 + 2 * 2 / 3) / 6: "each class counts the same; you weighted them by their products",
    }.items():
        if np.isclose(macro, wrong):
            raise Hint(hint)
    rng = np.random.default_rng(0)
    cases = [(label, predicted), (np.array(list("aab")), np.array(list("axb")))]
    cases += [(rng.choice(list("pqrs"), 40), rng.choice(list("pqrst"), 40)) for _ in range(5)]
    for true, guess in cases:
        accuracy, macro = _two(call(answer, true, guess))
        if not np.isclose(macro, metrics.macro_f1(true, guess)):
            if np.isclose(macro * len(set(true) | set(guess)), metrics.macro_f1(true, guess) * len(set(true))):
                raise Hint("average over the classes that occur in `label`; a class that is only predicted has no F1")
            raise Hint(
                f"for label {list(true[:6])}..., predicted {list(guess[:6])}... macro-F1 is "
                f"{metrics.macro_f1(true, guess):.3f}, yours {macro:.3f}; F1 = 2 TP / (true + predicted)"
            )
        if not np.isclose(accuracy, metrics.accuracy(true, guess)):
            raise Hint(f"for other labels accuracy is {metrics.accuracy(true, guess):.3f}, yours {accuracy:.3f}")
    return "both agree with the library's on labels of every kind, a class that is never predicted among them."


def _two(result: Any) -> tuple[float, float]:
    try:
        accuracy, macro = (float(value) for value in result)
    except (TypeError, ValueError):
        raise Hint("return two numbers: `return accuracy, macro_f1`") from None
    if not np.isfinite([accuracy, macro]).all():
        raise Hint("a result is not finite: 0 / 0? F1 = 2 TP / (true + predicted) has no such case for a true class")
    return accuracy, macro


def nearest_labels(answer: Any) -> str:
    """1.2: query (M, D), known (N, D), labels (N,), k -> M labels, by cosine; k is odd and there are two classes."""
    rng = np.random.default_rng(0)
    for k in (1, 3, 7):
        # Of lengths from 1/20 to 20, so that cosine, dot product and distance disagree
        query, known = rng.normal(size=(30, 4)), rng.normal(size=(25, 4)) * np.exp(rng.uniform(-3, 3, size=(25, 1)))
        labels = rng.choice(["lipsticks", "soaps"], 25)
        result = np.asarray(call(answer, query, known, labels, k))
        if result.shape != (30,):
            raise Hint(f"30 queries need 30 labels in a list or an array of one dimension; yours: shape {result.shape}")
        unit = known / np.linalg.norm(known, axis=1, keepdims=True)
        cosine = query @ unit.T
        if (result == _vote(cosine, labels, k)).all():
            continue
        euclidean = -np.linalg.norm(query[:, None] - known, axis=2)
        for similarity, size, hint in (
            (query @ known.T, k, "the longest vectors win: divide each by its length first, then s is the cosine"),
            (euclidean, k, "this is Euclidean distance, which lengths change; s is the cosine"),
            (-cosine, k, "these are the farthest: argsort sorts from small to large"),
            (cosine, 1, f"only the nearest one votes; k = {k} neighbours have a vote each"),
        ):
            if (result == _vote(similarity, labels, size)).all():
                raise Hint(hint)
        wrong = int((result != _vote(cosine, labels, k)).sum())
        raise Hint(f"with k = {k}, {wrong} of 30 labels are not the majority of the {k} nearest by cosine")
    return "the majority of the k nearest by cosine, for k = 1, 3 and 7, whatever the vectors' lengths."


def _vote(similarity: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    nearest = labels[np.argsort(-similarity, axis=1)[:, :k]]  # (M, k)
    return np.array([max(set(row), key=list(row).count) for row in nearest])


def untold(answer: Any) -> str:
    """1.3: train, items (columns title, label) -> n booleans: no word points to the item's class alone."""
    train = pd.DataFrame(
        {"title": ["Zola Red Matte Lipstick", "red body lotion", "Kiro lotion"], "label": ["lip", "lotion", "lotion"]}
    )
    cases = (
        ("kiro MATTE stick", "lip", False, "case matters not: compare lower-case words"),
        ("Red thing", "lip", True, "'red' stands in titles of two classes, so it points to neither"),
        ("mat cap", "lip", True, "compare whole words: 'mat' is no word of Train, though 'matte' holds it"),
        ("new arrival", "lotion", True, "none of its words occurs in Train, so nothing tells its class"),
        ("body stick", "lip", True, "'body' points to lotion, which is not the item's class"),
        ("matte bar", "soap", True, "Train holds no title of the class 'soap', so no word points to it"),
        ("lotion red", "lotion", False, "'lotion' stands in two titles, both of its class: that tells"),
    )
    items = pd.DataFrame(cases, columns=["title", "label", "untold", "hint"])
    result = _booleans(call(answer, train, items[["title", "label"]]), len(items))
    for found, case in zip(result, items.itertuples(), strict=True):
        if found != case.untold:
            raise Hint(f"{case.title!r} of class {case.label!r}: {case.hint}")
    rng = np.random.default_rng(0)
    words = np.array([f"w{i}" for i in range(40)])
    many = pd.DataFrame(
        {"title": [" ".join(rng.choice(words, 4)) for _ in range(60)], "label": rng.choice([*"abc"], 60)}
    )
    train, items = many[:12], many[12:].set_axis(range(100, 148))
    classes = {word: {row.label for row in train.itertuples() if word in row.title.split()} for word in words}
    expected = [all(classes[word] != {row.label} for word in row.title.split()) for row in items.itertuples()]
    wrong = int((_booleans(call(answer, train, items), len(items)) != expected).sum())
    if wrong:
        raise Hint(f"the examples by hand are right, but {wrong} of 48 other titles are not")
    return "True exactly where no word points to the class, on titles that the lesson does not show as well."


def _booleans(result: Any, n: int) -> np.ndarray:
    array = np.asarray(result)
    if array.shape != (n,) or array.dtype != bool:
        raise Hint(f"{n} items need {n} values True or False; yours: shape {array.shape}, {array.dtype}")
    return array


CHECKS = {"1.1": accuracy_and_macro_f1, "1.2": nearest_labels, "1.3": untold}
