"""A training that goes on where a kill stopped it, bit for bit on a CPU."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, gather_object
from torch import Tensor

from icssl_lib.files import written_whole


class Checkpoint:
    """One file (None: none) that holds all that a training needs to go on: ``parts`` with ``state_dict`` and
    ``load_state_dict``, or lists. minutes: between two states."""

    def __init__(self, path: Path | None, minutes: float, accelerator: Accelerator, **parts: Any) -> None:
        self.path, self.seconds, self.accelerator = path, 60 * minutes, accelerator
        self.parts = parts | ({"scaler": accelerator.scaler} if accelerator.scaler else {})
        self.written = time.monotonic()

    def resume(self) -> dict[str, Any] | None:
        """Load parts and torch's generators; returns where it was, if anywhere."""
        if self.path is None or not self.path.is_file():
            return None
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        if len(state["rng"]) != self.accelerator.num_processes:
            return None
        for name, part in self.parts.items():
            if isinstance(part, list):
                part[:] = state["parts"][name]
            else:
                part.load_state_dict(state["parts"][name])
        cpu, gpu = state["rng"][self.accelerator.process_index]
        torch.set_rng_state(cpu)
        if gpu is not None:
            torch.cuda.set_rng_state(gpu)
        return state["position"]

    def save_if_due(self, **position: Any) -> None:
        """Write a state if it is time for one; the first process decides for all. Raises: OSError: a full disk."""
        due = self.path is not None and time.monotonic() - self.written >= self.seconds
        if self.accelerator.num_processes > 1:
            due = bool(broadcast(torch.tensor(int(due), device=self.accelerator.device)))
        if not due:
            return
        gpu = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        rng = gather_object([(torch.get_rng_state(), gpu)])
        if self.accelerator.is_main_process:
            parts = {name: p if isinstance(p, list) else p.state_dict() for name, p in self.parts.items()}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with written_whole(self.path) as partial:
                    torch.save({"rng": rng, "position": position, "parts": parts}, partial)
            except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
                raise OSError(f"{self.path}: cannot write the checkpoint ({error}); free disk space") from error
        self.written = time.monotonic()

    def remove(self) -> None:
        if self.path is not None and self.accelerator.is_main_process:
            self.path.unlink(missing_ok=True)


def resumable(
    epochs: int, draw: Callable[..., Iterable[Tensor]], generator: torch.Generator, checkpoint: Checkpoint
) -> Iterator[tuple[int, Tensor]]:
    """The epoch and rows of each batch still to be trained on; ``draw(epoch, generator)`` yields those of an epoch. A
    state is loaded by the call itself, and saved, where due, when the loop asks for the next batch: a step is done."""
    at = checkpoint.resume() or {"epoch": 0, "batch": 0, "order": generator.get_state()}
    generator.set_state(at["order"])

    def batches() -> Iterator[tuple[int, Tensor]]:
        for epoch in range(at["epoch"], epochs):
            order = generator.get_state()
            for number, rows in enumerate(draw(epoch, generator)):
                if epoch > at["epoch"] or number >= at["batch"]:
                    yield epoch, rows
                    checkpoint.save_if_due(epoch=epoch, batch=number + 1, order=order)

    return batches()
