"""One training in several processes, each with a part of every batch: loss and gradients are those of one process."""

import os
import platform
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, notebook_launcher
from accelerate.state import AcceleratorState
from timm.layers import set_fused_attn
from torch import Tensor, nn

from icssl_lib.config import RuntimeConfig


def precision_here(runtime: RuntimeConfig) -> str:
    """Accelerate's name of the precision: "auto" is bf16 where the device multiplies in it, float32 elsewhere. On a CPU
    without instructions for it bf16 takes a hundred times as long: ValueError."""
    if runtime.precision not in ("auto", "bf16"):
        return runtime.precision
    if runtime.device != "cpu" and torch.cuda.is_available():
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    else:  # of CPUs only x86 says what it can
        able = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))
        if runtime.precision == "bf16" and not able and platform.machine() in ("x86_64", "AMD64"):
            raise ValueError("runtime.precision: bf16, but this CPU has no instructions for it; use auto or no")
    return "bf16" if able or runtime.precision == "bf16" else "no"


def make_accelerator(runtime: RuntimeConfig) -> Accelerator:
    """An Accelerator on the configured device. On a CPU the number of threads is fixed, since sums depend on it, and
    timm models made from here on go without torch's attention kernel in bf16, where it is slow. Raises: ValueError."""
    if runtime.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("runtime.device: cuda, but torch sees no GPU; use auto or cpu")
    accelerator = Accelerator(cpu=runtime.device == "cpu", mixed_precision=precision_here(runtime))
    if accelerator.device.type == "cpu":
        torch.set_num_threads(runtime.threads)
        set_fused_attn(not (runtime.fast and accelerator.mixed_precision == "bf16"))
    return accelerator


def in_processes(runtime: RuntimeConfig, function: Callable, *args: Any) -> Any:
    """``function(*args)`` in ``runtime.processes`` processes of this machine; returns what the first returned. A plain
    call for one process, and in a process of `accelerate launch`. CUDA must not have been used before the fork."""
    if runtime.processes == 1 or "WORLD_SIZE" in os.environ:
        return function(*args)
    AcceleratorState._reset_state(reset_partial_state=True)  # of an earlier stage: the launcher would refuse
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.pt"

        def call() -> None:
            returned = function(*args)
            if int(os.environ["RANK"]) == 0:
                torch.save(returned, result)

        notebook_launcher(call, num_processes=runtime.processes, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0")
        return torch.load(result, weights_only=False)  # written just now by our own process


def local_rows(index: Tensor, accelerator: Accelerator) -> Tensor:
    """This process's share of the rows ``index`` (N,) of a batch; shares differ by one where N is no multiple of P."""
    return index.tensor_split(accelerator.num_processes)[accelerator.process_index]


def gather(local: Tensor, accelerator: Accelerator) -> Tensor:
    """All processes' rows (N / P, D), in their order: (N, D). Others' rows are constants: each process computes the
    whole batch's loss and holds the gradient of *its* rows; the sum (`sum_gradients`) is the whole, not DDP's mean."""
    if accelerator.num_processes == 1:
        return local
    rows = list(accelerator.gather(local.detach()).chunk(accelerator.num_processes))
    rows[accelerator.process_index] = local
    return torch.cat(rows)


def sum_gradients(parameters: Iterable[nn.Parameter], accelerator: Accelerator) -> None:
    """Replace each gradient by its sum over processes."""
    for parameter in parameters if accelerator.num_processes > 1 else ():
        if parameter.grad is not None:
            torch.distributed.all_reduce(parameter.grad)
