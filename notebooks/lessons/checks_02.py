"""Checks of lesson 2, "InfoNCE from scratch": the loss, its printed form in float32, its gradient."""

from typing import Any

import torch
from lesson_tools import Hint, call
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from icssl_lib import losses


def info_nce(answer: Any) -> str:
    """2.1: query, key (N, D), temperature -> the standard loss."""
    for n, temperature in ((2, 1.0), (5, 0.3), (12, 0.1)):
        query, key = _pairs(n)
        value = _scalar(call(answer, query, key, temperature))
        right = losses.info_nce(query, key, temperature, positive_in_denominator=True)
        if torch.isclose(value, right, atol=1e-4):
            continue
        q, k = normalize(query, dim=1), normalize(key, dim=1)
        target = torch.arange(n)
        for wrong, hint in (
            (-right, "the sign: a loss falls as the positive's share rises, so it is minus the logarithm"),
            (n * right, f"this is the sum over the {n} rows; take their mean"),
            (cross_entropy(query @ key.T / temperature, target), "s is the cosine: divide each row by its length"),
            (cross_entropy(q @ k.T, target), "the temperature has no effect; divide s by it"),
            (cross_entropy(q @ k.T * temperature, target), "divide s by the temperature; you multiplied"),
            (cross_entropy(k @ q.T / temperature, target), "softmax over the keys of a query: along the rows, dim=1"),
            (losses.info_nce(query, key, temperature), "this is the printed form; here the positive counts as well"),
        ):
            if torch.isclose(value, wrong, atol=1e-4):
                raise Hint(hint)
        raise Hint(f"for a batch of {n} and tau = {temperature} the loss is {right:.4f}, yours {value:.4f}")
    return "it agrees with the library's loss for three batches and temperatures."


def printed(answer: Any) -> str:
    """2.2: query, key (N, D), temperature -> Eq. 6 as printed, finite in float32 at tau = 0.005."""
    for n, temperature in ((2, 1.0), (6, 0.1), (12, 0.005)):
        query, key = _pairs(n)
        value = _scalar(call(answer, query, key, temperature), finite=temperature > 0.01)
        right = losses.info_nce(query, key, temperature)
        if torch.isclose(value, right, rtol=1e-3, atol=1e-3):
            continue
        logits = normalize(query, dim=1) @ normalize(key, dim=1).T / temperature
        zeroed = (logits * (1 - torch.eye(n))).logsumexp(dim=1) - logits.diag()
        if not torch.isfinite(value):
            raise Hint(
                f"at tau = {temperature} the loss is {value.item()}: exp(1 / tau) is beyond float32, and the logarithm "
                "of the positive's share falls into 0 or inf. Take logsumexp of the logits instead"
            )
        if torch.isclose(value, losses.info_nce(query, key, temperature, positive_in_denominator=True), atol=1e-3):
            raise Hint("the positive still stands in the denominator; Eq. 6 sums over j != i")
        if torch.isclose(value, zeroed.mean(), atol=1e-3):
            raise Hint("a logit of 0 still counts, as exp(0) = 1; what is to be left out must be -inf")
        raise Hint(f"for a batch of {n} and tau = {temperature} the loss is {right:.4f}, yours {value:.4f}")
    return "it is Eq. 6 as printed, and finite at tau = 0.005, where exp(1 / tau) is not."


def gradient(answer: Any) -> str:
    """2.3: similarity (N, N), temperature -> (N, N), the gradient of the standard loss with respect to it."""
    for n, temperature in ((2, 1.0), (4, 0.2), (9, 0.05)):
        query, key = _pairs(n)
        similarity = (normalize(query, dim=1) @ normalize(key, dim=1).T).requires_grad_()
        (right,) = torch.autograd.grad(cross_entropy(similarity / temperature, torch.arange(n)), similarity)
        value = torch.as_tensor(call(answer, similarity.detach(), temperature)).float()
        if value.shape != (n, n):
            raise Hint(f"one number for each pair: shape ({n}, {n}); yours: {tuple(value.shape)}")
        if torch.allclose(value, right, atol=1e-5, rtol=1e-4):
            continue
        p = (similarity.detach() / temperature).softmax(dim=1)
        for wrong, hint in (
            (-right, "the sign: a larger similarity of the positive lowers the loss, so its gradient is negative"),
            (n * right, "the loss is the mean over the rows: a factor 1 / N is missing"),
            (temperature * right, "the chain rule through s / tau: a factor 1 / tau is missing"),
            (n * temperature * right, "the mean over rows and s / tau each bring a factor: 1 / N and 1 / tau"),
            (p / (n * temperature), "right for the negatives; the positive's -log p has a term of its own, -1"),
        ):
            if torch.allclose(value, wrong, atol=1e-5, rtol=1e-4):
                raise Hint(hint)
        raise Hint(f"for a batch of {n} and tau = {temperature} the first row is {_row(right)}, yours {_row(value)}")
    return "it agrees with automatic differentiation for three batches and temperatures."


def _pairs(n: int) -> tuple[Tensor, Tensor]:
    """Rows of different lengths, the key of each near its query."""
    generator = torch.Generator().manual_seed(n)
    query = torch.randn(n, 8, generator=generator)
    return query, 3 * (query + 0.7 * torch.randn(n, 8, generator=generator))


def _scalar(result: Any, finite: bool = True) -> Tensor:
    try:
        value = torch.as_tensor(result).detach().float()
    except (TypeError, ValueError, RuntimeError):
        raise Hint(f"return one number, not a {type(result).__name__}") from None
    if value.shape != ():
        raise Hint(f"one number is expected, the mean over the batch; yours has shape {tuple(value.shape)}")
    if finite and not torch.isfinite(value):
        raise Hint(f"the loss is {value.item()}; is there a logarithm of 0?")
    return value


def _row(x: Tensor) -> list[float]:
    return [round(number, 3) for number in x[0].tolist()]


CHECKS = {"2.1": info_nce, "2.2": printed, "2.3": gradient}
