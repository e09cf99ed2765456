"""The fast path of a text encoder: the same mathematics with less work.

A third to a half of a batch of titles is padding. Inside `fast` an encoder takes and returns the same padded rows, but
its layers see the real tokens of all rows laid end to end (ByteTransformer: Zhai et al., 2023). Attention goes back to
rows, of like length together. A BERT classifier's last layer computes each row's first token, all that is read of it.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

NAME = "icssl_fast"
UNPADDED = {"bert", "modernbert", "distilbert", "electra"}  # encoders that count positions as a row alone does
FIRST = {"BertForSequenceClassification", "ElectraForSequenceClassification"}  # they read each row's first token alone
BUCKET_WEIGHTS = 400_000  # attention weights that are worth a bucket of their own


@dataclass
class Packing:
    share: float | None = None  # of a batch's places, real ones first, that are computed; None: the real ones, counted


@contextlib.contextmanager
def fast(model: nn.Module, enabled: bool = True) -> Iterator[Packing]:
    """While the block runs, and if ``enabled``, ``model`` (towers, an encoder, a classifier) goes the fast path; yields
    how it packs tokens. Encoders that are not `UNPADDED` pad as before. In a classifier of `FIRST` the hidden states of
    other tokens than a row's first come out as zeros."""
    packing, forwards = Packing(), {}
    encoder = next((m.base_model for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    if enabled:
        forwards = {m: partial(_drop_in, m) for m in model.modules() if isinstance(m, nn.Dropout)}
    if enabled and encoder is not None and encoder.config.model_type in UNPADDED:
        first = type(model).__name__ in FIRST
        forwards[encoder] = partial(_unpadded, encoder, encoder.forward, packing, first)
        if first:
            forwards[encoder.encoder.layer[-1]] = partial(first_of_layer, encoder.encoder.layer[-1])
    changed = [module for module in forwards if "forward" not in vars(module)]  # others go that path already
    for module in changed:
        module.forward = forwards[module]
    if encoder in changed:
        implementation, encoder.config._attn_implementation = encoder.config._attn_implementation, NAME
    try:
        yield packing
    finally:
        for module in changed:
            del module.forward  # the class's own is seen again
        if encoder in changed:
            encoder.config._attn_implementation = implementation


def _unpadded(
    encoder: PreTrainedModel, plain: Any, packing: Packing, first: bool, input_ids: Tensor, attention_mask: Tensor,
    **options: Any,
) -> Any:  # fmt: skip
    """The encoder's ``plain`` forward of real tokens alone. first: its last layer is `first_of_layer`."""
    (n, length), mask = input_ids.shape, attention_mask.bool()
    most = min(4, n * encoder.config.num_attention_heads * length**2 // BUCKET_WEIGHTS)
    buckets, real = buckets_of(mask, most if mask.device.type == "cpu" else 1, packing.share)  # a GPU would wait
    # A mask of four dimensions is passed on as it is.
    options |= {"attention_mask": mask[:, None, None], "position_ids": (real % length)[None], "buckets": buckets}
    output = plain(input_ids.flatten()[real][None], **options)
    hidden = output.last_hidden_state[0]  # (tokens, H), or (N, H)
    at = torch.cat([bucket.indices for bucket in buckets]) * length if first else real
    padded = hidden.new_zeros(n * length, hidden.shape[1]).index_copy_(0, at, hidden)
    output.last_hidden_state = padded.view(n, length, -1)
    if getattr(encoder, "pooler", None) is not None:  # it took the first token of all
        output.pooler_output = encoder.pooler(output.last_hidden_state)
    return output


@dataclass
class Bucket:
    """Some of a batch's rows."""

    mask: Tensor  # bool (n, 1, 1, T), true at real tokens
    real: Tensor  # (tokens,), their places in the flattened rows
    indices: Tensor  # (n,), which rows they are

    def padded(self, flat: Tensor) -> Tensor:
        """(tokens, D) -> (n, T, D), zeros where padded."""
        n, _, _, length = self.mask.shape
        return flat.new_zeros(n * length, flat.shape[1]).index_copy_(0, self.real, flat).view(n, length, -1)


def buckets_of(mask: Tensor, most: int, share: float | None = None) -> tuple[list[Bucket], Tensor]:
    """Rows of like length go together, in up to ``most`` buckets, so that attention pads little; with a ``share`` (see
    `Packing`; less than that of the real tokens would lose some) in one. mask: bool (N, T). Returns: the buckets, and
    each token's place in the flattened (N, T), in their order."""
    n, length = mask.shape
    rows = torch.arange(n, device=mask.device)
    if share is not None:  # found without a wait: real tokens first
        places = (~mask).flatten().byte().argsort(stable=True)[: round(share * mask.numel())]
        return [Bucket(mask[:, None, None], places, rows)], places
    ends = (mask * torch.arange(1, length + 1, device=mask.device)).amax(dim=1)  # (N,): after each row's last token
    buckets, places = [], []
    for part in ends.argsort().chunk(most) if most > 1 else [rows]:
        longest = int(ends[part].max())
        cut = mask[part, :longest]
        real = cut.flatten().nonzero().squeeze(1)
        buckets.append(Bucket(cut[:, None, None], real, part))
        places.append(part[real // longest] * length + real % longest)
    return buckets, torch.cat(places)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, dropout: float = 0.0,
    scaling: float | None = None, sliding_window: int | None = None, *, buckets: list[Bucket], **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface for tokens laid end to end in ``buckets``: (1, heads, tokens, head_dim) each ->
    (1, tokens, heads, head_dim), None. sliding_window: a token sees those nearer than this."""
    parts, sizes = [], [len(bucket.real) for bucket in buckets]
    for bucket, *qkv in zip(buckets, *(x.split(sizes, dim=2) for x in (query, key, value)), strict=True):
        rows = [bucket.padded(x[0].transpose(0, 1).flatten(1)) for x in qkv]  # (n, T, heads * D)
        q, k, v = (x.unflatten(2, (-1, value.shape[-1])).transpose(1, 2) for x in rows)  # (n, heads, T, D)
        mask, at = bucket.mask, torch.arange(bucket.mask.shape[-1], device=q.device)
        if sliding_window is not None and sliding_window < len(at):
            mask = mask & ((at[:, None] - at).abs() < sliding_window)
        if q.device.type != "cpu":
            out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)
        else:  # titles are short: two products are faster than torch's fused kernel
            with torch.autocast("cpu", enabled=False):  # else dropout would be in float32, and then be narrowed
                score = (q.to(v.dtype) * (scaling or q.shape[-1] ** -0.5)) @ k.to(v.dtype).mT
                score = score.masked_fill_(~mask, torch.finfo(score.dtype).min)
                out = drop(score.softmax(-1, torch.float32).to(v.dtype), dropout) @ v
        parts.append(out.transpose(1, 2).reshape(-1, out.shape[1] * out.shape[3]).index_select(0, bucket.real))
    return torch.cat(parts).unflatten(1, (-1, value.shape[-1]))[None], None


AttentionInterface.register(NAME, attend)


def first_of_layer(layer: nn.Module, hidden: Tensor, *_: Any, buckets: list[Bucket], **__: Any) -> Tensor:
    """A BERT's layer for each row's first token alone: (1, tokens, H) -> (1, N, H), in the buckets' order. The others
    need no keys and values: q . Kx is K'q . x, and the weighted sum of all Vx is V of that of all x."""
    own, seen, firsts = layer.attention.self, [], []
    heads, p = own.num_attention_heads, own.dropout.p if layer.training else 0.0
    k, v = (x.weight.unflatten(0, (heads, -1)) for x in (own.key, own.value))  # (heads, d, H)
    k_bias, v_bias = (x.bias.view(heads, 1, -1) for x in (own.key, own.value))
    for bucket, flat in zip(buckets, hidden[0].split([len(bucket.real) for bucket in buckets]), strict=True):
        rows = bucket.padded(flat)  # (n, T, H)
        q = own.query(rows[:, 0]).unflatten(1, (heads, -1)).transpose(0, 1)  # (heads, n, d)
        firsts.append(rows[:, 0])
        score = (q @ k).transpose(0, 1) @ rows.mT + (q * k_bias).sum(-1).T[..., None]  # (n, heads, T)
        score = (score * q.shape[-1] ** -0.5).masked_fill(~bucket.mask[:, 0], torch.finfo(score.dtype).min)
        weight = drop(score.softmax(-1, torch.float32).to(score.dtype), p)
        out = (weight @ rows.to(weight.dtype)).transpose(0, 1) @ v.mT  # (heads, n, d)
        out = out + v_bias * weight.sum(-1).T[..., None]  # after dropout they do not sum to 1
        seen.append(out.transpose(0, 1).flatten(1))
    return layer.feed_forward_chunk(layer.attention.output(torch.cat(seen), torch.cat(firsts)))[None]


def drop(x: Tensor, p: float) -> Tensor:
    """Independent dropout of each element (Srivastava et al., 2014), p in [0, 1). On a GPU it is torch's own; on a CPU
    one 64-bit random number serves four elements, so p is rounded to a multiple of 1 / 65,536."""
    if p == 0 or x.device.type != "cpu":
        return nn.functional.dropout(x, p)
    dropped = round(p * 65536)
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64).random_(-(2**63), None).view(torch.int16)
    scale = torch.empty(x.shape, dtype=x.dtype)  # 0 or 1 / (1 - p); made of bool it would take twice as long
    torch.ge(bits[: x.numel()].view(x.shape), dropped - 32768, out=scale).mul_(65536 / (65536 - dropped))
    return x * scale


def _drop_in(module: nn.Dropout, x: Tensor) -> Tensor:
    return drop(x, module.p if module.training else 0.0)
