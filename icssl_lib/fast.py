"""The fast path: the same mathematics with less work.

Five things are wasted in a step on a CPU. A batch is padded to its longest title, so with titles of 4 to 36 tokens a
third to a half of it is nothing; dropout draws one random number after another, one per element; a ViT's first layer, a
matrix product, goes by way of a convolution; its attention by a kernel that is made for long rows; and where a picture
or a title is read off its first token, as a ViT's and a BERT classifier's is, the last layer computes all the others.

Inside `fast` an encoder takes the same padded rows and returns the same padded hidden states. But its linear layers,
norms and dropouts see the real tokens of all rows laid end to end (as in ByteTransformer, Zhai et al., 2023), attention
alone goes back to rows, those of like length together, four elements share one 64-bit random number, and a last layer
that is read at the first token computes that one. Outside the block the model is transformers' own: that is the plain
path, the reference, and tests/test_fast.py holds this one to it in values and gradients.

Beside it `trimmed` leaves words out of a training that they have no part in, and `narrowed` reads in bf16 where that is
the precision, which rounds in other places than autocast does.
"""

import contextlib
import functools
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from icssl_lib.encoders import MaskedWords, TextTower

NAME = "icssl_fast"
BUCKET_WEIGHTS = 400_000  # attention weights that are worth a bucket of their own
LARGEST = 2**24  # attention weights of one layer that may be kept: 32 MB in bf16


class _Dropout(torch.autograd.Function):
    """Keeps an element with probability k / 65,536, the nearest to 1 - p, and divides it by just that."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, p: float) -> Tensor:
        dropped = round(p * 65536)
        bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
        scale = torch.empty(x.shape, dtype=x.dtype)  # 0 or 1 / (1 - p); made of bool it would take twice as long
        torch.ge(bits[: x.numel()].view(x.shape), dropped - 32768, out=scale).mul_(65536 / (65536 - dropped))
        ctx.save_for_backward(scale)
        return x * scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return gradient * scale, None


def dropout(x: Tensor, p: float, training: bool = True) -> Tensor:
    """Independent dropout of each element (Srivastava et al., 2014), drawn from torch's generator, 16 bits for each.

    Args: x: any shape. p: in [0, 1], rounded to a multiple of 1 / 65,536. On a GPU it is torch's own.
    """
    if not training or p == 0:
        return x
    if x.device.type != "cpu" or round(p * 65536) >= 65536:
        return nn.functional.dropout(x, p)
    return _Dropout.apply(x, p)


@dataclass
class Packing:
    """share: of (N, T) places, how many are computed: the real tokens and, after them, padding; None: the real ones
    alone, whose number a GPU has to be waited for."""

    share: float | None = None


@dataclass
class Bucket:
    """Tokens that lie end to end as rows of like length: where they are in ``len(mask)`` padded rows.

    mask: bool (n, 1, 1, T), true at real tokens. real: (tokens,), their places in the flattened rows, and perhaps some
    of padding. indices: (n,), which of the batch's rows they are.
    """

    mask: Tensor
    real: Tensor
    indices: Tensor

    def padded(self, flat: Tensor) -> Tensor:
        """(tokens, D) -> (n, T, D), zeros where padded."""
        n, _, _, length = self.mask.shape
        return flat.new_zeros(n * length, flat.shape[1]).index_copy_(0, self.real, flat).view(n, length, -1)

    def rows(self, x: Tensor) -> Tensor:
        """(1, heads, tokens, D) -> (n, heads, T, D), zeros where padded."""
        return self.padded(x[0].transpose(0, 1).flatten(1)).unflatten(2, (-1, x.shape[-1])).transpose(1, 2)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    buckets: list[Bucket] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface for tokens laid end to end.

    Args:
        query, key, value: (1, heads, tokens, head_dim).
        attention_mask: bool (N, 1, 1, T), true at real tokens: where the tokens lie in N rows of T.
        sliding_window: a token sees those nearer than this.
        buckets: the tokens in the order of their buckets, whose rows take the place of the mask's; None: one bucket.

    Returns: (1, tokens, heads, head_dim), None.
    """
    if buckets is None:
        buckets = buckets_of(attention_mask[:, 0, 0], 1)[0]
    sizes = [len(bucket.real) for bucket in buckets]
    found = []
    for bucket, *qkv in zip(buckets, *(x.split(sizes, dim=2) for x in (query, key, value)), strict=True):
        q, k, v = map(bucket.rows, qkv)
        mask, length = bucket.mask, bucket.mask.shape[-1]
        if sliding_window is not None and sliding_window < length:
            at = torch.arange(length, device=mask.device)
            mask = mask & ((at[:, None] - at[None, :]).abs() < sliding_window)
        # With dropout torch's own would go the same way, and look for rows without a key besides.
        if q.device.type != "cpu" or (dropout == 0 and not eager_is_faster(*q.shape[:3], v.dtype)):
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)
        else:
            with torch.autocast("cpu", enabled=False):  # else dropout would be in float32, and then be narrowed
                score = (q.to(v.dtype) * (scaling or q.shape[-1] ** -0.5)) @ k.to(v.dtype).mT
                score = score.masked_fill_(~mask, torch.finfo(score.dtype).min)
                out = _drop(score.softmax(-1, torch.float32).to(v.dtype), dropout) @ v
        found.append(out.transpose(1, 2).reshape(-1, out.shape[1] * out.shape[3]).index_select(0, bucket.real))
    flat = torch.cat(found) if len(found) > 1 else found[0]
    return flat.view(1, len(flat), -1, value.shape[-1]), None


