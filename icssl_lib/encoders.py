"""Text and vision towers: backbone, pooling, projection. (N, ...) in, (N, D) out; no losses here."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from icssl_lib.config import TextConfig, VisionConfig, nearest
from icssl_lib.images import folder_written_whole


class ModelError(ValueError):
    """A model that cannot be loaded; the message says which and what to do."""


def mean_pool(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: hidden (N, T, H), mask (N, T) of 0 and 1 with a 1 in each row -> (N, H)."""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(dim=1) / weights.sum(dim=1)


def projection(dim_in: int, dim_out: int, depth: int = 2) -> nn.Sequential:
    """MLP of ``depth`` linear layers with ReLU between them: (N, dim_in) -> (N, dim_out)."""
    layers: list[nn.Module] = []
    for i in range(depth):
        last = i == depth - 1
        layers += [nn.Linear(dim_in, dim_out if last else dim_in)] + ([] if last else [nn.ReLU()])
    return nn.Sequential(*layers)


class TextTower(nn.Module):
    """A Hugging Face encoder, pooled and projected.

    Call: input_ids (N, T), attention_mask (N, T) -> (N, D). `embed` gives the pooled (N, H) before projection.
    """

    def __init__(self, backbone: nn.Module, pooling: str, projection_dim: int, depth: int) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self.projection = projection(backbone.config.hidden_size, projection_dim, depth)

    def embed(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state  # (N, T, H)
        return hidden[:, 0] if self.pooling == "cls" else mean_pool(hidden, attention_mask)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.projection(self.embed(input_ids, attention_mask))


class VisionTower(nn.Module):
    """A timm model without its classifier, projected.

    Call: pixels uint8 (N, S, S, 3) -> (N, D). With ``frozen`` the backbone neither trains nor uses dropout, and
    `forward` takes its features (N, F), as `embed` returns them, so that they can be computed once. With ``size``
    pictures are first brought to that edge, in pixels.
    """

    def __init__(
        self, backbone: nn.Module, projection_dim: int, depth: int, frozen: bool = False, size: int | None = None
    ) -> None:
        super().__init__()
        self.size = size
        self.backbone, self.frozen = backbone.requires_grad_(not frozen), frozen
        self.projection = projection(backbone.num_features, projection_dim, depth)
        settings = backbone.pretrained_cfg
        self.register_buffer("mean", 255 * torch.tensor(settings["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(settings["std"]).view(1, 3, 1, 1), persistent=False)

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


def hide_words(ids: Tensor, words: Tensor, mask_id: int, vocabulary: int, share: float = 0.15) -> tuple[Tensor, Tensor]:
    """Choose words at random, anew at each call: 80% of them become the mask, 10% any token, 10% stay as they are
    (Devlin et al., 2019).

    Args:
        ids: (N, T).
        words: bool (N, T), false at padding and special tokens, which are never chosen.
        vocabulary: "any token" is below it.
        share: the probability of a word to be chosen.

    Returns: ids to read (N, T); the words chosen, bool (N, T).
    """
    chosen, fate = (torch.rand(ids.shape, device=ids.device) for _ in range(2))
    chosen = words & (chosen < share)
    read = torch.where(chosen & (fate < 0.8), mask_id, ids)
    return torch.where(chosen & (fate >= 0.9), torch.randint_like(ids, vocabulary), read), chosen


class _HandsOn(nn.Module):
    """In the place of a transformers encoder: its hidden states are those that it is given."""

    def forward(self, *_: None, inputs_embeds: Tensor, **__: None):
        from transformers.modeling_outputs import BaseModelOutput

        return BaseModelOutput(last_hidden_state=inputs_embeds)


class MaskedWords(nn.Module):
    """Guesses hidden words of titles (Devlin et al., 2019).

    Call: input_ids (N, T), attention_mask (N, T) -> (N, 2): the summed cross-entropy, in nats, of a title's hidden
    words, and how many they are. The encoder is the text tower's and no part of this module, which holds the head.

    Args:
        encoder: a transformers encoder.
        head: the same with a head for masked language modelling; only the head is used, its output layer tied to
            ``encoder``'s embeddings where the model's configuration says so.
        special: ids that are no words.
        vocabulary: the number of ids.
    """

    def __init__(self, encoder: nn.Module, head: nn.Module, special: list[int], mask_id: int, vocabulary: int) -> None:
        super().__init__()
        setattr(head, head.base_model_prefix, encoder)
        head.tie_weights()
        setattr(head, head.base_model_prefix, _HandsOn())
        self.head, self._encoder, self.mask_id, self.vocabulary = head, [encoder], mask_id, vocabulary
        self.register_buffer("special", torch.tensor(special), persistent=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        words = attention_mask.bool() & ~torch.isin(input_ids, self.special)
        read, chosen = hide_words(input_ids, words, self.mask_id, self.vocabulary)
        hidden = self._encoder[0](input_ids=read, attention_mask=attention_mask).last_hidden_state
        logits = self.head(inputs_embeds=hidden[chosen][None]).logits[0]  # of hidden words alone: (M, vocabulary)
        each = nn.functional.cross_entropy(logits.float(), input_ids[chosen], reduction="none")  # (M,)
        nats = each.new_zeros(len(input_ids)).index_add(0, chosen.nonzero()[:, 0], each)
        return torch.stack([nats, chosen.sum(dim=1).to(nats.dtype)], dim=1)


def load_words(model: str, encoder: nn.Module, tokenizer) -> MaskedWords:
    """The head for masked language modelling that the hub name or folder holds, or a fresh one, on ``encoder``.

    Raises: ModelError: transformers has no such head for this kind of encoder, or the tokenizer has no mask.
    """
    from transformers import AutoModelForMaskedLM

    if tokenizer.mask_token_id is None:
        raise ModelError(f"text.model: the tokenizer of '{model}' has no mask token, which masked language models need")
    try:
        head = AutoModelForMaskedLM.from_pretrained(model, dtype=torch.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"text.model: '{model}' cannot be a masked language model: {str(error).splitlines()[0]}"
        ) from error
    vocabulary = min(len(tokenizer), head.config.vocab_size)
    return MaskedWords(encoder, head, tokenizer.all_special_ids, tokenizer.mask_token_id, vocabulary)


def load_text(model: str):
    """The bare encoder and its tokenizer by hub name or folder, weights in float32.

    Returns: (AutoModel, AutoTokenizer).
    Raises: ModelError: neither a folder nor, with network, on the hub.
    """
    from transformers import (
        AutoModel,
        AutoTokenizer,
    )  # seconds to import, and vision-only work never needs it

    folder = Path(model)
    looks_like_path = folder.is_absolute() or model.startswith(".")
    if looks_like_path and not (folder / "config.json").is_file():
        raise ModelError(f"text.model: {model} holds no config.json; name a Hugging Face folder or a hub model")
    try:
        return AutoModel.from_pretrained(model, dtype=torch.float32), AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            f"text.model: cannot load '{model}': {str(error).splitlines()[0]}. Without network, "
            "set text.model to a folder that holds config.json, model.safetensors and the tokenizer"
        ) from error


def load_vision(config: VisionConfig) -> nn.Module:
    """A timm model without classifier; position embeddings are interpolated to ``config.image_size``. With
    ``config.random`` its weights are drawn from torch's generator.

    Raises: ModelError: unknown timm name, checkpoint that is missing or does not fit, or no network.
    """
    import timm

    if ":" not in config.model and not timm.is_model(config.model):  # hf-hub:name, local-dir:folder
        raise ModelError(f"vision.model: timm has no '{config.model}'; {nearest(config.model, timm.list_models())}")
    options = {"num_classes": 0, "pretrained": not config.random}
    if config.checkpoint is not None and not config.random:
        if not config.checkpoint.is_file():
            raise ModelError(f"vision.checkpoint: no such file: {config.checkpoint}")
        if config.checkpoint.suffix != ".safetensors":
            raise ModelError(f"vision.checkpoint: {config.checkpoint.name}: only .safetensors files are read")
    try:
        if config.checkpoint is not None and not config.random:
            weights = _without_classifier(load_file(config.checkpoint), config.model)
            options |= {"pretrained_cfg_overlay": {"state_dict": weights, "num_classes": 0}}  # 0: all must fit
        try:
            backbone = timm.create_model(config.model, img_size=config.image_size, **options)
        except TypeError:  # a convolutional network takes any size, and no img_size
            backbone = timm.create_model(config.model, **options)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise ModelError(
            f"vision.model: cannot load weights of '{config.model}': {str(error).splitlines()[0]}. Without network, "
            "set vision.checkpoint to the model's .safetensors file"
        ) from error
    backbone.pretrained_cfg.pop("state_dict", None)
    return backbone.float()


def _without_classifier(weights: dict[str, Tensor], model: str) -> dict[str, Tensor]:
    """A checkpoint may hold the classifier that it was trained with; the tower has none."""
    import timm

    settings = timm.get_pretrained_cfg(model)
    classifier = settings.classifier if settings else None
    layers = (classifier,) if isinstance(classifier, str) else classifier or ()
    return {name: tensor for name, tensor in weights.items() if name.rpartition(".")[0] not in layers}


def tokenize(tokenizer, titles: list[str], max_tokens: int) -> dict[str, Tensor]:
    """Titles to input_ids and attention_mask, (N, T) each, padded to the longest title here, cut at max_tokens."""
    options = {"truncation": True, "max_length": max_tokens, "padding": True, "return_tensors": "pt"}
    return dict(tokenizer(titles, **options, return_token_type_ids=False))


def take(
    tokens: dict[str, Tensor], index: Tensor, device: torch.device | str, pad_to_multiple_of: int = 1
) -> dict[str, Tensor]:
    """Rows ``index`` (n,) of (N, T) tokens padded on the right: (n, t) each, on ``device``.

    t is the longest among them, brought up to the next multiple of ``pad_to_multiple_of``; at most T.
    """
    longest = int(tokens["attention_mask"][index].sum(dim=1).max())
    length = -(-longest // pad_to_multiple_of) * pad_to_multiple_of
    return {name: rows[index, :length].to(device) for name, rows in tokens.items()}


@torch.inference_mode()
def embed_titles(backbone: nn.Module, tokenizer, titles: list[str], text: TextConfig, batch_size: int = 128) -> Tensor:
    """Pooled embeddings of titles in their order, without dropout and before projection: float32 (N, H).

    Titles of like length share a batch, so that little is padded. It is faster inside ``fast(backbone)``, and by a
    backbone in bf16 where the device multiplies in it.
    """
    backbone.eval()
    tower = TextTower(backbone, text.pooling, projection_dim=1, depth=0)
    tokens = tokenize(tokenizer, titles, text.max_tokens)
    order = tokens["attention_mask"].sum(dim=1).argsort(stable=True)
    rows = [tower.embed(**take(tokens, i, backbone.device)).float().cpu() for i in order.split(batch_size)]
    return torch.cat(rows)[order.argsort()]


def save_pretrained(model, tokenizer, folder: Path) -> None:
    """Write a plain Hugging Face folder, whole: under a temporary name first, then renamed."""
    with folder_written_whole(folder) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
