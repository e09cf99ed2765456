"""Contrastive losses as pure tensor functions, beside each the equation and its number in Chen & Chou (ECNLP 2022).

As printed there, the denominator leaves the positive out: the loss can be negative, and needs a batch of two."""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize


def info_nce(
    query: Tensor, key: Tensor, temperature: float, *,
    positive_in_denominator: bool = False, groups: Tensor | None = None, negatives: Tensor | None = None,
) -> Tensor:  # fmt: skip
    r"""Contrast row i of ``query`` with row i of ``key`` against the other rows of ``key`` (Eqs. 6 and 7).

    .. math:: \ell_i = -\log \frac{\exp(s(q_i, k_i)/\tau)}{\sum_{j \neq i} \exp(s(q_i, k_j)/\tau)}

    with the cosine similarity s. Computed in float32 by ``logsumexp``, whatever the inputs' precision.

    Args:
        query, key: (N, D), N >= 2. Row i of ``key`` is the positive of query i; its other rows are the negatives.
        temperature: tau > 0, dimensionless.
        positive_in_denominator: False is the printed equation; True is InfoNCE (van den Oord et al., 2018).
        groups: (N,) integers. Rows of one group (the same title) are no negatives of each other, in either tower.
        negatives: (N, D), whose row j takes the place of k_j in the denominator. None: ``key``.

    Returns: scalar mean over the rows that have a negative, 0 where none has. With all keys equal: log(N - 1), or
        log(N) with the positive included.
    Raises: ValueError: shapes differ, N < 2, or temperature <= 0."""
    _check(query, key, temperature)
    same = torch.eye(len(query), dtype=torch.bool, device=query.device)
    if groups is not None:
        same = groups[:, None] == groups[None, :]  # (N, N), true on the diagonal
    keep = ~same.all(dim=1)  # (N,): has a negative
    q, k, n = (normalize(x.float(), dim=-1) for x in (query, key, key if negatives is None else negatives))
    # Autocast would take the product to bfloat16: its rounding of s, divided by a small tau, is an error of tenths.
    with torch.autocast(query.device.type, enabled=False):
        positive = (q * k).sum(dim=1) / temperature  # (N,)
        # A row without negatives is not counted, nor masked: the logsumexp of -inf only has a NaN gradient.
        logits = (q @ n.T / temperature).masked_fill(same & keep[:, None], -torch.inf)  # (N, N)
    if positive_in_denominator:
        logits = torch.cat([positive[:, None], logits], dim=1)
    return (logits.logsumexp(dim=1) - positive).where(keep, 0).sum() / keep.sum().clamp(min=1)


def simcse(first: Tensor, second: Tensor, temperature: float, **form: bool | Tensor | None) -> Tensor:
    r"""Unsupervised SimCSE (Eq. 3; Gao et al., 2021): two dropout passes of the same titles, (N, D) each.

    .. math:: \ell_i = -\log \frac{\exp(s(t_i, t_i^+)/\tau)}{\sum_{j \neq i} \exp(s(t_i, t_j)/\tau)}

    As printed, the negatives :math:`t_j` are of the *first* pass, the positive of the second; in the standard form
    (``positive_in_denominator``) all keys are of the second, as in Gao et al. The rest, ``form``: see `info_nce`."""
    negatives = second if form.get("positive_in_denominator") else first
    return info_nce(first, second, temperature, negatives=negatives, **form)


def convirt(text: Tensor, image: Tensor, temperature: float, alpha: float, **form: bool | Tensor | None) -> Tensor:
    r"""ConVIRT (Eq. 8; Zhang et al., 2020): titles against their pictures, (N, D) each, in both directions.

    .. math:: L = \alpha\, L(t \to v) + (1 - \alpha)\, L(v \to t)

    ``alpha`` in [0, 1] is the weight of the direction text to image. The rest, and ``form``: see `info_nce`."""
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    there, back = info_nce(text, image, temperature, **form), info_nce(image, text, temperature, **form)
    return alpha * there + (1 - alpha) * back


def sigmoid(text: Tensor, image: Tensor, scale: Tensor, bias: Tensor, groups: Tensor | None = None) -> Tensor:
    r"""The sigmoid loss (Zhai et al., 2023): each of the N x N pairs is a question of its own, is it one or not?

    .. math:: L = -\frac{1}{N} \sum_{i,j} \log \sigma\left(z_{ij} (s(t_i, v_j)/\tau + b)\right)

    with z = 1 for a pair and -1 else. ``scale`` is 1/tau > 0 and ``bias`` is b: scalars (floats too), or (N,) with all
    rows equal, as of `encoders.PairScale`. Different rows of one group are left out. Returns: scalar, in nats per
    title; at least 0. Raises: ValueError: shapes differ, or N < 2. That scale > 0 is not checked: a GPU would wait."""
    _check(text, image)
    scale, bias = (torch.as_tensor(x, device=text.device).reshape(-1, 1) for x in (scale, bias))  # (1, 1) or (N, 1)
    pair = torch.eye(len(text), dtype=torch.bool, device=text.device)
    left_out = torch.zeros_like(pair) if groups is None else (groups[:, None] == groups[None, :]) & ~pair
    t, v = normalize(text.float(), dim=-1), normalize(image.float(), dim=-1)
    with torch.autocast(text.device.type, enabled=False):
        logits = t @ v.T * scale + bias  # (N, N)
    return -logsigmoid(torch.where(pair, logits, -logits)).masked_fill(left_out, 0).sum() / len(text)


def _check(query: Tensor, key: Tensor, temperature: float = 1) -> None:
    if query.shape != key.shape or query.ndim != 2:
        raise ValueError(f"{tuple(query.shape)} and {tuple(key.shape)} must be of one shape (N, D)")
    if len(query) < 2:
        raise ValueError("a batch of at least 2 is needed: the other rows are the negatives")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared distance on the unit sphere of pairs, row i of each (N, D): 0 (best) to 4 (Wang & Isola, 2020)."""
    return (normalize(first.float(), dim=-1) - normalize(second.float(), dim=-1)).square().sum(dim=1).mean()


def uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """Log of the mean Gaussian potential over distinct pairs of (N, D) rows, N >= 2, on the unit sphere (Wang & Isola,
    2020): in [-4t, 0]; 0 when all rows coincide, lower is better."""
    return torch.pdist(normalize(x.float(), dim=-1)).square().mul(-t).exp().mean().log()
