"""Several processes, gradient caching and checkpoints: each against the plain loop."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import toys
import yaml
from safetensors.torch import load_file
from test_adapt import weights

from icssl_lib import adapt as stage
from icssl_lib import catalogue, finetune, scale
from icssl_lib.adapt import Batch, Towers, adapt, make_vision
from icssl_lib.config import AdaptConfig, RuntimeConfig
from icssl_lib.encoders import TextTower, load_text
from icssl_lib.finetune import classify, classify_fractions
from icssl_lib.methods import METHODS
from icssl_lib.scale import Checkpoint, WholeBatch, in_processes, local_rows

N = 24
METHODS_TESTED = ["simcse", "convirt"]


def towers_of(study, out, dropout: bool) -> Towers:
    torch.manual_seed(0)
    towers = Towers(TextTower(load_text(study.text.model)[0], "mean", 16, 2), make_vision(study, out))
    return towers.train(dropout)


def batch_of(rows: torch.Tensor) -> Batch:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 60, (N, 7), generator=generator)
    pixels = torch.randint(0, 256, (N, toys.SIZE, toys.SIZE, 3), dtype=torch.uint8, generator=generator)
    groups = torch.arange(N)
    groups[3] = groups[11]  # one title twice, in two processes
    tokens = {"input_ids": ids[rows], "attention_mask": torch.ones_like(ids[rows])}
    return Batch(tokens, pixels[rows], groups)


def loss_and_gradients(study, out, method: str, chunk_size: int | None, dropout: bool = False) -> dict:
    """One step on a share of the batch, in however many processes this runs."""
    accelerator = stage.make_accelerator(study.runtime)
    towers = towers_of(study, out, dropout)
    whole = WholeBatch(towers, chunk_size, accelerator)
    torch.manual_seed(2)
    loss = METHODS[method].loss(whole, batch_of(local_rows(torch.arange(N), accelerator)), AdaptConfig())
    whole.backward(loss)
    named = towers.named_parameters()
    return {"loss": loss.detach(), "gradients": {name: p.grad for name, p in named if p.grad is not None}}


@pytest.fixture
def study(tiny_text, tiny_vision):
    return toys.study(tiny_text, tiny_vision)


def plain_step(study, out, method: str) -> dict:
    """The reference shares no code with WholeBatch: towers, loss, backward."""
    towers = towers_of(study, out, dropout=False)
    loss = METHODS[method].loss(towers, batch_of(torch.arange(N)), AdaptConfig())
    loss.backward()
    return {
        "loss": loss.detach(),
        "gradients": {n: p.grad for n, p in towers.named_parameters() if p.grad is not None},
    }


def assert_same(found: dict, expected: dict) -> None:
    assert torch.allclose(found["loss"], expected["loss"], rtol=1e-5)
    assert found["gradients"].keys() == expected["gradients"].keys()
    assert len(found["gradients"]) > 10
    for name, gradient in expected["gradients"].items():
        assert torch.allclose(found["gradients"][name], gradient, rtol=1e-4, atol=1e-6), name


# --- several processes


@pytest.mark.parametrize(
    ("processes", "method", "chunk_size"),
    [
        *[(1, method, chunk_size) for method in METHODS_TESTED for chunk_size in (None, 5)],
        *[(processes, method, None) for processes in (2, 4) for method in METHODS_TESTED],
        (2, "convirt", 5),
    ],
)
def test_processes_together_take_the_step_of_one(study, tmp_path, processes, method, chunk_size):
    runtime = RuntimeConfig(device="cpu", processes=processes)
    shared = study.model_copy(update={"runtime": runtime})
    found = in_processes(runtime, loss_and_gradients, shared, tmp_path, method, chunk_size)
    assert_same(found, plain_step(study, tmp_path, method))


def test_a_plain_gather_would_lose_most_of_the_gradient(study, tmp_path, monkeypatch):
    """The test above can fail: with negatives that are constants in every process, gradients are wrong."""
    runtime = RuntimeConfig(device="cpu", processes=2)
    monkeypatch.setattr(scale, "sum_gradients", lambda parameters, accelerator: None)
    found = in_processes(
        runtime, loss_and_gradients, study.model_copy(update={"runtime": runtime}), tmp_path, "convirt", None
    )
    with pytest.raises(AssertionError):
        assert_same(found, plain_step(study, tmp_path, "convirt"))


def test_adapt_and_finetune_in_two_processes(study, toy, tmp_path):
    """The real stages: all of Train in two processes ends near one process's loss, and the report is one."""
    finetune = study.finetune.model_copy(update={"keep_classifiers": [1.0]})
    update = {"runtime": RuntimeConfig(device="cpu", processes=2), "finetune": finetune}
    shared = study.model_copy(update=update)
    adapted = adapt("convirt", toy, shared, 0, tmp_path, progress=False)
    alone = adapt("convirt", toy, study, 0, tmp_path, progress=False)
    assert len(adapted.history) == len(alone.history)
    # Before the first step dropout is all that differs.
    assert adapted.history.loss[0] == pytest.approx(alone.history.loss[0], abs=0.3)
    stage.save(adapted, tmp_path / "encoders" / toy.name / "convirt" / "seed0")
    scores, predictions = classify_fractions("convirt", toy, shared, 0, tmp_path, progress=False)
    assert list(scores.fraction) == shared.finetune.fractions
    assert len(predictions) == len(scores) * len(toy.part("test"))
    assert (tmp_path / "classifiers" / toy.name / "convirt" / "seed0" / "f100" / "model.safetensors").is_file()