def eager_is_faster(n: int, heads: int, length: int, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a CPU attends in ``n`` rows sooner by two matrix products and a softmax than by torch's fused kernel,
    which keeps no (n, heads, length, length) weights, and is slow in bf16 and in short rows."""
    half = dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")
    return n * heads * length**2 <= LARGEST and (length <= 64 or half)


def _attention_of(module: nn.Module, x: Tensor, *rest: Any, **options: Any) -> Tensor:
    """timm's attention, its way chosen by the size at hand. x: (N, T, D)."""
    fused = module.fused_attn
    module.fused_attn = fused and not eager_is_faster(len(x), module.num_heads, x.shape[1])
    try:
        return type(module).forward(module, x, *rest, **options)
    finally:
        module.fused_attn = fused


def attend_first(
    rows: Tensor,
    mask: Tensor | None,
    query: Tensor,
    key: tuple[Tensor, Tensor | None],
    value: tuple[Tensor, Tensor | None],
    heads: int,
    dropout: float = 0.0,
) -> Tensor:
    """Attention of one query a row, without keys and values of its tokens: q . Kx is K'q . x, and the weighted sum of
    all Vx is V of the weighted sum of all x.

    Args:
        rows: (n, T, D). mask: bool (n, T), true where a token may be seen; None: everywhere. query: (n, H).
        key, value: weight (H, D) and bias (H,) of a linear layer.
        dropout: of attention's weights.

    Returns: (n, H).
    """
    (key, key_bias), (value, value_bias) = key, value
    n, width = query.shape
    q = query.view(n, heads, -1).transpose(0, 1)  # (heads, n, d)
    score = (q @ key.view(heads, -1, key.shape[1])).transpose(0, 1) @ rows.mT  # (n, heads, T)
    if key_bias is not None:  # the same for all tokens, so of no effect; but its gradient is 0, and not none
        score = score + (q * key_bias.view(heads, 1, -1)).sum(-1).T[..., None]
    score = score * (width // heads) ** -0.5
    if mask is not None:
        score = score.masked_fill(~mask[:, None], torch.finfo(score.dtype).min)
    weight = _drop(score.softmax(-1, torch.float32).to(score.dtype), dropout)
    seen = (weight @ rows.to(weight.dtype)).transpose(0, 1)  # (heads, n, D)
    out = seen @ value.view(heads, -1, value.shape[1]).mT  # (heads, n, d)
    if value_bias is not None:
        out = out + value_bias.view(heads, 1, -1) * weight.sum(-1).T[..., None]  # after dropout they do not sum to 1
    return out.transpose(0, 1).reshape(n, width)


def _first_of_block(block: nn.Module, x: Tensor) -> Tensor:
    """timm's block for the first token alone: (N, T, D) -> (N, 1, D)."""
    attention, rows = block.attn, block.norm1(x)
    width = attention.num_heads * attention.head_dim
    query, *rest = attention.qkv.weight.split(width)
    biases = [None] * 3 if attention.qkv.bias is None else attention.qkv.bias.split(width)
    asked = nn.functional.linear(rows[:, 0], query, biases[0])
    key, value = zip(rest, biases[1:], strict=True)
    p = attention.attn_drop.p if block.training else 0.0
    seen = attend_first(rows, None, asked, key, value, attention.num_heads, p)
    seen = attention.proj_drop(attention.proj(attention.norm(seen)))[:, None]
    x = x[:, :1] + block.drop_path1(block.ls1(seen))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


def _first_of_layer(layer: nn.Module, hidden: Tensor, *_: Any, buckets: list[Bucket], **__: Any) -> Tensor:
    """A BERT's layer for each row's first token alone: (1, tokens, H) -> (1, N, H), in the buckets' order."""
    attention, found, firsts = layer.attention.self, [], []
    p = attention.dropout.p if layer.training else 0.0
    linear = [(part.weight, part.bias) for part in (attention.key, attention.value)]
    for bucket, flat in zip(buckets, hidden[0].split([len(bucket.real) for bucket in buckets]), strict=True):
        rows = bucket.padded(flat)
        query = attention.query(rows[:, 0])
        firsts.append(rows[:, 0])
        found.append(attend_first(rows, bucket.mask[:, 0, 0], query, *linear, attention.num_attention_heads, p))
    return layer.feed_forward_chunk(layer.attention.output(torch.cat(found), torch.cat(firsts)))[None]


def reads_first(model: nn.Module, encoder: nn.Module | None) -> bool:
    """Whether of the hidden states of ``encoder``, a BERT in ``model``, nothing is read but each row's first."""
    if encoder is None or encoder.config.model_type not in ("bert", "electra") or not can_unpad(encoder):
        return False
    if any(isinstance(module, MaskedWords) for module in model.modules()):
        return False
    poolings = {module.pooling for module in model.modules() if isinstance(module, TextTower)}
    classifiers = "BertForSequenceClassification", "ElectraForSequenceClassification"
    return poolings == {"cls"} or type(model).__name__ in classifiers


def _last_layers(model: nn.Module, encoder: nn.Module | None) -> Iterator[tuple[nn.Module, Any]]:
    """The last layers of which the first token alone is read, each with what takes the place of its forward."""
    if reads_first(model, encoder):
        yield encoder.encoder.layer[-1], _first_of_layer
    for vit in model.modules():
        if type(vit) is VisionTransformer and vit.global_pool == "token" and vit.attn_pool is None:
            block = vit.blocks[-1]
            attention = block.attn if type(block) is Block else None
            if type(attention) is Attention and attention.gate is None and isinstance(attention.q_norm, nn.Identity):
                yield block, _first_of_block


_drop = dropout  # `dropout` is a number in transformers' interface
AttentionInterface.register(NAME, attend)


def can_unpad(model: PreTrainedModel) -> bool:
    """Whether the encoder asks transformers' attention interface and counts positions as a row alone does."""
    return (
        model._supports_attention_backend
        and model.config.model_type in {"bert", "modernbert", "distilbert", "electra"}
        and not getattr(model.config, "is_decoder", False)
        and "position_ids" in inspect.signature(model.forward).parameters
    )


@contextlib.contextmanager
def fast(model: nn.Module, enabled: bool = True, compiled: bool = False) -> Iterator[Packing]:
    """While the block runs, ``model`` goes the fast path; yields how it packs tokens.

    Args:
        model: towers, an encoder or a classifier. A transformers encoder inside is called with input_ids and
            attention_mask, (N, T) each, padded on the right; one that `can_unpad` does not know pads as before. Where
            nothing but a row's first hidden state is read (a BERT's classifier, a tower that pools by "cls"), the
            others come out as zeros.
        enabled: False changes nothing.
        compiled: layers that are alike, but a last one for the first token, go through torch.compile, which takes
            half a minute to begin with: for long trainings on a GPU.
    """
    encoder = next((m.base_model for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    changed: list[nn.Module] = []
    packing = Packing()

    def replace(module: nn.Module, forward: Any) -> None:
        module.forward = forward
        changed.append(module)

    implementation = encoder.config._attn_implementation if encoder is not None else None
    for layer, forward in _last_layers(model, encoder) if enabled else ():
        if "forward" not in vars(layer):
            replace(layer, functools.partial(forward, layer))
    layers = [layer for module in model.modules() if _alike(module) for layer in module] if enabled and compiled else ()
    for layer in layers:
        if "forward" not in vars(layer):
            replace(layer, torch.compile(layer.forward))
    for module in model.modules() if enabled else ():
        if "forward" in vars(module):  # on that path already
            continue
        if isinstance(module, nn.Dropout):
            replace(module, functools.partial(_dropout_of, module))
        elif isinstance(module, nn.Conv2d) and _cuts_patches(module):
            replace(module, functools.partial(patches, module))
        elif hasattr(module, "fused_attn") and next(module.parameters()).device.type == "cpu":
            replace(module, functools.partial(_attention_of, module))
        elif module is encoder and can_unpad(encoder):
            replace(module, _unpadded(encoder, reads_first(model, encoder), packing))
            encoder.config._attn_implementation = NAME
    try:
        yield packing
    finally:
        for module in changed:
            del module.forward  # the class's own is seen again
            if module is encoder:
                encoder.config._attn_implementation = implementation


@contextlib.contextmanager
def trimmed(encoder: PreTrainedModel, *ids: Tensor, enabled: bool = True) -> Iterator[None]:
    """Vocabulary trimming (Abdaoui et al., 2020), for a block: the word embeddings hold the tokens in ``ids`` alone.

    A row that no title uses has a gradient of 0, and Adam leaves it where it is; yet each step makes the gradient, and
    reads and writes row and moments. Of MiniLM such rows are half of all weights, of a multilingual encoder most. An
    optimiser made in the block has the smaller table; afterwards its rows are in the whole one again. One that other
    layers share stays whole.

    Args:
        ids: (N, T) each, all that the encoder will be given; on a CPU another token is an IndexError.
        enabled: False changes nothing. `decay_is_lost` says when it is exact.
    """
    words = encoder.get_input_embeddings()
    whole, padding = words.weight, words.padding_idx
    owners = sum(weight is whole for module in encoder.modules() for weight in module.parameters(recurse=False))
    if not enabled or type(words) is not nn.Embedding or words.max_norm is not None or owners > 1:
        yield
        return
    used = torch.cat([part.flatten() for part in (*ids, torch.tensor([padding or 0]))]).unique().to(whole.device)
    row = torch.full((len(whole),), -1, device=whole.device)  # of a token that is not there: an index that is refused
    row[used] = torch.arange(len(used), device=whole.device)
    words.padding_idx = None if padding is None else int(row[padding])
    words.weight = nn.Parameter(whole.detach()[used], requires_grad=whole.requires_grad)
    words.forward = lambda tokens: nn.Embedding.forward(words, row[tokens])
    try:
        yield
    finally:
        del words.forward
        with torch.no_grad():
            whole[used] = words.weight
        words.weight, words.padding_idx = whole, padding


def decay_is_lost(lr: float, weight_decay: float) -> bool:
    """Whether AdamW's decay is lost in float32's rounding, so that a weight of gradient 0 stays as it is, bit for bit.

    (Not so Adam with an L2 term: both its moments are of that term alone, so it moves the weight however small it is.)
    """
    return lr * weight_decay < torch.finfo(torch.float32).eps / 4


@contextlib.contextmanager
def narrowed(model: nn.Module) -> Iterator[None]:
    """While the block runs, ``model`` is in bf16 throughout, and what it returns too, where autocast would narrow each
    weight in every batch and widen what comes between two products. For reading alone: afterwards the weights are the
    former ones, bit for bit. Pictures, which are normalised in float32, want autocast.
    """
    kept = [(parameter, parameter.data) for parameter in model.parameters()]
    for parameter, weight in kept:
        parameter.data = weight.bfloat16()
    try:
        yield
    finally:
        for parameter, weight in kept:
            parameter.data = weight


def _alike(module: nn.Module) -> bool:
    """Whether it is a row of layers of one class that have parts: one of them is compiled for all."""
    row = isinstance(module, nn.ModuleList | nn.Sequential) and len(module) > 1
    return row and len({type(layer) for layer in module}) == 1 and len(list(module[0].children())) > 0


def _dropout_of(module: nn.Dropout, x: Tensor) -> Tensor:
    return dropout(x, module.p, module.training)


def _cuts_patches(module: nn.Conv2d) -> bool:
    """Whether each input pixel goes into one output pixel, as in a ViT's first layer."""
    whole = module.kernel_size == module.stride and module.padding == (0, 0) and module.dilation == (1, 1)
    return whole and module.groups == 1


def patches(module: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution whose windows do not meet, as one matrix product: (N, C, H, W) -> (N, D, H / k, W / k)."""
    (high, wide), (n, channels, height, width) = module.kernel_size, x.shape
    rows, columns = height // high, width // wide
    x = x[..., : rows * high, : columns * wide].reshape(n, channels, rows, high, columns, wide)
    flat = x.permute(0, 2, 4, 1, 3, 5).reshape(n * rows * columns, -1)
    out = nn.functional.linear(flat, module.weight.flatten(1), module.bias)
    return out.view(n, rows, columns, -1).permute(0, 3, 1, 2)


def buckets_of(mask: Tensor, most: int) -> tuple[list[Bucket], Tensor]:
    """Rows of like length go together, in up to ``most`` buckets, so that attention pads little.

    Args: mask: bool (N, T). Returns: the buckets, and each token's place in the flattened (N, T), in their order.
    """
    length = mask.shape[1]
    if most < 2:
        return _one_bucket(mask, mask.flatten().nonzero().squeeze(1))
    ends = (mask * torch.arange(1, length + 1, device=mask.device)).amax(dim=1)  # (N,): after each row's last token
    buckets, places = [], []
    for rows in ends.argsort().chunk(most):
        longest = int(ends[rows[-1]])
        cut = mask[rows, :longest]
        real = cut.flatten().nonzero().squeeze(1)
        buckets.append(Bucket(cut[:, None, None], real, rows))
        places.append(rows[real // longest] * length + real % longest)
    return buckets, torch.cat(places)


def packed(mask: Tensor, share: float) -> tuple[list[Bucket], Tensor]:
    """As `buckets_of` with one bucket, without a wait: a number of places that is known beforehand, real tokens first.

    Padding among them is computed and seen by nobody: the mask keeps it out of attention.

    Args: mask: bool (N, T). share: in (0, 1], of its places; at least that of the real tokens, or some are lost.
    """
    return _one_bucket(mask, (~mask).flatten().byte().argsort(stable=True)[: round(share * mask.numel())])


def _one_bucket(mask: Tensor, places: Tensor) -> tuple[list[Bucket], Tensor]:
    """All rows of mask (N, T) with the tokens at ``places`` (tokens,) of the flattened rows."""
    return [Bucket(mask[:, None, None], places, torch.arange(len(mask), device=mask.device))], places


def _unpadded(encoder: PreTrainedModel, ends_first: bool, packing: Packing) -> Any:
    """ends_first: its last layer is `_first_of_layer`; the other tokens' states come out as zeros."""
    plain, pooler = encoder.forward, getattr(encoder, "pooler", None)
    heads = encoder.config.num_attention_heads

    def forward(input_ids: Tensor, attention_mask: Tensor, **options: Any) -> Any:
        options = {name: value for name, value in options.items() if value is not None}  # a classifier names them all
        n, length = input_ids.shape
        mask = attention_mask.bool()
        # Each bucket costs a few dozen calls a layer; on a GPU also a wait for the lengths.
        most = min(4, n * heads * length**2 // BUCKET_WEIGHTS) if mask.device.type == "cpu" else 1
        buckets, real = buckets_of(mask, most) if packing.share is None else packed(mask, packing.share)
        # A mask of four dimensions reaches `attend` as it is. On a GPU `buckets` again in each layer would be a wait.
        options |= {"attention_mask": mask[:, None, None], "position_ids": (real % length)[None], "buckets": buckets}
        output = plain(input_ids.flatten()[real][None], **options)
        hidden = output.last_hidden_state[0]  # (tokens, H), or (N, H)
        at = torch.cat([bucket.indices for bucket in buckets]) * length if ends_first else real
        padded = hidden.new_zeros(n * length, hidden.shape[1]).index_copy_(0, at, hidden)
        output.last_hidden_state = padded.view(n, length, -1)
        if pooler is not None:  # it took the first token of all
            output.pooler_output = pooler(output.last_hidden_state)
        return output

    return forward
