"""Checks of lesson 4, ConVIRT: both directions of the loss, the shuffled control, recall."""

from typing import Any

import numpy as np
import torch
from lesson_tools import Hint, call, compare
from torch import Tensor

from icssl_lib import losses


def both_directions(answer: Any) -> str:
    """4.1: text, image (N, D), temperature, alpha -> Eq. 8."""
    generator = torch.Generator().manual_seed(0)
    text, image = (torch.randn(6, 4, generator=generator) for _ in range(2))
    forward, backward = losses.info_nce(text, image, 0.2), losses.info_nce(image, text, 0.2)
    for alpha in (0.75, 0.1):
        mistakes = {
            "alpha weighs text to image; you gave it to image to text": (1 - alpha) * forward + alpha * backward,
            "alpha has no effect: that is the plain mean of both directions": (forward + backward) / 2,
            "that is the direction text to image alone": forward,
            "that is the direction image to text alone": backward,
            "the two weights sum to 1: the second is 1 - alpha": alpha * forward + alpha * backward,
            "both directions are summed without their weights": forward + backward,
            "the weight 1 - alpha is missing in the second direction": alpha * forward + backward,
            "that is the standard form; Eqs. 6 and 7 leave the positive out": losses.convirt(
                text, image, 0.2, alpha, positive_in_denominator=True
            ),
        }
        compare(call(answer, text, image, 0.2, alpha), losses.convirt(text, image, 0.2, alpha), mistakes)
    return "alpha from title to picture, 1 - alpha from picture to title."


def shuffled(answer: Any) -> str:
    """4.2: rows (n,), seed -> the same rows, none in its place."""
    for n in (2, 3, 4, 50):
        rows = np.arange(100, 100 + n)
        for seed in range(20):
            given = rows.copy()
            result = np.asarray(call(answer, given, seed))
            if not np.array_equal(given, rows):
                raise Hint("the rows that you were given changed; shuffle a copy")
            if result.shape != rows.shape:
                raise Hint(f"{n} rows go in, {result.size} come out")
            if not np.array_equal(np.sort(result), rows):
                raise Hint("some pictures are used twice and others never: draw an order, not each picture by itself")
            if own := int((result == rows).sum()):
                raise Hint(
                    f"with {n} products and seed {seed}, {own} kept its own picture. Shuffling alone does that about "
                    "once, whatever n is: let each take the picture of the next in a random order"
                )
    if all(np.array_equal(answer(rows, seed), answer(rows, 0)) for seed in range(1, 5)):
        raise Hint("the seed has no effect")
    if not np.array_equal(answer(rows, 1), answer(rows, 1)):
        raise Hint("the same seed gives another order the second time: use np.random.default_rng(seed)")
    return "each picture is used once, nobody keeps its own, and a seed gives the same control again."


def recall(answer: Any) -> str:
    """4.3: text, image (N, D), k -> share of titles whose picture is among the k nearest."""
    axes = torch.eye(5)
    for image, k, expected, hint in (
        (axes, 1, 1, "when each title is equal to its picture, recall at 1 is 1"),
        (axes.roll(1, 0), 1, 0, "when each title is equal to another product's picture, recall at 1 is 0"),
        (axes.roll(1, 0), 5, 1, "among all 5 pictures the own one is found for certain"),
    ):
        if abs(float(call(answer, axes, image, k)) - expected) > 1e-6:
            raise Hint(f"{hint}; yours is {float(answer(axes, image, k)):.2f}")
    generator = torch.Generator().manual_seed(1)
    text = torch.randn(60, 8, generator=generator)
    image = (text + 1.5 * torch.randn(60, 8, generator=generator)) * torch.linspace(0.2, 5, 60)[:, None]
    for k in (1, 5):
        mistakes = {
            "the longest pictures win: s is the cosine, divide each row by its length": _recall(text @ image.T, k),
            "that is picture to title: each title (row) ranks the pictures": _recall(_cosine(text, image).T, k),
            f"that is recall at {k - 1}: the first rank is 1": _recall(_cosine(text, image), k - 1),
            f"that is recall at {k + 1}: the first rank is 1": _recall(_cosine(text, image), k + 1),
            "that is a count; divide it by the number of titles": 60 * _recall(_cosine(text, image), k),
        }
        compare(call(answer, text, image, k), _recall(_cosine(text, image), k), mistakes)
    return "title to picture, by cosine, on random pairs and on pairs whose recall is known."


def _cosine(text: Tensor, image: Tensor) -> Tensor:
    return torch.nn.functional.normalize(text, dim=1) @ torch.nn.functional.normalize(image, dim=1).T


def _recall(similarity: Tensor, k: int) -> float:
    """Share of rows (N, N) whose diagonal is among the k largest."""
    rank = (similarity > similarity.diagonal()[:, None]).sum(dim=1) + 1
    return (rank <= k).float().mean().item()


CHECKS = {"4.1": both_directions, "4.2": shuffled, "4.3": recall}