def test_two_processes_train_the_classifier_of_one(toy, tiny_vision, tmp_path, monkeypatch):
    """To rounding, where nothing is drawn. The last batch is one title, so that the second process has none: it goes
    along with a row that counts nothing. By plain gradient descent, since Adam would hide a gradient twice as large."""
    monkeypatch.setattr(torch.optim, "Adam", lambda parameters, lr, **_: torch.optim.SGD(parameters, lr))
    text = toys.save_text(tmp_path / "text", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    tuned = toys.study(text, tiny_vision, finetune={"batch_size": 29, "epochs": 6, "lr": 0.5})
    assert len(toy.part("train")) == 30

    def confidence(processes: int) -> np.ndarray:
        runtime = RuntimeConfig(device="cpu", processes=processes)
        own = tuned.model_copy(update={"runtime": runtime})
        return in_processes(runtime, classify, "origin", str(text), toy, own, 1.0, 0).predictions.confidence.to_numpy()

    alone = confidence(1)
    assert np.allclose(confidence(2), alone, atol=2e-5)
    with monkeypatch.context() as patch:  # each process by its own rows
        patch.setattr(finetune, "sum_gradients", lambda parameters, accelerator: None)
        assert not np.allclose(confidence(2), alone, atol=1e-3)
    with monkeypatch.context() as patch:  # the row that counts nothing, counted
        patch.setattr(finetune, "local_rows", lambda index, accelerator: index)
        assert not np.allclose(confidence(2), alone, atol=1e-3)


def test_each_process_has_a_share_of_the_rows():
    """Three processes, two rows: nothing is left for the third."""
    index = torch.tensor([7, 9])
    shares = [local_rows(index, SimpleNamespace(num_processes=3, process_index=i)).tolist() for i in range(3)]
    assert shares == [[7], [9], []]


@pytest.fixture
def stored(study, toy, tmp_path):
    """A configuration file, and the toy catalogue as `ingest` leaves it in two run folders."""
    catalogue._save(toy.name, toy.products, catalogue.Report().frame(), toys.SIZE, 0, toy.folder)
    for run in "ab":
        shutil.copytree(toy.folder, tmp_path / run / "catalogues" / toy.name)

    def command(study, run: str) -> list[str]:
        config = tmp_path / "toy.yaml"
        raw = study.model_dump(mode="json")
        raw["runtime"]["checkpoint_minutes"] = study.runtime.checkpoint_minutes  # no part of model_dump
        config.write_text(yaml.safe_dump(raw))
        return ["-m", "icssl_lib.adapt", str(config), str(tmp_path / run), toy.name, "simcse", "0"]

    return command


def test_torchrun_runs_a_stage(study, toy, tmp_path, stored):
    """What `accelerate launch` starts on GPUs, here on a CPU; the encoder is notebook_launcher's."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, *stored(study, "a")], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    shared = study.model_copy(update={"runtime": RuntimeConfig(device="cpu", processes=2)})
    subprocess.run([sys.executable, *stored(shared, "b")], check=True, stderr=subprocess.DEVNULL, timeout=120)
    a, b = (load_file(tmp_path / run / "encoders" / toy.name / "simcse/seed0/model.safetensors") for run in "ab")
    assert all(torch.equal(a[name], b[name]) for name in a)


# --- gradient caching


@pytest.mark.parametrize("method", METHODS_TESTED)
def test_gradient_caching_repeats_the_dropout_of_each_chunk(study, tmp_path, method):
    """With dropout on: equal to running the same chunks with their graphs kept, in the same order."""
    towers = towers_of(study, tmp_path, dropout=True)

    def kept(tower):
        def forward(*args, **kwargs):
            take = lambda x, i: x[i : i + 5]  # noqa: E731
            parts = range(0, len([*args, *kwargs.values()][0]), 5)  # SimCSE's titles stand there twice
            return torch.cat(
                [tower(*(take(a, i) for a in args), **{k: take(v, i) for k, v in kwargs.items()}) for i in parts]
            )

        return forward

    reference = SimpleNamespace(text=kept(towers.text), vision=kept(towers.vision))
    torch.manual_seed(2)
    loss = METHODS[method].loss(reference, batch_of(torch.arange(N)), AdaptConfig())
    loss.backward()
    named = {n: p.grad for n, p in towers.named_parameters() if p.grad is not None}
    found = loss_and_gradients(study, tmp_path, method, chunk_size=5, dropout=True)
    assert_same(found, {"loss": loss.detach(), "gradients": named})


def test_gradient_caching_goes_on_with_the_generator_where_the_plain_step_would(study, tmp_path):
    accelerator = stage.make_accelerator(study.runtime)
    towers = towers_of(study, tmp_path, dropout=True)
    draws = []
    for backward in (False, True):
        torch.manual_seed(3)
        whole = WholeBatch(towers, 5, accelerator)
        loss = METHODS["simcse"].loss(whole, batch_of(torch.arange(N)), AdaptConfig())
        if backward:
            whole.backward(loss)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)


MEMORY = r"""
import re, sys, torch
from types import SimpleNamespace
from torch import nn
from icssl_lib.adapt import make_accelerator
from icssl_lib.config import AdaptConfig, RuntimeConfig
from icssl_lib.methods import METHODS
from icssl_lib.scale import WholeBatch

n, chunk = int(sys.argv[1]), int(sys.argv[2]) or None
layers = [nn.Sequential(nn.Linear(128, 512), nn.GELU(), nn.Linear(512, 128)) for _ in range(6)]


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x).mean(1)


