"""Text and vision towers: backbone, pooling, projection. (N, ...) in, (N, D) out; no losses here."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from icssl_lib.config import TextConfig, VisionConfig, nearest
from icssl_lib.files import folder_written_whole

# Tensors by name: input_ids and attention_mask (N, T). To adapt also images uint8 (N, S, S, 3), or features (N, F) of a
# frozen tower, and groups (N,), equal for equal titles; to classify target, (N,) or (N, C), and weight.
Batch = dict[str, Tensor]


class ModelError(ValueError):
    """A model that cannot be loaded; the message says which and what to do."""


@contextmanager
def explained(what: str, hint: str = "") -> Iterator[None]:
    """What transformers, timm and safetensors raise in the block becomes a ModelError: what, why, hint."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{what}: {' '.join(str(error).split())[:200]}{hint}") from error


def projection(dim_in: int, dim_out: int, depth: int = 2) -> nn.Sequential:
    """MLP of ``depth`` linear layers with ReLU between them: (N, dim_in) -> (N, dim_out). Of depth 0: nothing."""
    layers = [layer for _ in range(depth - 1) for layer in (nn.Linear(dim_in, dim_in), nn.ReLU())]
    return nn.Sequential(*layers, *([nn.Linear(dim_in, dim_out)] if depth else []))


class TextTower(nn.Module):
    """A Hugging Face encoder, pooled (`embed`: (N, H)) and projected. Call: tokens (N, T) -> (N, D)."""

    def __init__(self, backbone: nn.Module, pooling: str, projection_dim: int, depth: int) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self.projection = projection(backbone.config.hidden_size, projection_dim, depth)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (N, T, H)
        if self.pooling == "cls":
            return hidden[:, 0]
        weights = attention_mask[..., None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1)  # the mean over real tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.projection(self.embed(input_ids, attention_mask))


class VisionTower(nn.Module):
    """A timm model without its classifier, projected. Call: pixels uint8 (N, S, S, 3) -> (N, D). frozen: the backbone
    does not train, and `forward` takes the features (N, F) that `embed` returns, so that they can be computed once.
    size: pictures are first brought to that edge, in pixels; 0: as they are."""

    def __init__(self, backbone: nn.Module, projection_dim: int, depth: int, frozen: bool = False, size: int = 0):
        super().__init__()
        self.backbone, self.frozen, self.size = backbone.requires_grad_(not frozen), frozen, size
        self.projection = projection(backbone.num_features, projection_dim, depth)
        for name in ("mean", "std"):
            colour = 255 * torch.tensor(backbone.pretrained_cfg[name]).view(1, 3, 1, 1)
            self.register_buffer(name, colour, persistent=False)

    def train(self, mode: bool = True) -> "VisionTower":
        super().train(mode)
        self.backbone.train(mode and not self.frozen)
        return self

    def embed(self, pixels: Tensor) -> Tensor:
        x = pixels.permute(0, 3, 1, 2).float()  # (N, 3, S, S)
        if self.size and self.size != x.shape[-1]:
            x = nn.functional.interpolate(x, size=(self.size, self.size), mode="bilinear", antialias=True)
        return self.backbone((x - self.mean) / self.std)  # (N, F)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x if self.frozen else self.embed(x))


