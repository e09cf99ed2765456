"""Recorded steps against steps that are run: what is packed, what is kept, and on a GPU the graphs themselves."""

import warnings

import pytest
import torch
import toys
from test_fast import ENCODERS, titles, without_dropout
from torch import nn

from icssl_lib import adapt, finetune, losses
from icssl_lib.encoders import TextTower, take
from icssl_lib.fast import Packing, fast, packed
from icssl_lib.graphs import Replay

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
recorded = pytest.mark.filterwarnings("error:a step cannot be recorded")


@pytest.fixture(autouse=True)
def not_refused(monkeypatch):
    monkeypatch.setattr(Replay, "refused", False)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("share", [0.6, 0.75, 1.0])
def test_padding_that_fills_a_budget_up_changes_neither_values_nor_gradients(name, share):
    model, tokens = without_dropout(ENCODERS[name]), titles([14, 3, 9, 1, 14])
    tower, found = TextTower(model, "mean", 8, 2), []
    for chosen in (None, share):
        tower.zero_grad()
        with fast(tower) as packing:
            packing.share = chosen
            rows = tower(**tokens)
        rows.square().sum().backward()
        found.append((rows.detach(), [p.grad for p in tower.parameters() if p.grad is not None]))
    (real, of_real), (padded, of_padded) = found
    torch.testing.assert_close(padded, real, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(of_padded, of_real, atol=2e-4, rtol=1e-3)


def test_a_classifier_that_reads_the_first_token_takes_a_budget_too():
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(ENCODERS["bert"]).eval()
    tokens = titles([14, 3, 9, 1, 14])
    plain = model(**tokens).logits
    with fast(model) as packing:
        packing.share = 0.7
        torch.testing.assert_close(model(**tokens).logits, plain, atol=2e-5, rtol=1e-4)


def test_a_budget_holds_the_real_tokens_first():
    mask = titles([3, 1])["attention_mask"].bool()  # T = 3
    (bucket,), places = packed(mask, 5 / 6)
    assert places.tolist() == [0, 1, 2, 3, 4]
    assert bucket.real.tolist() == places.tolist()
    assert packed(mask, 4 / 6)[1].tolist() == [0, 1, 2, 3]


def test_rows_are_cut_to_a_round_length_where_there_is_one():
    tokens = titles([20, 3, 9])
    assert take(tokens, torch.tensor([1, 2]), "cpu")["input_ids"].shape == (2, 9)
    assert take(tokens, torch.tensor([1, 2]), "cpu", 8)["input_ids"].shape == (2, 16)
    assert take(tokens, torch.tensor([0, 2]), "cpu", 8)["input_ids"].shape == (2, 20)  # no more has been tokenised


def test_rows_without_a_negative_count_nothing():
    """Against the equation in plain loops, gradients included; a row of -inf has none that is finite."""
    torch.manual_seed(0)
    query, key = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4)
    groups = torch.tensor([0, 0, 1, 1, 0])
    found = losses.info_nce(query, key, 0.1, groups=groups)
    found.backward()
    of_found, query.grad = query.grad, None
    q, k = nn.functional.normalize(query, dim=1), nn.functional.normalize(key, dim=1)
    terms = []
    for i in range(5):
        negatives = [(q[i] @ k[j] / 0.1).exp() for j in range(5) if groups[j] != groups[i]]
        terms.append(torch.stack(negatives).sum().log() - q[i] @ k[i] / 0.1)
    torch.stack(terms).mean().backward()
    torch.testing.assert_close(found, torch.stack(terms).mean())
    torch.testing.assert_close(of_found, query.grad, atol=1e-5, rtol=1e-5)


class Played:
    """Stands for a recorded graph where there is no GPU: it runs the step on the tensors that were recorded."""

    def __init__(self, replay: Replay, static: dict, loss: torch.Tensor) -> None:
        self.share, self.owner, self.static, self.loss = replay.packing.share, replay, static, loss

    def replay(self) -> None:
        torch._foreach_zero_(self.owner.gradients)
        self.owner.packing.share = self.share
        self.loss.copy_(self.owner.step(**self.static).detach())
        self.owner.packing.share = None


def record(replay: Replay, inputs: dict) -> tuple:
    replay.gradients = replay.gradients or [torch.zeros_like(parameter) for parameter in replay.trained]
    static, loss = {name: torch.zeros_like(x) for name, x in inputs.items()}, torch.zeros(())
    return Played(replay, static, loss), static, loss


def trained(device: str, enabled: bool, steps: int = 14) -> tuple[list[float], list[torch.Tensor], Replay]:
    """Losses and weights of a tower that learns from titles of several shapes."""
    model = without_dropout(ENCODERS["bert"])
    tower = TextTower(model, "mean", 8, 2).to(device)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-2, fused=device == "cuda")
    several = [[14, 3, 9, 1], [6, 5, 2, 3], [14, 14, 12, 13]]
    with fast(tower) as packing:

        def step(weight: torch.Tensor, **tokens: torch.Tensor) -> torch.Tensor:
            loss = (tower(**tokens) - weight).square().mean()
            loss.backward()
            return loss

        replay, found = Replay(step, tower.parameters(), packing, torch.device(device), enabled), []
        for i in range(steps):
            tokens = titles(several[i % 3], seed=i)
            tokens = take(tokens, torch.arange(4), "cpu", replay.pad_to_multiple_of)
            found.append(replay(weight=torch.tensor(i / 7), **tokens).item())
            optimizer.step()
            optimizer.zero_grad()
    return found, [p.detach().cpu() for p in tower.parameters()], replay


