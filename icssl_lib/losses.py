"""Contrastive losses as pure tensor functions, the equation beside each.

Equation numbers are those of Chen & Chou (ECNLP 2022). As printed there, the denominator leaves the positive
out: the loss can be negative, and is undefined for a batch of one.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, normalize


def info_nce(
    query: Tensor,
    key: Tensor,
    temperature: float,
    *,
    positive_in_denominator: bool = False,
    groups: Tensor | None = None,
) -> Tensor:
    r"""Contrast row i of ``query`` with row i of ``key`` against the other rows of ``key`` (Eqs. 6 and 7).

    .. math:: \ell_i = -\log \frac{\exp(s(q_i, k_i)/\tau)}{\sum_{j \neq i} \exp(s(q_i, k_j)/\tau)}

    with the cosine similarity s. Computed in float32 by ``logsumexp``, whatever the inputs' precision.

    Args:
        query: (N, D), N >= 2.
        key: (N, D). Row i is the positive of query i; the other rows are its negatives.
        temperature: tau > 0, dimensionless.
        positive_in_denominator: False is the printed equation; True is InfoNCE (van den Oord et al., 2018).
        groups: (N,) integers. Rows of one group (the same title) are no negatives of each other.

    Returns:
        Scalar mean over the rows that have a negative. With all keys equal: log(N - 1), or log(N) with the
        positive included.

    Raises:
        ValueError: shapes differ, N < 2, temperature <= 0, or no row has a negative.
    """
    return _contrast(query, key, key, temperature, positive_in_denominator, groups)


def simcse(
    first: Tensor,
    second: Tensor,
    temperature: float,
    *,
    positive_in_denominator: bool = False,
    groups: Tensor | None = None,
) -> Tensor:
    r"""Unsupervised SimCSE (Eq. 3; Gao et al., 2021): two dropout passes of the same titles.

    .. math:: \ell_i = -\log \frac{\exp(s(t_i, t_i^+)/\tau)}{\sum_{j \neq i} \exp(s(t_i, t_j)/\tau)}

    As printed, the negatives :math:`t_j` are of the *first* pass, the positive of the second; in the standard
    form (``positive_in_denominator``) all keys are of the second pass, as Gao et al. have it.

    Args:
        first: (N, D), N >= 2, one dropout pass.
        second: (N, D), another dropout pass of the same titles.
        temperature: tau > 0, dimensionless.
        positive_in_denominator: False is the printed equation; True is InfoNCE.
        groups: (N,) integers. Rows of one group (the same title) are no negatives of each other.

    Returns:
        Scalar mean over the rows that have a negative.

    Raises:
        ValueError: as `info_nce`.
    """
    negatives = second if positive_in_denominator else first
    return _contrast(first, second, negatives, temperature, positive_in_denominator, groups)


def convirt(
    text: Tensor,
    image: Tensor,
    temperature: float,
    alpha: float,
    *,
    positive_in_denominator: bool = False,
    groups: Tensor | None = None,
) -> Tensor:
    r"""ConVIRT (Eq. 8; Zhang et al., 2020): titles against pictures, in both directions.

    .. math:: L = \alpha\, L(t \to v) + (1 - \alpha)\, L(v \to t)

    Args:
        text: (N, D), N >= 2.
        image: (N, D). Row i is the picture of title i.
        temperature: tau > 0, dimensionless.
        alpha: in [0, 1], the weight of the direction text to image.
        positive_in_denominator: False is the printed equation; True is InfoNCE.
        groups: (N,) integers. Rows of one group (the same title) are no negatives of each other, either way.

    Returns:
        Scalar.

    Raises:
        ValueError: alpha outside [0, 1], or as `info_nce`.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be in [0, 1], got {alpha}")
    options = {"positive_in_denominator": positive_in_denominator, "groups": groups}
    forward = info_nce(text, image, temperature, **options)
    backward = info_nce(image, text, temperature, **options)
    return alpha * forward + (1 - alpha) * backward