towers = nn.Module()
towers.text, towers.vision = Text(), None
accelerator = make_accelerator(RuntimeConfig(device="cpu"))
whole = WholeBatch(towers, chunk, accelerator)
batch = SimpleNamespace(tokens={"x": torch.randn(n, 8, 128)}, groups=None)
peak = lambda: int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1])  # kB, of this program alone
before = peak()
whole.backward(METHODS["simcse"].loss(whole, batch, AdaptConfig()))
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak memory from Linux's /proc")
def test_a_batch_of_1024_in_chunks_needs_the_memory_of_a_chunk():
    """Activations of 6 layers: 16 times the rows, and hardly more memory than one batch of 64."""

    def megabytes(n: int, chunk: int) -> float:
        return float(
            subprocess.run([sys.executable, "-c", MEMORY, str(n), str(chunk)], capture_output=True, check=True).stdout
        )

    small, cached, plain = megabytes(64, 0), megabytes(1024, 64), megabytes(1024, 0)
    assert plain > 8 * small
    assert cached < 2.5 * small  # the 1024 x 1024 similarities too


# --- checkpoints


def short(study, **runtime):
    runtime = RuntimeConfig(device="cpu", **runtime)
    return study.model_copy(update={"runtime": runtime, "adapt": study.adapt.model_copy(update={"epochs": 3})})


class Killed(BaseException):
    """Stands for kill -9 where a real one would cost seconds: nothing handles it."""


@pytest.mark.parametrize("step", [1, 2, 4])
@pytest.mark.parametrize("method", [*METHODS_TESTED, "convirt_mlm"])
def test_a_killed_adaptation_goes_on_and_ends_bit_identical(study, toy, tmp_path, monkeypatch, method, step):
    study = short(study, checkpoint_minutes=0)
    undisturbed = adapt(method, toy, study, 0, tmp_path / "a", progress=False)
    assert len(undisturbed.history) > 5

    saved = Checkpoint.save

    def kill_after(self, **progress):
        saved(self, **progress)
        if len(progress["history"]) == step:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", kill_after)
        with pytest.raises(Killed):
            adapt(method, toy, study, 0, tmp_path / "b", progress=False)
    torch.rand(5)  # whatever else draws in between
    steps = []
    monkeypatch.setattr(WholeBatch, "backward", spy(WholeBatch.backward, steps))
    resumed = adapt(method, toy, study, 0, tmp_path / "b", progress=False)
    assert len(steps) == len(undisturbed.history) - step  # it did go on, not start over
    assert torch.equal(weights(resumed), weights(undisturbed))
    assert resumed.history.drop(columns="seconds").equals(undisturbed.history.drop(columns="seconds"))
    assert resumed.space.equals(undisturbed.space)
    assert not list((tmp_path / "b").rglob("*.pt*"))


