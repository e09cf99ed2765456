"""Checks of lesson 5: equal titles in a batch, the mask, gradient caching by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lesson_tools import Hint, call
from torch import Tensor, nn

from icssl_lib import losses


def expected_pairs(answer: Any) -> str:
    """5.1: groups (n,), batch size N -> expected pairs of equal titles in a batch drawn without replacement."""
    rng = np.random.default_rng(51)
    if not np.isclose(call(answer, np.arange(20), 8), 0, atol=1e-12):
        raise Hint("20 different titles hold no pair of equal ones, whatever the batch")
    for n, different, size in ((40, 12, 10), (300, 200, 32), (25, 5, 25)):
        groups = rng.integers(0, different, n)
        pairs = sum(m * (m - 1) / 2 for m in np.bincount(groups))
        right = pairs * size * (size - 1) / (n * (n - 1))
        found = float(call(answer, groups, size))
        if np.isclose(found, right, rtol=1e-6):
            continue
        if np.isclose(found, 2 * right, rtol=1e-6):
            raise Hint("twice too many: you count (a, b) and (b, a); a pair has no order")
        if np.isclose(found, pairs, rtol=1e-6):
            raise Hint("these are the pairs of the whole catalogue; a batch holds only some of them")
        if any(np.isclose(found, pairs * wrong, rtol=1e-6) for wrong in (size**2 / n**2, size / n)):
            raise Hint("both products of a pair must be drawn: the first with N/n, and the second when one is gone?")
        if np.isclose(found, pairs * size * (size - 1) / n**2, rtol=1e-6):
            raise Hint("nearly: a product that was drawn is not drawn again, so the second is one of n - 1")
        raise Hint(
            f"n = {n}, N = {size}, {pairs:.0f} pairs in the catalogue: {right:.3f} expected, you have {found:.3f}; "
            "add up, over all pairs of the catalogue, the chance that both are in the batch"
        )
    return "the number of pairs in a batch grows with its square, so large batches need the mask most."


def masked_info_nce(answer: Any) -> str:
    """5.2: query, key (N, D), temperature, groups (N,) -> the printed loss, equal titles masked."""
    generator = torch.Generator().manual_seed(52)
    query, key = (torch.randn(12, 6, generator=generator) for _ in range(2))
    pairs = torch.tensor([0, 1, 2, 3, 0, 5, 6, 1, 8, 9, 10, 0])
    for groups, temperature in ((torch.arange(12), 0.5), (pairs, 0.5), (pairs, 0.1)):
        right = losses.info_nce(query, key, temperature, groups=groups)
        _same_loss(call(answer, query, key, temperature, groups), right, query, key, temperature, groups)
    for groups in (torch.tensor([4, 4, 4, 7]), torch.tensor([4, 4, 4, 4, 4, 2])):  # every row has a negative
        q, k = query[: len(groups)], key[: len(groups)]
        _same_loss(call(answer, q, k, 0.2, groups), losses.info_nce(q, k, 0.2, groups=groups), q, k, 0.2, groups)
    leaf = query.clone().requires_grad_()
    loss = call(answer, leaf, key, 0.005, pairs)
    if not loss.requires_grad:
        raise Hint("the value is right, but no gradient flows back to the titles: keep to torch's operations")
    loss.backward()
    expected = query.clone().requires_grad_()
    losses.info_nce(expected, key, 0.005, groups=pairs).backward()
    if not torch.allclose(leaf.grad, expected.grad, rtol=1e-3, atol=1e-5):
        raise Hint("the value is right, the gradient at a temperature of 0.005 is not; use logsumexp")
    return "equal titles are neither pushed apart nor counted, and value and gradient are the library's."


def _same_loss(found: Any, right: Tensor, query: Tensor, key: Tensor, temperature: float, groups: Tensor) -> None:
    """Raises: Hint: another value, with the mistake that gives it where it is a known one."""
    if not isinstance(found, Tensor) or found.ndim:
        raise Hint("one number was expected, a tensor without dimensions: the mean over the titles of the batch")
    if torch.allclose(found, right, rtol=1e-4, atol=1e-5):
        return
    if not torch.isfinite(found):
        raise Hint(f"the loss is {found.item()}: fill masked places with -inf before logsumexp, and never a whole row")
    known = {
        "this is the loss without a mask: where do you use `groups`?": losses.info_nce(query, key, temperature),
        "this is InfoNCE: as printed, the sum leaves the positive out": losses.info_nce(
            query, key, temperature, positive_in_denominator=True, groups=groups
        ),
        "this is the sum over the batch, not the mean": right * len(groups),
    }
    for hint, wrong in known.items():
        if not torch.allclose(wrong, right) and torch.allclose(found, wrong, rtol=1e-4, atol=1e-5):
            raise Hint(hint)
    raise Hint(
        f"{right.item():.4f} expected for groups {groups.tolist()}, you have {found.item():.4f}; s is the cosine, "
        "row i and column j are masked where their groups are equal, the diagonal among them"
    )


def cached_step(answer: Any) -> str:
    """5.3: tower, x (N, F), loss_of, chunk size -> the whole batch's loss, its gradient left in the parameters."""
    x = torch.randn(10, 5, generator=torch.Generator().manual_seed(53))

    def loss_of(z: Tensor) -> Tensor:
        return losses.info_nce(z, z.roll(1, dims=1), 0.2)

    plain, (expected, _) = _gradients(lambda tower: _plain(tower, x, loss_of))
    for size in (4, 5, 10):
        loss, (found, most) = _gradients(lambda tower, size=size: call(answer, tower, x, loss_of, size))
        if found is None:
            raise Hint(
                "the tower's parameters have no gradient: send each chunk through again, with a graph, and pass on"
            )
        if most > size:
            raise Hint(f"{most} rows were held in one graph, {size} allowed: embed first under torch.no_grad()")
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-6):
            _, (wrong, _) = _gradients(lambda tower, size=size: _by_chunk(tower, x, loss_of, size))
            if torch.allclose(found, wrong, rtol=1e-3, atol=1e-6):
                raise Hint(
                    "you take the loss of each chunk, whose titles have few negatives; take that of all rows once"
                )
            away = (found.norm() / expected.norm()).item()
            raise Hint(
                f"in chunks of {size} of 10 rows the gradient is not the whole batch's (its length is {away:.2f} times "
                "that): give each chunk its own rows of `leaf.grad`, the last one may be short"
            )
        if not torch.allclose(torch.as_tensor(loss).detach(), plain.detach(), rtol=1e-4):
            raise Hint("the gradient is right; return the loss of the whole batch as well")
    return "the whole batch's gradient, with the graph of one chunk at a time."


def _gradients(step: Callable[[nn.Module], Any]) -> tuple[Any, tuple[Tensor | None, int]]:
    """What ``step`` returns on a tower of fixed weights, the gradient it leaves, most rows that it ran with a graph."""
    with torch.random.fork_rng():
        torch.manual_seed(530)
        tower = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 6))
    rows = [0]
    tower.register_forward_hook(lambda _, __, z: rows.append(len(z)) if z.requires_grad else None)
    result = step(tower)
    missing = any(p.grad is None for p in tower.parameters())
    return result, (None if missing else torch.cat([p.grad.flatten() for p in tower.parameters()]), max(rows))


def _plain(tower: nn.Module, x: Tensor, loss_of: Callable[[Tensor], Tensor]) -> Tensor:
    loss = loss_of(tower(x))
    loss.backward()
    return loss


def _by_chunk(tower: nn.Module, x: Tensor, loss_of: Callable[[Tensor], Tensor], size: int) -> None:
    for chunk in x.split(size):
        if len(chunk) > 1:
            loss_of(tower(chunk)).backward()


CHECKS: dict[str, Callable[[Any], str]] = {"5.1": expected_pairs, "5.2": masked_info_nce, "5.3": cached_step}
