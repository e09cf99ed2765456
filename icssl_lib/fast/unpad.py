"""The fast path of a text encoder: the same mathematics with less work.

A third to a half of a batch of titles is padding. Inside `fast` an encoder takes and returns the same padded rows; its
linear layers, not its attention, see all rows' real tokens laid end to end (ByteTransformer: Zhai et al., 2023)."""

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


@dataclass
class Packing:
    share: float | None = None  # of a batch's places, real ones first, that are computed; None: the real ones, counted


@contextlib.contextmanager
def fast(model: nn.Module, enabled: bool = True) -> Iterator[Packing]:
    """While the block runs, and if ``enabled``, ``model`` (towers, an encoder, a classifier) goes the fast path; yields
    how it packs tokens. Encoders that are not `UNPADDED` pad as before."""
    packing = Packing()
    encoder = next((m.base_model for m in model.modules() if isinstance(m, PreTrainedModel)), None)
    able = enabled and encoder is not None and encoder.config.model_type in UNPADDED
    if not able or "forward" in vars(encoder):  # it goes that path already
        yield packing
        return
    implementation, encoder.config._attn_implementation = encoder.config._attn_implementation, NAME
    encoder.forward = partial(_unpadded, encoder, encoder.forward, packing)
    try:
        yield packing
    finally:
        del encoder.forward  # the class's own is seen again
        encoder.config._attn_implementation = implementation


def _unpadded(
    encoder: PreTrainedModel, plain: Any, packing: Packing, input_ids: Tensor, attention_mask: Tensor, **options: Any
) -> Any:
    """The encoder's ``plain`` forward of real tokens alone."""
    (n, length), mask = input_ids.shape, attention_mask.bool()
    places = places_of(mask, packing.share)
    # A mask of four dimensions is passed on as it is.
    options |= {"attention_mask": mask[:, None, None], "position_ids": (places % length)[None], "places": places}
    output = plain(input_ids.flatten()[places][None], **options)
    output.last_hidden_state = padded(output.last_hidden_state[0], places, n, length)  # (N, T, H)
    if getattr(encoder, "pooler", None) is not None:  # it took the first token of all
        output.pooler_output = encoder.pooler(output.last_hidden_state)
    return output


def places_of(mask: Tensor, share: float | None = None) -> Tensor:
    """Places, (tokens,), of real tokens in the flattened rows of a mask, bool (N, T). With a ``share`` (see `Packing`;
    less than that of the real tokens would lose some) they are found without a wait for the GPU, real tokens first."""
    if share is None:
        return mask.flatten().nonzero().squeeze(1)
    return (~mask).flatten().byte().argsort(stable=True)[: round(share * mask.numel())]


def padded(flat: Tensor, places: Tensor, n: int, length: int) -> Tensor:
    """Tokens laid end to end, (tokens, D), as rows (n, length, D), zeros where padded."""
    return flat.new_zeros(n * length, flat.shape[1]).index_copy_(0, places, flat).view(n, length, -1)


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, dropout: float = 0.0,
    scaling: float | None = None, sliding_window: int | None = None, *, places: Tensor, **_: Any,
) -> tuple[Tensor, None]:  # fmt: skip
    """transformers' attention interface for tokens laid end to end: (1, heads, tokens, head_dim) each -> (1, tokens,
    heads, head_dim), None. attention_mask: bool (N, 1, 1, T). sliding_window: a token sees those nearer than this."""
    n, _, _, length = attention_mask.shape
    rows = [padded(x[0].transpose(0, 1).flatten(1), places, n, length) for x in (query, key, value)]
    q, k, v = (x.unflatten(2, (-1, value.shape[-1])).transpose(1, 2) for x in rows)  # (N, heads, T, head_dim)
    mask, at = attention_mask, torch.arange(length, device=q.device)
    if sliding_window is not None and sliding_window < length:
        mask = mask & ((at[:, None] - at).abs() < sliding_window)
    if q.device.type != "cpu":
        out = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scaling)
    else:  # titles are short: two products are faster than torch's fused kernel
        with torch.autocast("cpu", enabled=False):  # else dropout would be in float32, and then be narrowed
            score = (q.to(v.dtype) * (scaling or q.shape[-1] ** -0.5)) @ k.to(v.dtype).mT
            score = score.masked_fill_(~mask, torch.finfo(score.dtype).min)
            out = nn.functional.dropout(score.softmax(-1, torch.float32).to(v.dtype), dropout) @ v
    return out.transpose(1, 2).flatten(0, 1)[places][None], None


AttentionInterface.register(NAME, attend)
