"""Text and vision towers: backbone, pooling, projection. (N, ...) in, (N, D) out; no losses here."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import cached_file

from icssl_lib.config import TextConfig, VisionConfig, nearest
from icssl_lib.files import folder_written_whole, verify

# Tensors by name: input_ids and attention_mask (N, T). To adapt also images uint8 (N, S, S, 3), or features (N, F) of a
# frozen tower, and groups (N,), equal for equal titles; to classify target, (N,) or (N, C), and weight.
Batch = dict[str, Tensor]


class ModelError(ValueError):
    """A model that cannot be loaded; the message says which and what to do."""


@contextmanager
def explained(what: str, hint: str = "") -> Iterator[None]:
    """What transformers, timm and safetensors raise in the block becomes a ModelError: what, all of why, hint."""
    try:
        yield
    except Exception as error:  # which of them: nearly any
        why = " ".join(str(error).split())
        if not hint and re.search("n't connect|offline mode|_offline|your connection|timed out", why, re.I):
            hint = ". Without network, name a folder that holds the model's files (of timm: vision.checkpoint)"
        raise ModelError(f"{what}: {why.rstrip('.')}{hint}") from error


def projection(dim_in: int, dim_out: int, depth: int = 2) -> nn.Sequential:
    """MLP of ``depth`` linear layers with ReLU between them: (N, dim_in) -> (N, dim_out). Of depth 0: nothing."""
    layers = [layer for _ in range(depth - 1) for layer in (nn.Linear(dim_in, dim_in), nn.ReLU())]
    return nn.Sequential(*layers, *([nn.Linear(dim_in, dim_out)] if depth else []))


class Normalize(nn.Module):
    """Rows (N, D) brought to length 1."""

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.normalize(rows, dim=1)


class TextTower(nn.Module):
    """A Hugging Face encoder, pooled (`embed`: (N, H)) and projected. Call: tokens (N, T) -> (N, D)."""

    def __init__(self, backbone: nn.Module, pooling: str, projection_dim: int, depth: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.pooling = pooling if pooling != "auto" else pooling_of(backbone.config.name_or_path)
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
        self.width = getattr(backbone, "head_hidden_size", backbone.num_features)  # F
        self.projection = projection(self.width, projection_dim, depth)
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


class WithWords(nn.Module):
    """A classifier of titles beside a linear one of their terms, ``weight`` (C, V). Call: tokens (N, T), terms and
    values (N, K) as of `lexical.Lexical.padded` -> logits (N, C)."""

    def __init__(self, model: nn.Module, weight: Tensor) -> None:
        super().__init__()
        self.model, self.weight = model, nn.Parameter(weight.T.contiguous())

    def forward(self, input_ids: Tensor, attention_mask: Tensor, terms: Tensor, values: Tensor) -> Tensor:
        own = logits(self.model, {"input_ids": input_ids, "attention_mask": attention_mask})
        return own + (self.weight[terms] * values[..., None]).sum(dim=1)


def logits(model: nn.Module, batch: Batch) -> Tensor:
    """(N, C), of a transformers classifier or of a module that returns them."""
    output = model(**batch)
    return output if isinstance(output, Tensor) else output.logits


def load_text(model: str, max_tokens: int = 0):
    """AutoModel (the bare encoder, weights in float32) and AutoTokenizer, padding on the right, by hub name or folder.
    Raises: ModelError: it cannot be loaded, or cannot read titles of ``max_tokens`` tokens."""
    a_path = model[:1] in (".", "/", "~") or model.count("/") > 1 or ("/" in model and Path(model).parent.is_dir())
    if a_path and not Path(model, "config.json").is_file():
        raise ModelError(f"text.model: {model} holds no config.json; name a folder with a model and its tokenizer")
    with explained(f"text.model: cannot load '{model}'"):
        verify(Path(model))
        options = {"dtype": torch.float32, "output_loading_info": True}
        backbone, found = AutoModel.from_pretrained(model, trust_remote_code=False, **options)  # False: nobody is asked
        tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
        size = getattr(backbone.get_input_embeddings(), "num_embeddings", 0)
    config, words = backbone.config, tokenizer.get_vocab()
    places = max(0, getattr(config, "max_position_embeddings", None) or 0) or max_tokens
    if padding := getattr(getattr(getattr(backbone, "embeddings", 0), "position_embeddings", 0), "padding_idx", None):
        places -= padding + 1  # RoBERTa counts positions from there
    absent = sorted(name for name in found["missing_keys"] if "pooler" not in name)
    faults = {
        "is an encoder-decoder; name an encoder": config.is_encoder_decoder,
        "has no hidden_size; name an encoder of texts": not hasattr(config, "hidden_size"),
        f"lacks {len(absent)} weights, e.g. {absent[:1]}; name the folder of a whole model": absent,
        "holds no tokenizer; save one beside the weights": len(words) <= len(tokenizer.all_special_ids),
        "has a tokenizer without a padding token": tokenizer.pad_token_id is None,
        f"has {size} embeddings, but its tokenizer has {len(words)} ids": max(words.values(), default=0) >= size,
        f"reads at most {places} tokens; lower text.max_tokens, {max_tokens}": places < max_tokens,
    }
    for fault, there in faults.items():
        if there:
            raise ModelError(f"text.model: {model} {fault}")
    with explained(f"text.model: {model} is no encoder of texts"), torch.inference_mode():
        tokens = tokenizer("a", return_tensors="pt", return_token_type_ids=False)
        if not backbone(**tokens).last_hidden_state.isfinite().all():
            raise ModelError("its weights give numbers that are not finite")
    tokenizer.padding_side = "right"  # `take` cuts there
    return backbone, tokenizer


def pooling_of(model: str, default: str = "mean") -> str:
    """How a sentence encoder says that it pools, by its folder or hub name. Raises: ModelError: not by mean or cls."""

    def said(name: str) -> Any:
        path = model and cached_file(model, name, _raise_exceptions_for_missing_entries=False)
        return json.loads(Path(path).read_text("utf-8")) if path else None

    with explained(f"text.model: cannot read how {model} pools"):
        modules = said("modules.json") or [{"type": "Pooling", "path": "1_Pooling"}]
        paths = {module["type"].rpartition(".")[2]: module["path"] for module in modules}
        modes = said(f"{paths.get('Pooling', '1_Pooling')}/config.json") or {"pooling_mode": default}
        names = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}
        on = {names.get(name, name) for name in modes if name.startswith("pooling_mode_") and modes[name] is True}
        on |= {str(modes["pooling_mode"])} if "pooling_mode" in modes else set()
    on |= paths.keys() - {"Transformer", "Pooling", "Normalize"}
    if on not in ({"mean"}, {"cls"}):
        raise ModelError(f"text.model: {model} pools by {' and '.join(sorted(on))}; set text.pooling to mean or cls")
    return on.pop()


def load_vision(config: VisionConfig) -> nn.Module:
    """A timm model without classifier, its position embeddings interpolated to ``image_size``. Raises: ModelError."""
    if ":" not in config.model and not timm.is_model(config.model):  # hf-hub:name, local-dir:folder
        raise ModelError(f"vision.model: timm has no '{config.model}'; {nearest(config.model, timm.list_models())}")
    options = {"num_classes": 0, "pretrained": not config.random}
    with explained(f"vision.model: cannot load weights of '{config.model}'"):
        verify(Path(config.model.removeprefix("local-dir:")))
        if config.checkpoint is not None and not config.random:
            with explained(f"vision.checkpoint: {config.checkpoint}", "; only .safetensors files are read"):
                weights = load_file(config.checkpoint)
            head = timm.models.get_pretrained_cfg_value(config.model, "classifier") or "head"
            heads = tuple(f"{name}." for name in ([head] if isinstance(head, str) else head))
            kept = {name: w for name, w in weights.items() if not name.startswith(heads)}
            options["pretrained_cfg_overlay"] = {"state_dict": kept, "num_classes": 0}  # 0: all others must fit
        try:
            backbone = timm.create_model(config.model, img_size=config.image_size, **options)
        except TypeError:  # convolutions take pictures of any size
            backbone = timm.create_model(config.model, **options)
    backbone.pretrained_cfg.pop("state_dict", None)
    return backbone.float()


def tokenize(tokenizer, titles: list[str], max_tokens: int) -> Batch:
    """Titles to input_ids and attention_mask, (N, T) each, padded to the longest title here, cut at max_tokens.
    Raises: ModelError: of many titles the tokenizer knows less than half of the words."""
    options = {"truncation": True, "max_length": max_tokens, "padding": True, "return_tensors": "pt"}
    tokens = dict(tokenizer(titles, **options, return_token_type_ids=False))
    no_word = -1 if tokenizer.unk_token_id is None else tokenizer.unk_token_id
    words = tokens["attention_mask"].sum() - len(titles) * tokenizer.num_special_tokens_to_add()
    unknown = float((tokens["input_ids"] == no_word).sum() / words.clamp(min=1))
    if unknown > 0.5 and len(titles) >= 20:
        raise ModelError(f"text.model: no token for {unknown:.0%} of the titles' words (e.g. {titles[0]!r:.60})")
    return tokens


def take(tokens: Batch, index: Tensor, device: torch.device | str, multiple: int = 1) -> Batch:
    """Rows ``index`` (n,) of right-padded tokens (N, T): (n, t), t the longest's next ``multiple``, at most T."""
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


