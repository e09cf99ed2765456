"""CUDA graphs: a training step is recorded (captured) once for each shape of its batch, and then replayed.

A step of a text encoder is a few thousand kernels, and in batches of 32 a GPU has done each before a CPU starts another
one. A recorded step is started at once. Its shapes are fixed, so a batch's titles are packed into a budget of
tokens, the real ones and as much padding as fills it up; budgets and lengths are round numbers, so that few shapes come
up. The mathematics is that of `fast`, and dropout is drawn anew in each replay.
"""

import math
import warnings
from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from icssl_lib.config import RuntimeConfig
from icssl_lib.fast import Packing

LENGTHS = 8  # titles are padded to a multiple of this many tokens
BUDGET = 256  # tokens of a batch, to a multiple of this


def can_capture(runtime: RuntimeConfig, accelerator: Accelerator) -> bool:
    """Whether steps are recorded: on a GPU, in one process, and unless ``runtime`` says otherwise."""
    alone = accelerator.num_processes == 1 and accelerator.scaler is None
    return runtime.fast and runtime.cuda_graphs and accelerator.device.type == "cuda" and alone


class Replay:
    """A step that is run as it is when a shape comes up first, then recorded, and replayed from there on.

    Args:
        step: tensors by name, on the device, to the loss, whose gradients it adds to those of ``parameters``. Recorded,
            it must not wait for the device, draws from torch's generator alone, and what else it reads stays as it was.
        parameters: of the model; those that the first step gave a gradient get one from all.
        packing: of the `fast` block that the step runs in.
        device: of the step's tensors.
        enabled: False runs every step as it is, as do all after one that could not be recorded.
    """

    refused = False  # in this process; torch's allocator may not stand another attempt

    def __init__(
        self,
        step: Callable[..., Tensor],
        parameters: Iterable[nn.Parameter],
        packing: Packing,
        device: torch.device,
        enabled: bool,
    ) -> None:
        self.step, self.parameters, self.packing, self.device = step, list(parameters), packing, device
        self.enabled = enabled and not Replay.refused
        self.captured: dict[tuple, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor] | None] = {}
        self.trained: list[nn.Parameter] = []
        self.gradients: list[Tensor] = []  # where all graphs leave theirs
        self.pool = None  # of memory, the same for all graphs: one runs at a time

    @property
    def pad_to_multiple_of(self) -> int:
        """What titles are padded to a multiple of."""
        return LENGTHS if self.enabled else 1

    def __call__(self, **inputs: Tensor) -> Tensor:
        """The loss of a batch, detached; the parameters' gradients must be None, as ``zero_grad`` leaves them.

        Args: inputs: the step's tensors, on any device; ``attention_mask`` (N, T), if there is one, on the CPU.
        Returns: scalar on the device; a replay overwrites it in the next step of this shape.
        Raises: RuntimeError: the step's own.
        """
        if not self.enabled:
            return self._run(inputs)
        mask, share = inputs.get("attention_mask"), None
        if mask is not None:
            share = min(1.0, BUDGET * math.ceil(int(mask.sum()) / BUDGET) / mask.numel())
        key = share, *((name, *x.shape, x.dtype) for name, x in inputs.items())
        self.packing.share = share
        try:
            seen = key in self.captured
            if not seen:
                self.captured[key] = None
                return self._run(inputs)
            if self.captured[key] is None:
                self.captured[key] = self._capture(inputs)
        except RuntimeError as error:
            if not seen and not self.gradients:  # nothing has been recorded: it is the step itself
                raise
            self._give_up(error)
        finally:
            self.packing.share = None
        if not self.enabled:  # out of the block above, where the error would keep what the step had allocated
            return self._run(inputs)
        graph, static, loss = self.captured[key]
        for name, x in inputs.items():
            static[name].copy_(x, non_blocking=True)
        for parameter, gradient in zip(self.trained, self.gradients, strict=True):
            parameter.grad = gradient
        graph.replay()
        return loss

    def _run(self, inputs: dict[str, Tensor]) -> Tensor:
        loss = self.step(**{name: x.to(self.device) for name, x in inputs.items()}).detach()
        if self.enabled and not self.trained:
            self.trained = [parameter for parameter in self.parameters if parameter.grad is not None]
        return loss

    def _capture(self, inputs: dict[str, Tensor]) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]:
        static = {name: torch.empty_like(x, device=self.device).copy_(x) for name, x in inputs.items()}
        if not self.gradients:
            self.gradients = [torch.zeros_like(parameter) for parameter in self.trained]
        for parameter, gradient in zip(self.trained, self.gradients, strict=True):
            parameter.grad = gradient
        self.pool = self.pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=self.pool):
            torch._foreach_zero_(self.gradients)
            loss = self.step(**static).detach()
        return graph, static, loss

    def _give_up(self, error: RuntimeError) -> None:
        """From here on this process runs steps as they are: one waits for the device, say, or memory is short."""
        why = str(error.__context__ or error).splitlines()[0]  # that it broke off hides what broke it off
        warnings.warn(f"a step cannot be recorded as a CUDA graph, so none is: {why}", stacklevel=3)
        self.enabled, Replay.refused = False, True
        self.captured.clear()
        self.gradients.clear()
        for parameter in self.parameters:
            parameter.grad = None
        if torch.cuda.is_initialized():  # a recording that broke off leaves the generator waiting for its end
            generator = torch.cuda.default_generators[torch.cuda.current_device()]
            generator.graphsafe_set_state(generator.clone_state())
