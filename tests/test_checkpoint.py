"""A training that is killed, at any batch, and resumed ends bit for bit as one that was not."""

import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from icssl_lib.config import RuntimeConfig
from icssl_lib.fast.checkpoint import Checkpoint, resumable
from icssl_lib.fast.processes import in_processes, make_accelerator

EPOCHS, BATCHES = 3, 4


def draw(epoch: int, generator: torch.Generator) -> Iterator[Tensor]:
    return iter(torch.randperm(3 * BATCHES, generator=generator).split(3))


def train(path: Path | None, steps: int | None = None, minutes: float = 0) -> dict:
    """A model with dropout learns by Adam; ``steps``: killed when the state after so many of them has been saved."""
    accelerator = make_accelerator(RuntimeConfig(device="cpu"))
    torch.manual_seed(accelerator.process_index)
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
    optimizer, history, done = torch.optim.Adam(model.parameters(), 0.1), [], 0
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "history": history}
    checkpoint = Checkpoint(path, minutes, accelerator, **parts)
    x = torch.arange(48.0).view(12, 4) / 48
    for epoch, rows in resumable(EPOCHS, draw, torch.Generator().manual_seed(1), checkpoint):
        if done == steps:
            return {"done": done}
        loss = (model(x[rows]) - rows[:, None] - epoch).square().mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        history.append((epoch, rows.tolist(), loss.item()))
        done += 1
    left = path is not None and path.is_file()
    checkpoint.remove()
    return {"weights": [p.detach() for p in model.parameters()], "history": list(history), "done": done, "left": left}


def assert_same(resumed: dict, undisturbed: dict) -> None:
    assert resumed["history"] == undisturbed["history"]
    assert len(resumed["history"]) == EPOCHS * BATCHES
    assert all(torch.equal(a, b) for a, b in zip(resumed["weights"], undisturbed["weights"], strict=True))


@pytest.mark.parametrize("steps", [1, 3, BATCHES, BATCHES + 1, 2 * BATCHES, EPOCHS * BATCHES - 1])
def test_a_killed_training_goes_on_and_ends_bit_identical(steps, tmp_path):
    undisturbed, path = train(None), tmp_path / "deep" / "state.pt"
    assert train(path, steps) == {"done": steps}
    torch.rand(5)  # whatever else draws in between
    resumed = train(path)
    assert resumed["done"] == EPOCHS * BATCHES - steps  # it did go on, not start over
    assert_same(resumed, undisturbed)
    assert not list(tmp_path.rglob("state*"))


def test_a_training_killed_after_its_last_state_has_nothing_left_to_do(tmp_path):
    train(tmp_path / "state.pt", EPOCHS * BATCHES - 1)
    checkpoint = Checkpoint(tmp_path / "state.pt", 0, make_accelerator(RuntimeConfig(device="cpu")))
    checkpoint.save_if_due(**checkpoint.resume() | {"batch": BATCHES})
    assert list(resumable(EPOCHS, draw, torch.Generator(), checkpoint)) == []


def test_processes_go_on_with_the_dropout_of_each(tmp_path):
    runtime, path = RuntimeConfig(device="cpu", processes=2), tmp_path / "state.pt"
    undisturbed = in_processes(runtime, train, None)
    in_processes(runtime, train, path, 5)
    states = torch.load(path, weights_only=True)["rng"]
    assert not torch.equal(states[0][0], states[1][0])
    resumed = in_processes(runtime, train, path)
    assert resumed["done"] == EPOCHS * BATCHES - 5
    assert_same(resumed, undisturbed)
    in_processes(runtime, train, path, 5)
    assert train(path)["done"] == EPOCHS * BATCHES  # a state of two processes is none of one


def killed(path: Path) -> None:
    train(path, 6)
    os.kill(os.getpid(), signal.SIGKILL)


def test_kill_9_in_mid_epoch(tmp_path):
    """A real process, really killed."""
    process = multiprocessing.get_context("fork").Process(target=killed, args=(tmp_path / "state.pt",))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    resumed = train(tmp_path / "state.pt")
    assert resumed["done"] == EPOCHS * BATCHES - 6
    assert_same(resumed, train(None))


@pytest.mark.parametrize(
    ("path", "minutes", "left"), [("state.pt", 0, True), ("state.pt", 60, False), (None, 0, False)]
)
def test_a_state_is_written_when_it_is_due_and_never_without_a_path(path, minutes, left, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(Path(path) if path else None, minutes=minutes)["left"] == left
    assert not list(tmp_path.iterdir())


def test_a_full_disk_stops_with_a_clear_error_and_leaves_the_last_state_whole(tmp_path, monkeypatch):
    real, calls = torch.save, []

    def full(state, path):
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half")
            raise RuntimeError("PytorchStreamWriter failed writing file: No space left on device")
        real(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match=r"state\.pt: cannot write the checkpoint .*No space left.*free disk space"):
        train(tmp_path / "state.pt")
    (left,) = tmp_path.iterdir()
    assert len(torch.load(left, weights_only=True)["parts"]["history"]) == 2


def test_a_checkpoint_runs_no_code(tmp_path):
    """A state that somebody else wrote: what pickle would call is refused."""

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"rng": [Evil()]}, tmp_path / "state.pt")
    with pytest.raises(pickle.UnpicklingError):
        train(tmp_path / "state.pt")
    assert not (tmp_path / "made").exists()
