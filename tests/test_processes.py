"""Several processes and gradient caching: each against one process's plain step on the whole batch."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import toys
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from icssl_lib import losses
from icssl_lib.config import RuntimeConfig, VisionConfig
from icssl_lib.encoders import PairScale, TextTower, VisionTower, load_text, load_vision
from icssl_lib.fast import gradcache
from icssl_lib.fast.gradcache import cached
from icssl_lib.fast.processes import in_processes, local_rows, make_accelerator, precision_here

N = 24
ONE = RuntimeConfig(device="cpu")


class Towers(nn.Module):
    def __init__(self, text: Path, vision: Path, dropout: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.text = TextTower(load_text(str(text))[0], "mean", 16, 2)
        backbone = load_vision(VisionConfig(model=f"local-dir:{vision}", image_size=toys.SIZE))
        self.vision, self.scale = VisionTower(backbone, 16, 2), PairScale(0.1, N)
        self.train(dropout)


@pytest.fixture
def folders(tiny_text, tiny_vision) -> tuple[Path, Path]:
    return tiny_text, tiny_vision


def rows_of(rows: Tensor) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (N, 7), generator=generator)
    images = torch.randint(0, 256, (N, toys.SIZE, toys.SIZE, 3), dtype=torch.uint8, generator=generator)
    groups = torch.arange(N)
    groups[3] = groups[11]  # one title twice, in two processes; the whole batch's in each of them
    mask = torch.ones_like(ids)
    return {"input_ids": ids[rows], "attention_mask": mask[rows], "images": images[rows], "groups": groups}


def simcse(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    ids, mask = (batch[name].repeat_interleave(2, dim=0) for name in ("input_ids", "attention_mask"))
    both = model.text(input_ids=ids, attention_mask=mask)
    return losses.simcse(both[0::2], both[1::2], 0.1, groups=batch["groups"])


def convirt(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    text = model.text(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    return losses.convirt(text, model.vision(batch["images"]), 0.1, 0.75, groups=batch["groups"])


def sigmoid(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    text = model.text(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    scale, bias = model.scale(batch["input_ids"]).unbind(dim=1)
    return losses.sigmoid(text, model.vision(batch["images"]), scale, bias, batch["groups"])


LOSSES = {"simcse": simcse, "convirt": convirt, "sigmoid": sigmoid}


def plain_step(model: nn.Module, batch: dict[str, Tensor], loss_fn) -> Tensor:
    """The reference, which shares no code with `cached`."""
    loss = loss_fn(model, batch)
    loss.backward()
    return loss.detach()


def outcome(model: nn.Module, loss: Tensor) -> dict:
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss, "gradients": gradients, "drawn": torch.rand(3)}


def plain(folders, loss: str, dropout: bool = False) -> dict:
    model = Towers(*folders, dropout)
    torch.manual_seed(2)
    return outcome(model, plain_step(model, rows_of(torch.arange(N)), LOSSES[loss]))


def shared(runtime: RuntimeConfig, folders, loss: str, chunk_size: int | None, dropout: bool = False) -> dict:
    """The step on a share of the batch, in however many processes this runs."""
    accelerator = make_accelerator(runtime)
    model, rows = Towers(*folders, dropout), local_rows(torch.arange(N), accelerator)
    torch.manual_seed(2)
    return outcome(model, cached(accelerator, chunk_size)(model, rows_of(rows), LOSSES[loss]))


def all_shared(runtime: RuntimeConfig, folders, chunk_size: int | None) -> dict[str, dict]:
    return {loss: shared(runtime, folders, loss, chunk_size) for loss in LOSSES}


def assert_same(found: dict, expected: dict) -> None:
    assert torch.allclose(found["loss"], expected["loss"], rtol=1e-5)
    assert found["gradients"].keys() == expected["gradients"].keys()
    assert len(found["gradients"]) > 10
    for name, gradient in expected["gradients"].items():
        assert torch.allclose(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize("loss", LOSSES)
def test_one_process_without_chunks_takes_the_very_step(folders, loss):
    found, expected = shared(ONE, folders, loss, None, dropout=True), plain(folders, loss, dropout=True)
    assert torch.equal(found["loss"], expected["loss"])
    assert not found["loss"].requires_grad
    assert found["gradients"].keys() == expected["gradients"].keys()
    assert all(torch.equal(g, expected["gradients"][name]) for name, g in found["gradients"].items())


@pytest.mark.parametrize(("processes", "chunk_size"), [(1, 5), (2, None), (2, 5), (4, None)])
def test_processes_and_chunks_together_take_the_step_of_one(folders, processes, chunk_size):
    runtime = RuntimeConfig(device="cpu", processes=processes)
    for loss, found in in_processes(runtime, all_shared, runtime, folders, chunk_size).items():
        assert_same(found, plain(folders, loss))


def test_a_plain_gather_would_lose_most_of_the_gradient(folders, monkeypatch):
    """The test above can fail: with negatives that are constants in every process, gradients are wrong."""
    runtime = RuntimeConfig(device="cpu", processes=2)
    monkeypatch.setattr(gradcache, "sum_gradients", lambda parameters, accelerator: None)
    found = in_processes(runtime, shared, runtime, folders, "convirt", None)
    with pytest.raises(AssertionError):
        assert_same(found, plain(folders, "convirt"))


def test_each_process_has_a_share_of_the_rows():
    """Three processes, two rows: nothing is left for the third."""
    index = torch.tensor([7, 9])
    shares = [local_rows(index, SimpleNamespace(num_processes=3, process_index=i)).tolist() for i in range(3)]
    assert shares == [[7], [9], []]


@pytest.mark.parametrize("loss", LOSSES)
def test_gradient_caching_repeats_the_dropout_of_each_chunk_and_leaves_the_generator_there(folders, loss):
    """With dropout on: equal to running the same chunks with their graphs kept, in the same order."""
    model = Towers(*folders, dropout=True)

    def kept(tower):
        def forward(*args, **kwargs):
            chunks = zip(*(x.split(5) for x in (*args, *kwargs.values())), strict=True)
            return torch.cat([tower(*chunk) for chunk in chunks])

        return forward

    torch.manual_seed(2)
    reference = SimpleNamespace(**{name: kept(tower) for name, tower in model.named_children()})
    expected = outcome(model, plain_step(reference, rows_of(torch.arange(N)), LOSSES[loss]))
    found = shared(ONE, folders, loss, 5, dropout=True)
    assert_same(found, expected)
    assert torch.equal(found["drawn"], expected["drawn"])


MEMORY = r"""
import os, re, torch
from torch import nn
from icssl_lib import losses
from icssl_lib.config import RuntimeConfig
from icssl_lib.fast.gradcache import cached
from icssl_lib.fast.processes import make_accelerator

