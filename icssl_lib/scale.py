"""What a study at the paper's scale needs around its training loops: several processes, large batches, checkpoints.

Each is exact. Loss and gradients are those of one process on the whole batch in one piece, up to rounding; a run that
was killed and resumed ends with the weights of an undisturbed one.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from icssl_lib.config import RuntimeConfig


def in_processes(runtime: RuntimeConfig, function: Callable, *args: Any) -> Any:
    """``function(*args)`` in ``runtime.processes`` processes of this machine; returns what the first returned.

    From a notebook, by Accelerate's `notebook_launcher`. In a process that `accelerate launch` started, or where one
    process is asked for, it is a plain call.

    Raises: RuntimeError: CUDA is in use in this process already, which a fork of it could not share.
    """
    if runtime.processes == 1 or "WORLD_SIZE" in os.environ:
        return function(*args)
    from accelerate import notebook_launcher
    from accelerate.state import AcceleratorState

    if torch.cuda.is_initialized():
        raise RuntimeError("this process has used CUDA, which a fork cannot share; restart the kernel and train first")
    AcceleratorState._reset_state(
        reset_partial_state=True
    )  # of an earlier stage in this notebook: the launcher refuses
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.pt"
        notebook_launcher(
            _call,
            (result, function, args),
            num_processes=runtime.processes,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",  # a free port: studies on one machine do not meet
        )
        return torch.load(result, weights_only=False)  # written just now by our own process


def _call(result: Path, function: Callable, args: tuple) -> None:
    returned = function(*args)
    if int(os.environ["RANK"]) == 0:
        torch.save(returned, result)


def local_rows(index: Tensor, accelerator: Accelerator) -> Tensor:
    """This process's share of the rows ``index`` (N,) of a batch; shares differ by one where N is no multiple of P."""
    return index.tensor_split(accelerator.num_processes)[accelerator.process_index]


def gather(local: Tensor, accelerator: Accelerator) -> Tensor:
    """All processes' rows (N / P, D), in their order: (N, D), the same everywhere.

    Others' rows are constants here. With the whole batch's loss computed by every process, each holds the gradient
    of *its* rows, and the sum over processes (`sum_gradients`) is the whole gradient; a mean, as DDP takes it, would be
    divided by P.
    """
    if accelerator.num_processes == 1:
        return local
    rows = list(accelerator.gather(local.detach()).chunk(accelerator.num_processes))
    rows[accelerator.process_index] = local
    return torch.cat(rows)


def sum_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace each gradient by its sum over processes."""
    if accelerator.num_processes > 1:
        for parameter in parameters:
            if parameter.grad is not None:
                torch.distributed.all_reduce(parameter.grad)


class WholeBatch:
    """Stands for ``Towers`` in a method's loss: given this process's rows, a tower returns the whole batch's.

    With ``chunk_size`` it is gradient caching (Gao et al., 2021): rows go through a tower in chunks without a graph,
    the loss yields the gradient of each embedding, and `backward` sends the chunks through again, with the same
    dropout, to pass it on. Memory holds the graph of one chunk; a tower is run forward twice.
    """

    def __init__(self, towers: nn.Module, chunk_size: int | None, accelerator: Accelerator) -> None:
        self.accelerator, self.chunk_size = accelerator, chunk_size
        self.parameters = list(towers.parameters())
        self.passes: list[tuple[nn.Module, list, Tensor]] = []
        self.text = self._whole(towers.text)
        self.vision = self._whole(towers.vision) if towers.vision is not None else None
        self.words = self._whole(towers.words) if getattr(towers, "words", None) is not None else None

    def _whole(self, tower: nn.Module) -> Callable[..., Tensor]:
        def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
            local = tower(*args, **kwargs) if self.chunk_size is None else self._cached(tower, args, kwargs)
            return gather(local, self.accelerator)

        return forward

    @torch.no_grad()
    def _cached(self, tower: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
        chunks, rows = [], []
        n = len(next(iter([*args, *kwargs.values()])))
        for index in torch.arange(n).split(self.chunk_size):
            part = [x[index] for x in args], {name: x[index] for name, x in kwargs.items()}
            chunks.append((part, rng_state()))
            rows.append(tower(*part[0], **part[1]).float())
        leaf = torch.cat(rows).requires_grad_()
        self.passes.append((tower, chunks, leaf))
        return leaf

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of the whole batch's loss in the towers' parameters, the same in every process."""
        self.accelerator.backward(loss)
        after = rng_state() if self.passes else None  # which cannot be asked for while a graph is recorded
        for tower, chunks, leaf in self.passes:
            if leaf.grad is None:  # this loss has no use for the tower (alpha 0 or 1 still has one for each)
                continue
            for ((args, kwargs), state), gradient in zip(chunks, leaf.grad.split(self.chunk_size), strict=True):
                set_rng_state(state)
                with self.accelerator.autocast():
                    rows = tower(*args, **kwargs).float()
                rows.backward(gradient)
        if after:
            set_rng_state(after)
        sum_gradients(self.parameters, self.accelerator)