def save_pretrained(model, tokenizer, folder: Path, pooling: str | None = None, head: Iterable[nn.Module] = ()) -> None:
    """Write a plain Hugging Face folder, whole or not at all. pooling: of an encoder, for SentenceTransformer; head:
    the layers behind it, `nn.Linear` and `Normalize`; `nn.Dropout` is left out."""
    layers = [layer for layer in head if not isinstance(layer, nn.Dropout)]
    with folder_written_whole(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        if not pooling:
            return
        kinds = ["Transformer", "Pooling", *("Normalize" if isinstance(x, Normalize) else "Dense" for x in layers)]
        paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], start=1))]
        named = [{"path": p, "type": f"sentence_transformers.models.{k}"} for p, k in zip(paths, kinds, strict=True)]
        modes = {"word_embedding_dimension": model.config.hidden_size}
        modes |= {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean"}
        files = {"1_Pooling/config": modes, "modules": [{"idx": i, "name": str(i)} | n for i, n in enumerate(named)]}
        for path, layer in zip(paths[1:], [None, *layers], strict=True):
            (part / path).mkdir()
            if isinstance(layer, nn.Linear):
                weights = {f"linear.{name}": weight for name, weight in layer.state_dict().items()}
                save_file(weights, part / path / "model.safetensors")
                shape = {"in_features": layer.in_features, "out_features": layer.out_features, "bias": True}
                files[f"{path}/config"] = shape | {"activation_function": "torch.nn.modules.linear.Identity"}
        for name, content in files.items():
            (part / f"{name}.json").write_text(json.dumps(content, indent=1))


def load_head(folder: Path) -> TextTower:
    """The encoder with the layers behind its pooling that `save_pretrained` wrote: tokens (N, T) -> logits (N, C)."""
    modules, modes = (json.loads((folder / f"{n}.json").read_text("utf-8")) for n in ("modules", "1_Pooling/config"))
    pooling = "cls" if modes["pooling_mode_cls_token"] else "mean"
    tower = TextTower(load_text(str(folder))[0], pooling, 1, depth=0)
    for module in modules[2:]:
        tower.projection.append(Normalize())
        if module["type"].endswith("Dense"):
            weights = load_file(folder / module["path"] / "model.safetensors")
            tower.projection[-1] = nn.Linear(*weights["linear.weight"].shape[::-1])
            tower.projection[-1].load_state_dict({name.removeprefix("linear."): w for name, w in weights.items()})
    return tower