class PairScale(nn.Module):
    """The scale (held as its log) and bias of the sigmoid loss, learnt (Zhai et al., 2023). They begin at 1/temperature
    and -log(N - 1), N the batch size: the log odds that a title and a picture of a batch are a pair. Call: titles
    (N, ...) -> (N, 2), scale and bias once more for each, so that chunks and processes gather them as embeddings."""

    def __init__(self, temperature: float, batch_size: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(-torch.tensor(temperature).log())
        self.bias = nn.Parameter(-torch.tensor(batch_size - 1.0).log())

    def forward(self, titles: Tensor) -> Tensor:
        return torch.stack([self.log_scale.exp(), self.bias]).repeat(len(titles), 1)


class Towers(nn.Module):
    """The text tower and, where a method needs them, the vision tower, a head on the text tower's encoder that guesses
    words, and the scale of the sigmoid loss."""

    def __init__(self, text: TextTower, vision: VisionTower | None, words=None, scale: PairScale | None = None) -> None:
        super().__init__()
        self.text, self.vision, self.words, self.scale = text, vision, words, scale


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """(N, C), of a transformers classifier or of a module that returns them."""
    output = model(**batch)
    return output if isinstance(output, Tensor) else output.logits


def load_text(model: str):
    """AutoModel (the bare encoder, weights in float32) and AutoTokenizer by hub name or folder. Raises: ModelError."""
    hint = ". Without network, set text.model to a folder that holds config.json, model.safetensors and the tokenizer"
    if (Path(model).is_absolute() or Path(model).is_dir()) and not Path(model, "config.json").is_file():
        raise ModelError(f"text.model: {model} holds no config.json{hint}")
    with explained(f"text.model: cannot load '{model}'", hint):
        return AutoModel.from_pretrained(model, dtype=torch.float32), AutoTokenizer.from_pretrained(model)


def load_vision(config: VisionConfig) -> nn.Module:
    """A timm model without classifier, its position embeddings interpolated to ``image_size``. Raises: ModelError."""
    if ":" not in config.model and not timm.is_model(config.model):  # hf-hub:name, local-dir:folder
        raise ModelError(f"vision.model: timm has no '{config.model}'; {nearest(config.model, timm.list_models())}")
    options = {"num_classes": 0, "pretrained": not config.random, "img_size": config.image_size}
    hint = ". Without network, set vision.checkpoint to the model's .safetensors file; only such files are read"
    with explained(f"vision.model: cannot load weights of '{config.model}'", hint):
        if config.checkpoint is not None and not config.random:
            kept = {name: w for name, w in load_file(config.checkpoint).items() if not name.startswith("head")}
            options["pretrained_cfg_overlay"] = {"state_dict": kept, "num_classes": 0}  # 0: all others must fit
        backbone = timm.create_model(config.model, **options)
    backbone.pretrained_cfg.pop("state_dict", None)
    return backbone.float()


def tokenize(tokenizer, titles: list[str], max_tokens: int) -> Batch:
    """Titles to input_ids and attention_mask, (N, T) each, padded to the longest title here, cut at max_tokens."""
    options = {"truncation": True, "max_length": max_tokens, "padding": True, "return_tensors": "pt"}
    return dict(tokenizer(titles, **options, return_token_type_ids=False))


def take(tokens: Batch, index: Tensor, device: torch.device | str, multiple: int = 1) -> Batch:
    """Rows ``index`` (n,) of (N, T) tokens padded on the right: (n, t) each. t is the longest among them, brought up to
    the next ``multiple``; at most T."""
    length = -(-int(tokens["attention_mask"][index].sum(dim=1).max()) // multiple) * multiple
    return {name: rows[index, :length].to(device) for name, rows in tokens.items()}


def by_length(lengths: Tensor, embed: Callable[[Tensor], Tensor]) -> Tensor:
    """``embed`` of the rows (n,) of batches of like length, for all N in their order: (N, ...), on the CPU."""
    order = lengths.argsort(stable=True)
    return torch.cat([embed(rows).cpu() for rows in order.split(128)])[order.argsort()]


@torch.inference_mode()
def embed_titles(backbone: nn.Module, tokenizer, titles: list[str], text: TextConfig) -> Tensor:
    """Pooled embeddings of titles, without dropout and before projection: float32 (N, H). Faster inside `fast`."""
    backbone.eval()
    tower = TextTower(backbone, text.pooling, projection_dim=1, depth=0)
    tokens = tokenize(tokenizer, titles, text.max_tokens)
    lengths = tokens["attention_mask"].sum(dim=1)
    return by_length(lengths, lambda rows: tower.embed(**take(tokens, rows, backbone.device)).float())


def nearest_rows(queries: Tensor, known: Tensor, k: int, skip_self: bool = False) -> tuple[Tensor, Tensor]:
    """Of each query (N, D) the k nearest rows of ``known`` (M, D) by cosine, nearest first; where M < k, all of them.
    skip_self: row i of both is one thing, and no neighbour of its own. Returns: cosines, row numbers, (N, k) each."""
    queries, known, nearest = nn.functional.normalize(queries, dim=1), nn.functional.normalize(known, dim=1), []
    for rows in torch.arange(len(queries)).split(1024):  # (1024, M) cosines at a time
        cosines = queries[rows] @ known.T
        if skip_self:
            cosines[torch.arange(len(rows)), rows] = -torch.inf
        nearest.append(cosines.topk(min(k, len(known) - skip_self), dim=1))
    return torch.cat([near.values for near in nearest]), torch.cat([near.indices for near in nearest])


def save_pretrained(model, tokenizer, folder: Path) -> None:
    """Write a plain Hugging Face folder, whole or not at all."""
    with folder_written_whole(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