def rng_state() -> dict[str, Any]:
    """The state of torch's generators, which dropout draws from."""
    return {"cpu": torch.get_rng_state(), "cuda": torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None}


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["cpu"])
    if state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"])


def batches_left(
    at: dict[str, Any], epoch: int, generator: torch.Generator, batches: Callable[[torch.Generator], Iterable[Tensor]]
) -> Iterator[tuple[dict[str, Any], Tensor]]:
    """The batches of ``epoch`` that a training resumed ``at`` has still to take, each with the position after it.

    Args:
        at: a position of an earlier call, or `START`; epochs before it are the caller's to leave out.
        generator: set back to where the interrupted epoch began, so that its order is drawn again.
        batches: draws an epoch's batches, rows (N,) each, from the generator.

    Yields: position (epoch, batch, order), for `Checkpoint.save`; rows (N,).
    """
    resumed = epoch == at["epoch"] and at["order"] is not None
    if resumed:
        generator.set_state(at["order"])
    order = generator.get_state()
    for number, index in enumerate(batches(generator)):
        if not resumed or number >= at["batch"]:
            yield {"epoch": epoch, "batch": number + 1, "order": order}, index


START = {"epoch": 0, "batch": 0, "order": None}


class Checkpoint:
    """One file that holds all that a training loop needs to go on, bit for bit on a CPU.

    Args:
        path: the file; the newest state replaces the older one.
        minutes: between two states; 0 writes one after every step.
        key: of everything that the loop depends on; a file with another key is of another training, and ignored.
        parts: objects with ``state_dict`` and ``load_state_dict``: model, optimiser, schedule.
    """

    def __init__(self, path: Path, minutes: float, key: str, accelerator: Accelerator, **parts: Any) -> None:
        self.path, self.seconds, self.key, self.accelerator, self.parts = path, 60 * minutes, key, accelerator, parts
        if accelerator.scaler is not None:
            self.parts["scaler"] = accelerator.scaler
        self.written = time.monotonic()

    def resume(self) -> dict[str, Any] | None:
        """Load the state into the parts and the generators; returns what `save` was told, or None."""
        if not self.path.is_file():
            return None
        try:
            state = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file: torch raises nearly anything
            what = str(error).splitlines()[0]
            raise OSError(f"{self.path}: the checkpoint cannot be read ({what}); delete it to start over") from error
        if state["key"] != self.key or len(state["rng"]) != self.accelerator.num_processes:
            return None
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        set_rng_state(state["rng"][self.accelerator.process_index])
        return state["progress"]

    def due(self) -> bool:
        """Whether it is time for the next state; the first process decides for all."""
        due = time.monotonic() - self.written >= self.seconds
        if self.accelerator.num_processes > 1:
            flag = torch.tensor(int(due), device=self.accelerator.device)
            torch.distributed.broadcast(flag, src=0)
            due = bool(flag)
        return due

    def save(self, **progress: Any) -> None:
        """Write a state whole: under a temporary name, then renamed.

        Raises: OSError: it cannot be written (a full disk); nothing half-written is left.
        """
        from accelerate.utils import gather_object

        rng = gather_object([rng_state()])
        if self.accelerator.is_main_process:
            state = {"key": self.key, "rng": rng, "progress": progress}
            state |= {name: part.state_dict() for name, part in self.parts.items()}
            partial = self.path.with_name(self.path.name + ".partial")
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, partial)
                os.replace(partial, self.path)
            except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
                partial.unlink(missing_ok=True)
                raise OSError(
                    f"{self.path}: cannot write the checkpoint ({error}); free disk space, then run the same command "
                    "again: it goes on from the last one"
                ) from error
        self.written = time.monotonic()

    def remove(self) -> None:
        """The loop has ended: its states are of no more use."""
        if self.accelerator.is_main_process:
            self.path.unlink(missing_ok=True)
