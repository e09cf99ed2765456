"""Recorded steps against steps that are run: what is kept, and on a GPU the graphs themselves."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from toys import titles
from transformers import BertConfig, BertModel

from icssl_lib.config import RuntimeConfig
from icssl_lib.encoders import TextTower, take
from icssl_lib.fast.cuda_graphs import LENGTHS, Recorded, can_capture
from icssl_lib.fast.unpad import Packing, fast

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def plain_step(model: nn.Module, batch: dict[str, Tensor], loss_fn) -> Tensor:
    loss = loss_fn(model, batch)
    loss.backward()
    return loss.detach()


def test_steps_are_recorded_on_a_gpu_in_one_process_where_the_study_allows_it():
    def able(device: str = "cuda", processes: int = 1, **runtime: bool) -> bool:
        accelerator = SimpleNamespace(device=torch.device(device), num_processes=processes, scaler=None)
        return can_capture(RuntimeConfig(**runtime), accelerator)

    assert able()
    assert not any([able("cpu"), able(processes=2), able(fast=False), able(cuda_graphs=False)])


class Played(Recorded):
    """Stands for a recorder where there is no GPU: its graph runs the step on the tensors that were recorded."""

    def capture(self, model, batch, loss_fn) -> tuple:
        static, loss = {name: torch.zeros_like(x) for name, x in batch.items()}, torch.zeros(())
        share = self.packing.share

        def replay() -> None:
            torch._foreach_zero_(list(self.gradients.values()))
            self.packing.share = share
            loss.copy_(self.step(model, static, loss_fn))
            self.packing.share = None

        return SimpleNamespace(replay=replay), static, loss


def trained(device: str, enabled: bool, steps: int = 14, kind=Recorded) -> tuple[list[float], list[Tensor], Recorded]:
    """Losses and weights of a tower that learns from titles of several shapes."""
    torch.manual_seed(0)
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    tower = TextTower(BertModel(BertConfig(vocab_size=90, **shape, **still)), "mean", 8, 2).to(device)
    optimizer = torch.optim.AdamW(tower.parameters(), lr=1e-2, fused=device == "cuda")
    several, found = [[14, 3, 9, 1], [6, 5, 2, 3], [14, 14, 12, 13]], []

    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        tokens = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return (model(**tokens) - batch["weight"]).square().mean()

    with fast(tower) as packing:
        step = kind(plain_step, tower.parameters(), packing, torch.device(device), enabled)
        for i in range(steps):
            tokens = take(titles(several[i % 3], seed=i), torch.arange(4), "cpu", LENGTHS if enabled else 1)
            found.append(step(tower, tokens | {"weight": torch.tensor(i / 7)}, loss_fn).item())
            optimizer.step()
            optimizer.zero_grad()
    return found, [p.detach().cpu() for p in tower.parameters()], step


def test_each_shape_is_run_once_then_recorded_and_replayed(monkeypatch):
    monkeypatch.setattr("icssl_lib.fast.cuda_graphs.BUDGET", 8)
    plain, of_plain, _ = trained("cpu", False)
    found, weights, step = trained("cpu", True, kind=Played)
    assert found == pytest.approx(plain, rel=1e-4)
    torch.testing.assert_close(weights, of_plain, atol=1e-4, rtol=1e-3)
    shares = sorted(share for _, _, share, *_ in step.captured)
    assert shares == [32 / 56, 16 / 24, 1.0]  # 27 and 16 tokens in round numbers; 53 are nearly all
    unused = [p for p in step.parameters if p not in step.gradients]
    assert len(unused) == 2  # the pooler's
    assert all(p.grad is None for p in unused)


class Weight(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n, device="cuda"))


@gpu
def test_replayed_steps_learn_what_steps_that_are_run_learn():
    plain, of_plain, _ = trained("cuda", False)
    found, weights, step = trained("cuda", True)
    assert step.enabled
    assert all(step.captured.values())
    assert found == pytest.approx(plain, rel=1e-3)
    torch.testing.assert_close(weights, of_plain, atol=1e-3, rtol=1e-2)


@gpu
def test_each_replay_draws_its_own_dropout():
    model, seen = Weight(1000), []

    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return nn.functional.dropout(model.weight * batch["x"], 0.5).sum()

    step = Recorded(plain_step, model.parameters(), Packing(), torch.device("cuda"), True)
    for _ in range(4):
        model.zero_grad()
        step(model, {"x": torch.ones(())}, loss_fn)
        seen.append(tuple(model.weight.grad.tolist()))
    assert step.enabled
    assert all(step.captured.values())
    assert len(set(seen)) == 4
    assert all(400 < sum(g > 0 for g in row) < 600 for row in seen)


@gpu
def test_a_wait_in_a_step_is_an_error_that_says_what_to_do():
    model = Weight(3)

    def loss_fn(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        loss = (model.weight * batch["x"]).sum()
        loss.item()
        return loss

    step = Recorded(plain_step, model.parameters(), Packing(), torch.device("cuda"), True)
    assert step(model, {"x": torch.full((3,), 2.0)}, loss_fn).item() == 6
    model.zero_grad()
    with pytest.raises(RuntimeError, match=r"cannot be recorded as a CUDA graph; set runtime\.cuda_graphs: false"):
        step(model, {"x": torch.full((3,), 2.0)}, loss_fn)
