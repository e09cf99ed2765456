"""The whole batch's loss, whatever part of it a process or a chunk holds: gradient caching (Gao et al., 2021)."""

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from icssl_lib.fast.processes import gather, sum_gradients


def cached(accelerator: Accelerator, chunk_size: int | None) -> Callable[..., Tensor]:
    """A step: (model, this process's rows, loss_fn) -> the whole batch's loss, detached; it adds to the gradients. With
    ``chunk_size`` rows pass a tower in chunks and leave no graph: once the loss has yielded each embedding's gradient,
    torch sends them through again, chunk by chunk and with the same dropout, to pass it on."""

    def step(model: nn.Module, batch: dict[str, Tensor], loss_fn: Callable[..., Tensor]) -> Tensor:
        towers = {name: partial(_whole, tower, accelerator, chunk_size) for name, tower in model.named_children()}
        with accelerator.autocast():
            loss = loss_fn(SimpleNamespace(**towers), batch)
        accelerator.backward(loss)
        sum_gradients(model.parameters(), accelerator)
        return loss.detach()

    return step


def _whole(tower: nn.Module, accelerator: Accelerator, size: int | None, *args: Tensor, **kwargs: Tensor) -> Tensor:
    """The whole batch's embeddings, from this process's rows of what ``tower`` takes."""
    if size is None:
        return gather(tower(*args, **kwargs), accelerator)

    def embed(*chunk: Tensor) -> Tensor:
        return tower(*chunk[: len(args)], **dict(zip(kwargs, chunk[len(args) :], strict=True)))

    # By position, since torch looks there for the devices whose generators it has to set back.
    chunks = zip(*(x.split(size) for x in (*args, *kwargs.values())), strict=True)
    rows = [checkpoint(embed, *chunk, use_reentrant=False).float() for chunk in chunks]
    return gather(torch.cat(rows), accelerator)