def test_each_shape_is_run_once_then_recorded_and_replayed(monkeypatch):
    monkeypatch.setattr("icssl_lib.graphs.BUDGET", 8)
    plain, of_plain, _ = trained("cpu", False)
    calls = []
    monkeypatch.setattr(
        Replay, "_capture", lambda self, inputs: calls.append(self.packing.share) or record(self, inputs)
    )
    found, weights, replay = trained("cpu", True)
    assert found == pytest.approx(plain, rel=1e-4)
    torch.testing.assert_close(weights, of_plain, atol=1e-4, rtol=1e-3)
    assert len(replay.captured) == 3
    assert sorted(calls) == [32 / 56, 16 / 24, 1.0]  # 27 and 16 tokens in round numbers; 53 are nearly all
    unused = [p for p in replay.parameters if p not in set(replay.trained)]
    assert len(unused) == 2  # the pooler's
    assert all(p.grad is None for p in unused)


@pytest.mark.parametrize("message", ["operation not permitted when stream is capturing", "CUDA out of memory"])
def test_a_step_that_cannot_be_recorded_is_run_as_it_is(message, monkeypatch):
    plain, *_ = trained("cpu", False)

    def refuse(*_):
        raise RuntimeError(message)

    monkeypatch.setattr(Replay, "_capture", refuse)
    with pytest.warns(UserWarning, match=f"cannot be recorded as a CUDA graph, so none is: {message}"):
        found, _, replay = trained("cpu", True)
    assert found == pytest.approx(plain, rel=1e-4)
    assert not replay.enabled
    assert not trained("cpu", True, steps=1)[2].enabled


def test_a_new_shape_that_finds_no_memory_beside_the_graphs_is_run_without_them(monkeypatch):
    monkeypatch.setattr(Replay, "_capture", record)
    weight, full = nn.Parameter(torch.ones(2)), []

    def step(x: torch.Tensor) -> torch.Tensor:
        if len(x) == 4 and replay.captured:
            full.append(1)
            raise RuntimeError("CUDA out of memory")
        loss = weight.sum() * x.sum()
        loss.backward()
        return loss

    replay = Replay(step, [weight], Packing(), torch.device("cpu"), True)
    for n in (3, 3, 3):
        weight.grad = None
        assert replay(x=torch.ones(n)).item() == 6
    weight.grad = None
    with pytest.warns(UserWarning, match="out of memory"):
        assert replay(x=torch.ones(4)).item() == 8
    assert weight.grad.tolist() == [4, 4]
    assert full == [1]


def test_an_error_of_the_step_itself_is_raised():
    def step(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        Replay(step, [], Packing(), torch.device("cpu"), True)(x=torch.ones(1))


@gpu
def test_replayed_steps_learn_what_steps_that_are_run_learn():
    plain, of_plain, _ = trained("cuda", False)
    found, weights, replay = trained("cuda", True)
    assert replay.enabled
    assert all(replay.captured.values())
    assert found == pytest.approx(plain, rel=1e-3)
    torch.testing.assert_close(weights, of_plain, atol=1e-3, rtol=1e-2)


@gpu
def test_each_replay_draws_its_own_dropout():
    weight, seen = nn.Parameter(torch.ones(1000, device="cuda")), []

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = nn.functional.dropout(weight * x, 0.5).sum()
        loss.backward()
        return loss

    replay = Replay(step, [weight], Packing(), torch.device("cuda"), True)
    for _ in range(4):
        weight.grad = None
        replay(x=torch.ones(()))
        seen.append(tuple(weight.grad.tolist()))
    assert replay.enabled
    assert all(replay.captured.values())
    assert len(set(seen)) == 4
    assert all(400 < sum(g > 0 for g in row) < 600 for row in seen)


@gpu
@recorded
@pytest.mark.parametrize("method", ["simcse", "convirt"])
def test_adaptation_on_a_gpu_is_the_same_recorded_and_run(method, tmp_path):
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    text, vision = toys.save_text(tmp_path / "text", **still), toys.save_vision(tmp_path / "vision")
    catalogue, histories = toys.catalogue(tmp_path), []
    for graphs in (False, True):
        study = toys.study(text, vision, runtime={"device": "cuda", "cuda_graphs": graphs}, adapt={"epochs": 4})
        histories.append(adapt.adapt(method, catalogue, study, 0, tmp_path).history.loss)
    (plain, recorded) = histories
    assert len(plain) == len(recorded)
    assert recorded.to_numpy() == pytest.approx(plain.to_numpy(), rel=1e-2, abs=1e-2)


@gpu
@recorded
def test_fine_tuning_on_a_gpu_is_as_good_recorded(tmp_path):
    text, found = toys.save_text(tmp_path / "text"), []
    catalogue = toys.catalogue(tmp_path)
    for graphs in (False, True):
        study = toys.study(text, text, runtime={"device": "cuda", "cuda_graphs": graphs}, finetune={"epochs": 30})
        found.append(finetune.classify("origin", str(text), catalogue, study, 1.0, 0).dev_accuracy)
    assert min(found) > 0.4  # of four classes; half of the titles tell theirs


@gpu
def test_a_wait_in_a_step_turns_recording_off():
    weight = nn.Parameter(torch.ones(3, device="cuda"))

    def step(x: torch.Tensor) -> torch.Tensor:
        loss = (weight * x).sum()
        loss.backward()
        loss.item()
        return loss

    replay = Replay(step, [weight], Packing(), torch.device("cuda"), True)
    for i in range(2):
        weight.grad = None
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert replay(x=torch.full((3,), 2.0)).item() == 6
        assert weight.grad.tolist() == [2, 2, 2]
        assert len([w for w in caught if "cannot be recorded" in str(w.message)]) == i
    assert not replay.enabled
    assert not Replay(step, [weight], Packing(), torch.device("cuda"), True).enabled  # nor later in this process
