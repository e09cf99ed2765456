"""The fast path against the plain one: values, gradients, dropout's statistics, and what it really computes."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toys import titles
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from icssl_lib.fast.unpad import UNPADDED, fast, padded, places_of

SHAPE = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
ENCODERS = {
    "bert": BertConfig(**SHAPE),
    "electra": ElectraConfig(**SHAPE, embedding_size=16),
    "distilbert": DistilBertConfig(vocab_size=90, dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    "modernbert": ModernBertConfig(**SHAPE, **SPECIAL, local_attention=8, classifier_pooling="mean"),
}


def without_dropout(config, auto=AutoModel):
    """A model of this shape whose training mode draws nothing."""
    torch.manual_seed(0)
    model = auto.from_config(copy.deepcopy(config)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("share", [None, 0.6, 0.75, 1.0])
def test_values_and_gradients_are_those_of_the_plain_path(name, share):
    """``share``: of all places, padding included that fills a budget up."""
    model, tokens = without_dropout(ENCODERS[name]), titles([14, 3, 9, 1, 14])
    real = tokens["attention_mask"].bool()
    weights = torch.randn(5, 14, 32)
    found = {}
    for enabled in (False, True):
        model.zero_grad()
        with fast(model, enabled) as packing:
            packing.share = share
            hidden = model(**tokens).last_hidden_state
        (hidden * weights)[real].sum().backward()
        found[enabled] = hidden[real].detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    (plain, of_plain), (quick, of_fast) = found[False], found[True]
    torch.testing.assert_close(quick, plain, atol=2e-5, rtol=1e-4)
    assert of_plain.keys() == of_fast.keys()
    assert sum(g.abs().sum() > 0 for g in of_fast.values()) > 10
    for parameter, gradient in of_plain.items():
        torch.testing.assert_close(of_fast[parameter], gradient, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_classifier_gives_the_same_logits(name):
    config = copy.deepcopy(ENCODERS[name])
    config.num_labels = 5
    model, tokens = AutoModelForSequenceClassification.from_config(config).eval(), titles([6, 11, 2])
    with torch.inference_mode():
        plain = model(**tokens).logits
        with fast(model):
            quick = model(**tokens).logits
        again = model(**tokens).logits
    torch.testing.assert_close(quick, plain, atol=1e-5, rtol=1e-4)
    assert torch.equal(again, plain)  # nothing of the fast path is left


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12))
def test_rows_laid_end_to_end_and_back_are_themselves(lengths):
    tokens = titles(lengths)
    ids, mask = tokens["input_ids"], tokens["attention_mask"].bool()
    places = places_of(mask)
    flat = ids.flatten()[places]
    assert flat.tolist() == [i for row, n in zip(ids.tolist(), lengths, strict=True) for i in row[:n]]
    assert torch.equal(padded(flat[:, None].float(), places, *ids.shape)[..., 0].long(), ids)
    exact = places_of(mask, share=sum(lengths) / mask.numel())
    assert sorted(exact.tolist()) == places.tolist()


def test_linear_layers_see_real_tokens_only():
    model, tokens, seen = without_dropout(ENCODERS["bert"]), titles([14, 3, 9, 1]), []
    layer = model.encoder.layer[0].intermediate.dense
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    model(**tokens)
    with fast(model):
        model(**tokens)
    assert seen == [4 * 14, 14 + 3 + 9 + 1]


def test_an_encoder_that_counts_positions_otherwise_keeps_padding_and_its_values():
    model = AutoModel.from_config(RobertaConfig(**SHAPE, pad_token_id=1)).eval()
    tokens = titles([5, 2])
    assert model.config.model_type not in UNPADDED
    plain = model(**tokens).last_hidden_state
    with fast(model):
        torch.testing.assert_close(model(**tokens).last_hidden_state, plain)


def test_the_path_ends_with_its_block_also_after_an_error_and_holds_when_nested():
    model = without_dropout(ENCODERS["bert"])

    def fails():
        with fast(model):
            with fast(model):
                model(**titles([3, 2]))
            assert "forward" in vars(model)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fails()
    assert not [m for m in model.modules() if "forward" in vars(m)]
    assert model.config._attn_implementation != "icssl_fast"


def test_two_passes_of_a_title_have_dropouts_of_their_own():
    torch.manual_seed(0)
    model = AutoModel.from_config(ENCODERS["bert"]).train()
    tokens = {name: x.repeat_interleave(2, dim=0) for name, x in titles([9, 4]).items()}
    with fast(model):
        hidden = model(**tokens).last_hidden_state
    assert (hidden[0] - hidden[1]).abs().max() > 1e-2
    assert (hidden[2, :4] - hidden[3, :4]).abs().max() > 1e-2
