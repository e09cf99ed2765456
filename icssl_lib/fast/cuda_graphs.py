"""CUDA graphs: a training step is recorded once for each shape of its batch, and then replayed.

A CPU starts a step's few thousand kernels more slowly than a GPU ends them; a recorded step is started at once. Its
shapes are fixed, so titles are packed into a round number of tokens, and few shapes come up."""

from collections.abc import Callable, Iterable

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from icssl_lib.config import RuntimeConfig
from icssl_lib.fast.unpad import Packing

LENGTHS = 8  # titles are padded to a multiple of this many tokens
BUDGET = 256  # a batch's tokens are packed into a multiple of this many
Step = Callable[..., Tensor]  # model, batch, loss_fn -> loss, detached


def can_capture(runtime: RuntimeConfig, accelerator: Accelerator) -> bool:
    """Whether steps are recorded: on a GPU, in one process, and unless ``runtime`` says otherwise."""
    on_a_gpu = accelerator.device.type == "cuda" and accelerator.num_processes == 1 and accelerator.scaler is None
    return runtime.fast and runtime.cuda_graphs and on_a_gpu


class Recorded:
    """A step that is run as it is when a shape comes up first, recorded the second time, and then replayed. It must not
    wait for the device, draw from another generator than torch's, or read anything else that changes. Call: model,
    batch (``attention_mask`` (N, T) on the CPU), loss_fn -> loss on the device, which a later replay of this shape
    overwrites. Gradients must be None, as ``zero_grad`` leaves them."""

    def __init__(
        self, step: Step, parameters: Iterable[nn.Parameter], packing: Packing, device: torch.device, enabled: bool
    ) -> None:
        self.step, self.parameters, self.packing, self.device = step, list(parameters), packing, device
        self.enabled, self.pool = enabled, None  # pool: memory of all graphs, of which one runs at a time
        self.captured: dict[tuple, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor] | None] = {}
        self.gradients: dict[nn.Parameter, Tensor] = {}  # where all graphs leave those of trained ones

    def __call__(self, model: nn.Module, batch: dict[str, Tensor], loss_fn: Step) -> Tensor:
        if not self.enabled:
            return self._run(model, batch, loss_fn)
        if (mask := batch.get("attention_mask")) is not None:
            self.packing.share = min(1.0, -(-int(mask.sum()) // BUDGET) * BUDGET / mask.numel())
        key = model, loss_fn, self.packing.share, *((name, *x.shape, x.dtype) for name, x in batch.items())
        try:
            if key not in self.captured:
                loss, self.captured[key] = self._run(model, batch, loss_fn), None
                if not self.gradients:
                    self.gradients = {p: torch.zeros_like(p) for p in self.parameters if p.grad is not None}
                return loss
            for parameter, gradient in self.gradients.items():
                parameter.grad = gradient
            self.captured[key] = self.captured[key] or self.capture(model, batch, loss_fn)
        finally:
            self.packing.share = None
        graph, static, loss = self.captured[key]
        for name, x in batch.items():
            static[name].copy_(x, non_blocking=True)
        graph.replay()
        return loss

    def _run(self, model: nn.Module, batch: dict[str, Tensor], loss_fn: Step) -> Tensor:
        return self.step(model, {name: x.to(self.device) for name, x in batch.items()}, loss_fn)

    def capture(self, model: nn.Module, batch: dict[str, Tensor], loss_fn: Step) -> tuple:
        static = {name: torch.empty_like(x, device=self.device).copy_(x) for name, x in batch.items()}
        graph, self.pool = torch.cuda.CUDAGraph(), self.pool or torch.cuda.graph_pool_handle()
        try:
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=self.pool):
                torch._foreach_zero_(list(self.gradients.values()))
                loss = self.step(model, static, loss_fn)
        except RuntimeError as error:
            raise RuntimeError("a step cannot be recorded as a CUDA graph; set runtime.cuda_graphs: false") from error
        return graph, static, loss