model = nn.Module()
model.text = nn.Sequential(*[nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128)) for _ in range(6)])
accelerator = make_accelerator(RuntimeConfig(device="cpu"))
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])  # kB, of this process alone

def loss_fn(model, batch):
    rows = model.text(batch["x"]).mean(1)
    return losses.info_nce(rows, rows.roll(1, 1), 0.1)

for n, chunk in ((64, None), (1024, 64), (1024, None)):
    if os.fork():
        os.wait()
        continue
    step, batch = cached(accelerator, chunk), {"x": torch.randn(n, 8, 128)}
    step(model, {"x": torch.randn(2, 8, 128)}, loss_fn)  # what torch imports at the first step is not counted
    before = peak()
    step(model, batch, loss_fn)
    print((peak() - before) / 1024, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak memory from Linux's /proc")
def test_a_batch_of_1024_in_chunks_needs_the_memory_of_a_chunk():
    """Activations of 6 layers: 16 times the rows, and little more memory than one batch of 64."""
    measured = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, check=True, text=True).stdout
    small, chunked, plain = map(float, measured.split())  # MB
    assert plain > 10 * small
    assert chunked < 4 * small  # with the 1024 x 1024 similarities of the loss


def test_a_precision_or_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {})
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    with pytest.raises(ValueError, match=re.escape("runtime.device: cuda, but torch sees no GPU")):
        make_accelerator(RuntimeConfig(device="cuda"))
    with pytest.raises(ValueError, match=r"runtime\.precision: bf16, but this CPU has no instructions"):
        make_accelerator(RuntimeConfig(device="cpu", precision="bf16"))
    assert precision_here(RuntimeConfig(device="cpu", precision="auto")) == "no"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    assert precision_here(RuntimeConfig(device="cpu", precision="auto")) == "bf16"


def test_in_bf16_on_a_cpu_pictures_go_without_the_fused_kernel_and_mean_the_same(folders, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True})
    config, pixels = VisionConfig(model=f"local-dir:{folders[1]}", image_size=toys.SIZE), torch.rand(4, 3, 32, 32)
    found = []
    for precision, fast in (("bf16", True), ("bf16", False), ("no", True)):
        AcceleratorState._reset_state(reset_partial_state=True)
        make_accelerator(RuntimeConfig(device="cpu", precision=precision, fast=fast))
        backbone = load_vision(config)
        values = backbone(pixels)
        values.square().sum().backward()
        gradients = torch.cat([p.grad.flatten() for p in backbone.parameters() if p.grad is not None])
        found.append(({block.attn.fused_attn for block in backbone.blocks}, values, gradients))
    assert [fused for fused, *_ in found] == [{False}, {True}, {True}]
    for _, values, gradients in found[1:]:
        torch.testing.assert_close(values, found[0][1], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients, found[0][2], rtol=1e-3, atol=1e-5)


def test_in_a_process_that_was_launched_it_is_a_plain_call(monkeypatch):
    """`torchrun` and `accelerate launch` have started the processes, and say so by WORLD_SIZE."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert in_processes(RuntimeConfig(device="cpu", processes=2), os.getpid) == os.getpid()
