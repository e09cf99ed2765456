"""Checks of lesson 6: macro-F1 by hand, probabilities under another prior, the logit-adjusted loss."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lesson_tools import Hint, call
from torch import Tensor
from torch.nn.functional import cross_entropy

from icssl_lib import metrics


def my_macro_f1(answer: Any) -> str:
    """6.1: label, predicted (N,), labels -> mean F1 over those of ``labels`` that have a true instance."""
    rng = np.random.default_rng(61)
    names = np.array(["balm", "mirror", "razor", "soap", "wig"])
    small = ["balm", "balm", "balm", "soap"], ["balm", "balm", "soap", "balm"], ["balm", "soap"]
    cases = [tuple(np.array(part) for part in small)]
    for n, drawn in ((30, names), (40, names[:4])):  # no wig among the second's labels
        label = rng.choice(drawn, n)
        predicted = np.where(rng.random(n) < 0.6, label, rng.choice(names[:4], n))  # nobody says wig: its F1 is 0
        cases += [(label, predicted, names), (label, predicted, names[2:])]
    for label, predicted, labels in cases:
        found = float(call(answer, label, predicted, labels))
        if not np.isclose(found, metrics.macro_f1(label, predicted, labels)):
            raise Hint(_f1_hint(found, label, predicted, labels))
    return "each class counts the same, however few products it has."


def _f1_hint(found: float, label: np.ndarray, predicted: np.ndarray, labels: np.ndarray) -> str:
    """The mistake that gives ``found``, or the right number."""
    counts = [
        (np.sum((label == c) & (predicted == c)), np.sum(label == c), np.sum(predicted == c))
        for c in labels
        if c in label
    ]
    f1 = [2 * hit / (true + called) for hit, true, called in counts]
    if np.isnan(found):
        return "nan: a class that is never predicted has 2 TP + FP + FN > 0, so its F1 is 0; do not go by precision"
    if np.isclose(found, np.mean(label == predicted)):
        return "this is accuracy; compute F1 for each class, then their plain mean"
    if np.isclose(found, np.mean([hit / true for hit, true, _ in counts])):
        return "this is the mean recall: false positives must count as well"
    if np.isclose(found, np.sum(f1) / len(labels)):
        return "a class without a true instance among these items is left out of the mean"
    if np.isclose(found, np.average(f1, weights=[true for _, true, _ in counts])):
        return "this is weighted by the classes' sizes, which hides the tail again; take the plain mean"
    return (
        f"{np.mean(f1):.4f} expected for label {label[:4]}..., predicted {predicted[:4]}..., labels {labels}, you have "
        f"{found:.4f}; count TP, FP and FN over all items, also those of other classes"
    )


def to_prior(answer: Any) -> str:
    """6.2: probability (N, C), prior of Train (C,), prior of the shop (C,) -> probability in the shop (N, C)."""
    rng = np.random.default_rng(62)
    for classes in (2, 5):
        title_given_class = rng.dirichlet(np.ones(6), size=classes)  # p(x | y): six possible titles
        train, shop = rng.dirichlet(np.ones(classes), size=2)
        given, right = (_posterior(title_given_class, prior) for prior in (train, shop))
        found = np.asarray(call(answer, given.copy(), train, shop), dtype=float)
        if found.shape != right.shape:
            raise Hint(f"an array of shape {right.shape} was expected, you have {found.shape}")
        if np.allclose(found, right):
            continue
        sums = found.sum(axis=1, keepdims=True)
        if np.allclose(found / np.where(sums == 0, 1, sums), right):
            raise Hint("each row must sum to 1 again: divide by its sum")
        for hint, weight in {
            "the ratio is upside down: what the shop has more of must become likelier": train / shop,
            "classes are now weighted by the shop's prior, but Train's is still in there": shop,
            "Train's prior is gone, but the shop's is not in yet": 1 / train,
        }.items():
            wrong = given * weight
            if np.allclose(found, wrong) or np.allclose(found, wrong / wrong.sum(axis=1, keepdims=True)):
                raise Hint(hint)
        raise Hint(
            "not what Bayes' rule gives: p(y | x) is p(x | y) p(y) / p(x), and only p(y) is another in the shop; "
            "multiply and divide each column, then make the rows sum to 1"
        )
    return "Bayes' rule with the other prior; logit adjustment is the case where the shop has each class equally often."


def _posterior(title_given_class: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """p(y | x) by Bayes' rule: p(x | y) (C, X), p(y) (C,) -> (X, C)."""
    joint = (title_given_class * prior[:, None]).T
    return joint / joint.sum(axis=1, keepdims=True)


def adjusted_loss(answer: Any) -> str:
    """6.3: logits (N, C), target (N,), prior (C,), strength -> Menon et al. (2021), Eq. 10, mean over the batch."""
    generator = torch.Generator().manual_seed(63)
    logits, target = torch.randn(8, 5, generator=generator), torch.tensor([0, 0, 0, 1, 2, 1, 0, 4])
    prior = torch.tensor([0.5, 0.25, 0.15, 0.06, 0.04])
    for strength in (0.0, 1.0, 0.5):
        found = call(answer, logits, target, prior, strength)
        if not isinstance(found, Tensor) or found.ndim:
            raise Hint("one number was expected, a tensor without dimensions: the mean over the batch")
        right = cross_entropy(logits + strength * prior.log(), target)
        if torch.allclose(found, right, rtol=1e-4):
            continue
        for hint, wrong in {
            "the prior plays no part: where is `strength`?": cross_entropy(logits, target),
            "the sign is that of prediction time; in training the prior is added, so that the rare class must earn "
            "a higher logit": cross_entropy(logits - strength * prior.log(), target),
            "the prior itself is added; its log belongs there": cross_entropy(logits + strength * prior, target),
            "this is the sum over the batch, not the mean": right * len(target),
            "these are weighted classes (1 / prior), another remedy": cross_entropy(logits, target, weight=1 / prior),
        }.items():
            if torch.allclose(found, wrong, rtol=1e-4):
                raise Hint(hint)
        raise Hint(f"at strength {strength}: {right.item():.4f} expected, you have {found.item():.4f}")
    large = call(answer, 1000 * logits, target, prior, 1.0)
    if not torch.isfinite(large):
        raise Hint("logits of a thousand give inf or nan: use cross_entropy or log_softmax, not the log of a softmax")
    leaf = logits.clone().requires_grad_()
    loss = call(answer, leaf, target, prior, 1.0)
    if not loss.requires_grad:
        raise Hint("the value is right, but no gradient flows back to the logits: keep to torch's operations")
    return "a classifier trained with this loss needs no adjustment when it predicts."


CHECKS: dict[str, Callable[[Any], str]] = {"6.1": my_macro_f1, "6.2": to_prior, "6.3": adjusted_loss}
