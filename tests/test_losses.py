"""The losses against the paper's equations in plain Python loops that share no code with the library."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from icssl_lib import losses
from icssl_lib.encoders import PairScale


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(y * y for y in b))


def equation(query, positives, negatives, tau: float, *, standard: bool, groups=None) -> float:
    """Mean over i of -log( exp(s(q_i,p_i)/tau) / sum_j exp(s(q_i,n_j)/tau) ), j != i as printed."""
    n, total, counted = len(query), 0.0, 0
    for i in range(n):
        others = [j for j in range(n) if (j != i if groups is None else groups[j] != groups[i])]
        if not others:
            continue
        own = cosine(query[i], positives[i]) / tau
        terms = [cosine(query[i], negatives[j]) / tau for j in others] + ([own] if standard else [])
        top = max(terms)  # a sum of exp(1/0.01) does not fit into a float
        total += top + math.log(sum(math.exp(t - top) for t in terms)) - own
        counted += 1
    return total / counted


def vectors(n: int, d: int, seed: int, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).to(dtype).requires_grad_()


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("tau", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("n", [2, 3, 16])
def test_losses_equal_the_equations(n, tau, standard):
    a, b = vectors(n, 8, 1), vectors(n, 8, 2)
    x, y = a.tolist(), b.tolist()
    form = {"positive_in_denominator": standard}
    close = {"rel": 1e-4, "abs": 1e-4}
    there, back = equation(x, y, y, tau, standard=standard), equation(y, x, x, tau, standard=standard)
    assert losses.info_nce(a, b, tau, **form).item() == pytest.approx(there, **close)
    assert losses.convirt(a, b, tau, 0.75, **form).item() == pytest.approx(0.75 * there + 0.25 * back, **close)
    # Eq. 3 as printed: the positive is of the second dropout pass, the negatives t_j of the first.
    simcse = equation(x, y, y if standard else x, tau, standard=standard)
    assert losses.simcse(a, b, tau, **form).item() == pytest.approx(simcse, **close)


@pytest.mark.parametrize("standard", [False, True])
@pytest.mark.parametrize("name", ["simcse", "convirt"])
@pytest.mark.parametrize("n", [2, 5])
def test_gradients_equal_finite_differences_of_the_equation(name, n, standard):
    a, b = vectors(n, 4, 3), vectors(n, 4, 4)
    tau, alpha, step = 0.1, 0.75, 1e-5

    def value(x, y):
        if name == "simcse":
            return equation(x, y, y if standard else x, tau, standard=standard)
        there, back = equation(x, y, y, tau, standard=standard), equation(y, x, x, tau, standard=standard)
        return alpha * there + (1 - alpha) * back

    extra = (alpha,) if name == "convirt" else ()
    getattr(losses, name)(a, b, tau, *extra, positive_in_denominator=standard).backward()
    for tensor, which in ((a, 0), (b, 1)):
        for i in range(n):
            for k in range(4):
                sides = []
                for sign in (1, -1):
                    pair = [a.tolist(), b.tolist()]
                    pair[which][i][k] += sign * step
                    sides.append(value(*pair))
                numeric = (sides[0] - sides[1]) / (2 * step)
                assert tensor.grad[i, k].item() == pytest.approx(numeric, rel=2e-3, abs=2e-3)


@pytest.mark.parametrize("tau", [0.01, 0.1])
def test_bfloat16_inputs_and_autocast_lose_only_the_rounding_of_the_inputs(tau):
    a, b = vectors(8, 32, 5, torch.bfloat16), vectors(8, 32, 6, torch.bfloat16)
    expected = equation(a.tolist(), b.tolist(), b.tolist(), tau, standard=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = losses.info_nce(a, b, tau)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-3)
    reference = [x.detach().float().requires_grad_() for x in (a, b)]
    losses.info_nce(*reference, tau).backward()
    loss.backward()
    for ours, theirs in zip((a, b), reference, strict=True):
        largest = theirs.grad.abs().max().item()
        torch.testing.assert_close(ours.grad.float(), theirs.grad, rtol=2e-2, atol=2e-2 * largest)


@given(n=st.integers(2, 40), d=st.integers(1, 16))
@settings(max_examples=30, deadline=None)
def test_closed_forms(n, d):
    """All vectors equal: log(N - 1), or log N with the positive in the denominator. Uniformity 0, alignment 0."""
    same = torch.ones(n, d)
    for loss in (losses.info_nce, losses.simcse):
        assert loss(same, same, 0.1).item() == pytest.approx(math.log(n - 1), abs=1e-4)
        assert loss(same, same, 0.1, positive_in_denominator=True).item() == pytest.approx(math.log(n), abs=1e-4)
    assert losses.uniformity(same).item() == pytest.approx(0, abs=1e-5)
    assert losses.alignment(same, same).item() == pytest.approx(0, abs=1e-6)


def test_printed_form_can_be_negative_and_the_standard_one_cannot():
    x = torch.eye(2)
    assert losses.info_nce(x, x, 0.1).item() == pytest.approx(-10)
    assert losses.info_nce(x, x, 0.1, positive_in_denominator=True).item() > 0


def test_a_hard_positive_at_small_temperature_keeps_its_gradient():
    """s(q, k) = -1 against negatives at +1 and tau = 0.01: log(ratio + eps) would have no gradient here."""
    query = torch.tensor([[1.0, 0.01], [-1.0, 0.01]], requires_grad=True)
    key = torch.tensor([[-1.0, 0.02], [1.0, 0.02]], requires_grad=True)
    loss = losses.info_nce(query, key, 0.01)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 150
    assert all(torch.isfinite(x.grad).all() and x.grad.abs().max() > 0.1 for x in (query, key))


@pytest.mark.parametrize("standard", [False, True])
def test_duplicate_titles_are_masked_in_both_towers(standard):
    a, b = vectors(6, 8, 7), vectors(6, 8, 8)
    groups = [0, 1, 0, 2, 3, 2]
    form = {"positive_in_denominator": standard, "groups": torch.tensor(groups)}
    x, y = a.tolist(), b.tolist()
    there = equation(x, y, y, 0.1, standard=standard, groups=groups)
    back = equation(y, x, x, 0.1, standard=standard, groups=groups)
    assert losses.convirt(a, b, 0.1, 0.6, **form).item() == pytest.approx(0.6 * there + 0.4 * back, abs=1e-4)
    ours = losses.simcse(a, b, 0.1, **form).item()
    expected = equation(x, y, y if standard else x, 0.1, standard=standard, groups=groups)
    assert ours == pytest.approx(expected, abs=1e-4)
    assert losses.convirt(a, b, 0.1, 0.6, positive_in_denominator=standard).item() != pytest.approx(ours)


@pytest.mark.parametrize("groups", [[0, 0, 1], [0, 0, 0]])
def test_rows_without_negatives_are_left_out_without_nan(groups):
    a, b = vectors(3, 4, 9), vectors(3, 4, 10)
    loss = losses.info_nce(a, b, 0.1, groups=torch.tensor(groups))
    loss.backward()
    assert torch.isfinite(a.grad).all()
    if not any(groups):
        assert loss == 0 == a.grad.abs().max()


@pytest.mark.parametrize(("loss", "rows", "rest", "message"), [
    (losses.info_nce, (1, 1), (0.1,), "at least 2"), (losses.simcse, (3, 2), (0.1,), "one shape"),
    (losses.info_nce, (3, 3), (0.0,), "temperature"), (losses.convirt, (3, 3), (0.1, 1.5), "alpha"),
    (losses.sigmoid, (1, 1), (10.0, -10.0), "at least 2"),
])  # fmt: skip
def test_bad_input_is_refused(loss, rows, rest, message):
    with pytest.raises(ValueError, match=message):
        loss(*(vectors(n, 4, 0) for n in rows), *rest)


def test_alignment_and_uniformity_equal_their_definitions():
    a, b = vectors(5, 3, 11).detach(), vectors(5, 3, 12).detach()
    x, y = a.tolist(), b.tolist()  # of unit vectors the squared distance is 2 - 2 cosine
    pairs = [math.exp(-2 * (2 - 2 * cosine(x[i], x[j]))) for i in range(5) for j in range(i)]
    assert losses.uniformity(a).item() == pytest.approx(math.log(sum(pairs) / len(pairs)), abs=1e-5)
    expected = sum(2 - 2 * cosine(x[i], y[i]) for i in range(5)) / 5
    assert losses.alignment(a, b).item() == pytest.approx(expected, abs=1e-5)


def test_sigmoid_is_its_equation_and_its_gradient_reaches_both():
    a, b = vectors(5, 8, 1), vectors(5, 8, 2)
    x, y, tau, bias, groups = a.tolist(), b.tolist(), 0.3, -2.0, [0, 1, 0, 2, 3]
    for known in (None, groups):
        total = 0.0
        for i in range(5):
            for j in range(5):
                if known and i != j and known[i] == known[j]:
                    continue
                z = (1 if i == j else -1) * (cosine(x[i], y[j]) / tau + bias)
                total += math.log1p(math.exp(-z))
        loss = losses.sigmoid(a, b, 1 / tau, bias, groups=None if known is None else torch.tensor(known))
        assert loss.item() == pytest.approx(total / 5, rel=1e-5)
    loss.backward()
    assert a.grad.abs().sum() > 0 < b.grad.abs().sum()
    same = torch.ones(4, 3)  # all cosines 1, all logits 0: each of the four columns costs log 2
    assert losses.sigmoid(same, same, 10.0, -10.0).item() == pytest.approx(4 * math.log(2), rel=1e-4)


@pytest.mark.parametrize("n", [2, 5, 32])
def test_the_sigmoid_loss_begins_where_pairs_are_as_probable_as_they_are(n):
    """All cosines 0: a positive costs log N, each of its N - 1 negatives log(N / (N - 1)), and no bias is better."""
    scale, x = PairScale(0.1, n), torch.eye(2 * n)
    rows = scale(x[:n])
    assert rows.tolist() == [pytest.approx([10, -math.log(n - 1)])] * n
    loss = losses.sigmoid(x[:n], x[n:], *rows.unbind(dim=1))
    assert loss.item() == pytest.approx(math.log(n) + (n - 1) * math.log(n / (n - 1)), rel=1e-5)
    loss.backward()
    assert scale.bias.grad.item() == pytest.approx(0, abs=1e-5)


def test_scale_and_bias_learn_by_their_finite_differences():
    a, b, scale = vectors(5, 8, 1).double(), vectors(5, 8, 2).double(), PairScale(0.1, 5)

    def loss(log_scale: float, bias: float) -> float:
        return losses.sigmoid(a, b, math.exp(log_scale), bias).item()

    of_rows = losses.sigmoid(a, b, *scale(a).unbind(dim=1))
    of_rows.backward()
    at, step = (math.log(10), -math.log(4)), 1e-2
    assert of_rows.item() == pytest.approx(loss(*at), rel=1e-5)
    in_scale = (loss(at[0] + step, at[1]) - loss(at[0] - step, at[1])) / (2 * step)
    in_bias = (loss(at[0], at[1] + step) - loss(at[0], at[1] - step)) / (2 * step)
    found = [scale.log_scale.grad.item(), scale.bias.grad.item()]
    assert found == pytest.approx([in_scale, in_bias], rel=1e-2)
    assert min(map(abs, found)) > 0.01
