"""Checks of lesson 8: a prediction written down, class words masked, labels saved read off two curves."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from lesson_tools import ROOT, Hint, call

from icssl_lib import metrics

SAME = 0.02  # a change within it counts as none
STEPS = {"pairs": ("convirt", "origin"), "names": ("ladder_names", "convirt")}
STEPS |= {"picture": ("ladder_picture", "ladder_taught")}


def steps(ladder: pd.DataFrame) -> pd.DataFrame:
    """What pairs, names and the picture add, (catalogue, masked) by step. ladder: rows of figures/law/ladder.csv."""
    value = ladder.pivot(index=["catalogue", "masked"], columns="method", values="value")
    return pd.DataFrame({name: value[method] - value[before] for name, (method, before) in STEPS.items()})


def prediction(answer: Any) -> str:
    """8.1: -> three signs, of what each step adds to masked titles less what it adds to whole ones."""
    result = call(answer)
    try:
        signs = [float(sign) for sign in result]
    except (TypeError, ValueError):
        raise Hint(f"three signs were expected, for pairs, names and picture; this is {result!r:.40}") from None
    if len(signs) != 3:
        raise Hint(f"three signs were expected, for pairs, names and picture; these are {len(signs)}")
    if not set(signs) <= {1, 0, -1}:
        raise Hint("1, 0 or -1 for each: the sign, not its size")
    mean = steps(pd.read_csv(ROOT / "figures" / "law" / "ladder.csv")).groupby("masked").mean()
    change = mean.loc[1] - mean.loc[0]
    hits = int((np.sign(change.where(change.abs() > SAME, 0)) == signs).sum())
    return f"it is written down, and no guess is wrong here. The study agrees with {hits} of 3; leave them as they are."


BY_HAND = (
    ("Zola Red Lipstick", "Zola Red", "'lipstick' is a class word, and at share 1 all of them go"),
    ("ZOLA LIPSTICK Set", "ZOLA Set", "case matters not, but what is left keeps its own: 'ZOLA'"),
    ("Two Zola Lipsticks", "Two Zola", "a plural's s matters not: 'Lipsticks' goes with 'lipstick'"),
    ("Balmy Day Cream", "Balmy Day Cream", "compare whole words: 'Balmy' is no class word, though it holds 'balm'"),
    ("red balm and serum", "red and", "a title may hold several class words"),
    ("Lipstick", "-", 'a title that loses all of its words is "-"'),
)
WORDS = ("lipstick", "balm", "serum")
MANY = [f"first{i} lipstick then{i} balm serum last{i}" for i in range(600)]
SHARES = (0.25, 0.5, 0.75)


def masked_titles(answer: Any) -> str:
    """8.2: titles, class_words (lower-case, without a plural's s), share -> titles, (N,)."""
    titles, expected, hints = map(list, zip(*BY_HAND, strict=True))
    for found, right, title, hint in zip(_titles(answer, titles, 1.0), expected, titles, hints, strict=True):
        if found != right:
            raise Hint(f"{title!r} became {found!r}: {hint}")
    if _titles(answer, titles, 0.0) != titles:
        raise Hint("at share 0 every title stays as it was")
    gone = {}
    for share in SHARES:
        gone[share] = np.array([_gone(*pair, share) for pair in zip(MANY, _titles(answer, MANY, share), strict=True)])
        _evenly(gone[share], share)
    for low, high in pairwise(SHARES):
        if (gone[low] & ~gone[high]).any():
            raise Hint(
                f"a word that goes at {low} is back at {high}: the numbers must be the same in each call, so make the "
                "generator in the function, with a seed, and draw in the same order"
            )
    return "each class word goes by a number of its own, and what goes at one share goes at every larger one."


def _titles(answer: Any, titles: list[str], share: float) -> list[str]:
    result = call(answer, list(titles), set(WORDS), share)
    if isinstance(result, str) or len(found := list(result)) != len(titles):
        raise Hint(f"{len(titles)} titles need {len(titles)} titles in a list")
    if wrong := [title for title in found if not isinstance(title, str)]:
        raise Hint(f"a title is a string; this is {wrong[0]!r:.40}: join the words with a blank")
    return found


def _gone(before: str, after: str, share: float) -> list[bool]:
    """Of each of WORDS, whether it is missing in ``after``."""
    if [w for w in before.split() if w not in WORDS] != [w for w in after.split() if w not in WORDS]:
        raise Hint(f"at share {share} {before!r} became {after!r}: only class words may go, the others stay in order")
    return [word not in after.split() for word in WORDS]


def _evenly(gone: np.ndarray, share: float) -> None:
    """Whether the words (titles, words) went each by a draw of its own. Raises: Hint."""
    if gone.all() or not gone.any():
        raise Hint(f"at share {share} {'all' if gone.all() else 'none'} of the class words go")
    if set(gone.mean(axis=0)) <= {0, 1}:
        raise Hint(
            f"at share {share} a word goes in all titles or in none; each occurrence has a number of its own (is the "
            "generator made anew for each title?)"
        )
    if np.isin(gone.sum(axis=1), (0, len(WORDS))).all():
        raise Hint("the class words of a title go all together; draw a number for each word, not for each title")
    if abs(gone.mean() - share) > 0.06:
        if abs(gone.mean() - (1 - share)) <= 0.06:
            raise Hint("upside down: a word goes where its number is below `share`")
        raise Hint(f"at share {share} {gone.mean():.0%} of the class words are gone")


FRACTIONS = np.array([0.05, 0.1, 0.2, 0.4])
RISING = np.array([0.4, 0.5, 0.6, 0.7])
CURVES = {  # hint to the two curves, origin and the method, on which it shows
    "": (RISING, np.array([0.45, 0.575, 0.63, 0.69])),
    "where origin never gets there its last fraction counts, and below its first point the first": (
        RISING,
        np.array([0.35, 0.38, 0.75, 0.8]),
    ),
    "origin's curve may fall by chance; make it monotone first, by np.maximum.accumulate": (
        np.array([0.4, 0.52, 0.48, 0.6]),
        np.array([0.5, 0.55, 0.45, 0.59]),
    ),
}


def label_factors(answer: Any) -> str:
    """8.3: fractions (F,) ascending, accuracy of origin (F,) and of a method (F,) -> factors (F,)."""
    for hint, curves in CURVES.items():
        found = np.asarray(call(answer, FRACTIONS.copy(), *(curve.copy() for curve in curves)), dtype=float)
        right = _factors(*curves)
        if found.shape != right.shape:
            raise Hint(f"{len(right)} fractions need {len(right)} factors; yours: shape {found.shape}")
        if np.allclose(found, right, rtol=1e-3):
            continue
        origin, method = curves
        there = right * FRACTIONS
        for mistake, wrong in {
            "linear in the fraction; the curves are drawn on a logarithmic axis, so go by log(fraction)": np.interp(
                method, np.maximum.accumulate(origin), FRACTIONS
            )
            / FRACTIONS,
            "this is the fraction where origin is as accurate; how many times your own fraction is it?": there,
            "upside down: the labels that origin needs, over those that the method has": 1 / right,
            "this is the factor's logarithm": np.log(right),
            "this is the gain in accuracy; go to the right, not up": method - origin,
        }.items():
            if np.allclose(found, wrong, rtol=1e-3):
                raise Hint(mistake)
        raise Hint(
            hint
            or f"for origin {origin} and a method of {method} at {FRACTIONS}, {right.round(3)} was expected, yours "
            f"gives {found.round(3)}"
        )
    return "as `metrics.label_efficiency` reads it; a factor of 1.6 means that three labels in eight are saved."


def _factors(origin: np.ndarray, method: np.ndarray) -> np.ndarray:
    """By the library, from a table of results with one seed."""
    parts = [
        pd.DataFrame({"dataset": "it", "method": name, "fraction": FRACTIONS, "seed": 0, "accuracy": accuracy})
        for name, accuracy in (("origin", origin), ("method", method))
    ]
    return metrics.label_efficiency(pd.concat(parts), n=1)["factor"].to_numpy()


CHECKS: dict[str, Callable[[Any], str]] = {"8.1": prediction, "8.2": masked_titles, "8.3": label_factors}