def spy(function, calls: list):
    def wrapped(*args, **kwargs):
        calls.append(args)
        return function(*args, **kwargs)

    return wrapped


@pytest.mark.parametrize("selection", ["last", "best_dev"])
def test_a_killed_fine_tuning_goes_on_and_ends_bit_identical(study, toy, tmp_path, monkeypatch, selection):
    finetune = study.finetune.model_copy(
        update={"selection": selection, "epochs": 3, "fractions": [0.5, 1.0], "keep_classifiers": [1.0]}
    )
    study = short(study, checkpoint_minutes=0).model_copy(update={"finetune": finetune})
    expected = classify_fractions("origin", toy, study, 0, tmp_path / "a", progress=False)
    saved, total = Checkpoint.save, [0]

    def kill_at(steps: int):
        def save(self, **progress):
            saved(self, **progress)
            total[0] += 1
            if total[0] == steps:
                raise Killed

        return save

    for steps in (2, 5):  # in the first fraction, and in the second
        total[0] = 0
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", kill_at(steps))
            with pytest.raises(Killed):
                classify_fractions("origin", toy, study, 0, tmp_path / "b", progress=False)
    scores, predictions = classify_fractions("origin", toy, study, 0, tmp_path / "b", progress=False)
    assert predictions.equals(expected[1])
    assert scores.drop(columns="seconds").equals(expected[0].drop(columns="seconds"))
    states = [
        load_file(tmp_path / run / "classifiers" / toy.name / "origin/seed0/f100/model.safetensors") for run in "ab"
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not list((tmp_path / "b" / "checkpoints").rglob("*.p*"))


def test_kill_9_in_mid_epoch(study, toy, tmp_path, stored):
    """A real process, really killed."""
    final = []
    for run in "ab":
        command = [sys.executable, *stored(short(study, checkpoint_minutes=0), run)]
        if run == "b":
            process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
            checkpoint = tmp_path / run / "checkpoints" / toy.name / "simcse" / "seed0.pt"
            while not checkpoint.is_file() and process.poll() is None:
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            assert checkpoint.is_file()
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        final.append(load_file(tmp_path / run / "encoders" / toy.name / "simcse" / "seed0" / "model.safetensors"))
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])


def test_a_checkpoint_of_other_settings_is_not_taken_up(study, toy, tmp_path, monkeypatch):
    first = short(study, checkpoint_minutes=0)
    with monkeypatch.context() as patch:
        patch.setattr(WholeBatch, "backward", raise_on_third(WholeBatch.backward))
        with pytest.raises(Killed):
            adapt("simcse", toy, first, 0, tmp_path, progress=False)
    assert list(tmp_path.rglob("*.pt"))
    other = first.model_copy(update={"adapt": first.adapt.model_copy(update={"lr": 1e-4})})
    expected = adapt("simcse", toy, other, 0, tmp_path / "fresh", progress=False)
    assert torch.equal(weights(adapt("simcse", toy, other, 0, tmp_path, progress=False)), weights(expected))


def raise_on_third(function):
    calls = []

    def wrapped(*args):
        calls.append(args)
        if len(calls) == 3:
            raise Killed
        return function(*args)

    return wrapped


def test_a_full_disk_stops_with_a_clear_error_and_leaves_the_last_state_whole(study, toy, tmp_path, monkeypatch):
    study = short(study, checkpoint_minutes=0)
    real, calls = torch.save, []

    def full(state, path):
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
        real(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"seed0\.pt: cannot write the checkpoint .*No space left.*free disk space"):
        adapt("simcse", toy, study, 0, tmp_path, progress=False)
    (left,) = tmp_path.rglob("*.pt*")
    assert len(torch.load(left, weights_only=True)["progress"]["history"]) == 2


def test_a_damaged_checkpoint_says_so(study, toy, tmp_path):
    path = tmp_path / "checkpoints" / toy.name / "simcse" / "seed0.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(OSError, match=r"cannot be read .* delete it to start over"):
        adapt("simcse", toy, short(study), 0, tmp_path, progress=False)