def sigmoid(text: Tensor, image: Tensor, temperature: float, bias: float, *, groups: Tensor | None = None) -> Tensor:
    r"""The sigmoid loss (Zhai et al., 2023): each of the N x N pairs is a question of its own, is it one or not?

    .. math:: L = -\frac{1}{N} \sum_{i,j} \log \sigma\left(z_{ij} (s(t_i, v_j)/\tau + b)\right)

    with z = 1 for a pair and -1 else, and the cosine similarity s. Zhai et al. learn tau and b; here both are given.

    Args:
        text: (N, D), N >= 2.
        image: (N, D). Row i is the picture of title i.
        temperature: tau > 0, dimensionless.
        bias: b, dimensionless; they begin at tau = 0.1, b = -10.
        groups: (N,) integers. Rows of one group (the same title) are neither a pair nor none, and are left out.

    Returns: scalar, in nats per title; at least 0.
    Raises: ValueError: shapes differ, N < 2, or temperature <= 0.
    """
    _check(text, temperature, images=image)
    pair = torch.eye(len(text), dtype=torch.bool, device=text.device)
    left_out = torch.zeros_like(pair) if groups is None else (groups[:, None] == groups[None, :]) & ~pair
    t, v = normalize(text.float(), dim=-1), normalize(image.float(), dim=-1)
    with torch.autocast(text.device.type, enabled=False):
        logits = t @ v.T / temperature + bias  # (N, N)
    return -logsigmoid(torch.where(pair, logits, -logits)).masked_fill(left_out, 0).sum() / len(text)


def _check(query: Tensor, temperature: float, **others: Tensor) -> None:
    for name, x in others.items():
        if query.shape != x.shape or query.ndim != 2:
            raise ValueError(f"query {tuple(query.shape)} and {name} {tuple(x.shape)} must be of one shape (N, D)")
    if len(query) < 2:
        raise ValueError("a batch of at least 2 is needed: the other rows are the negatives")
    if temperature <= 0:
        raise ValueError(f"temperature must be above 0, got {temperature}")


def _contrast(
    query: Tensor,
    positives: Tensor,
    others: Tensor,
    temperature: float,
    positive_in_denominator: bool,
    groups: Tensor | None,
) -> Tensor:
    """Mean of logsumexp(negatives) - positive; row i's negatives are the rows of ``others`` outside its group."""
    _check(query, temperature, positives=positives, negatives=others)
    same = torch.eye(len(query), dtype=torch.bool, device=query.device)
    if groups is not None:
        same = groups[:, None] == groups[None, :]  # (N, N), true on the diagonal
    keep = ~same.all(dim=1)  # (N,): has a negative
    recording = query.is_cuda and torch.cuda.is_current_stream_capturing()  # no time to wait for an answer
    if groups is not None and not recording and not keep.any():
        raise ValueError("no row has a negative: all rows of the batch are of one group")
    q, p, o = (normalize(x.float(), dim=-1) for x in (query, positives, others))
    # Autocast would take the product to bfloat16: its rounding of s, divided by a small tau, is an error of tenths.
    with torch.autocast(query.device.type, enabled=False):
        positive = (q * p).sum(dim=1) / temperature  # (N,)
        # A row without negatives is not counted, nor masked: the logsumexp of -inf only has a NaN gradient.
        logits = (q @ o.T / temperature).masked_fill(same & keep[:, None], -torch.inf)  # (N, N)
    if positive_in_denominator:
        logits = torch.cat([positive[:, None], logits], dim=1)
    return (logits.logsumexp(dim=1) - positive).where(keep, 0).sum() / keep.sum()


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Mean squared distance of positive pairs on the unit sphere (Wang & Isola, 2020); 0 is best.

    Args: first, second: (N, D), row i of each is a positive pair. Returns: scalar in [0, 4].
    """
    return (normalize(first.float(), dim=-1) - normalize(second.float(), dim=-1)).square().sum(dim=1).mean()


def uniformity(x: Tensor, t: float = 2.0) -> Tensor:
    """Log of the mean Gaussian potential over distinct pairs on the unit sphere (Wang & Isola, 2020); lower is better.

    Args: x: (N, D), N >= 2. Returns: scalar in [-4t, 0]; 0 when all rows coincide.
    """
    return torch.pdist(normalize(x.float(), dim=-1)).square().mul(-t).exp().mean().log()
