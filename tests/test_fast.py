"""The fast path against the plain one: values, gradients, dropout's statistics, and what it really computes."""

import copy

import pytest
import torch
import toys
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    RobertaConfig,
)

from icssl_lib import adapt, finetune
from icssl_lib.encoders import MaskedWords, TextTower, take
from icssl_lib.fast import (
    attend_first,
    buckets_of,
    can_unpad,
    decay_is_lost,
    dropout,
    fast,
    narrowed,
    reads_first,
    trimmed,
)
from icssl_lib.finetune import MeanPooledClassifier

SHAPE = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
ENCODERS = {
    "bert": BertConfig(**SHAPE),
    "electra": ElectraConfig(**SHAPE, embedding_size=16),
    "distilbert": DistilBertConfig(vocab_size=90, dim=32, n_layers=2, n_heads=2, hidden_dim=48),
    "modernbert": ModernBertConfig(**SHAPE, **SPECIAL, local_attention=8, classifier_pooling="mean"),
}


def titles(lengths: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Random tokens, (N, T) with T the longest, padded on the right."""
    mask = (torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(3, 90, mask.shape, generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids * mask, "attention_mask": mask}


def without_dropout(config):
    """A model of this shape whose training mode draws nothing."""
    torch.manual_seed(0)
    model = AutoModel.from_config(copy.deepcopy(config)).train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("most", [1, 2, 4])
def test_values_and_gradients_are_those_of_the_plain_path(name, most, monkeypatch):
    monkeypatch.setattr("icssl_lib.fast.BUCKET_WEIGHTS", 5 * 2 * 14 * 14 // most)
    model, tokens = without_dropout(ENCODERS[name]), titles([14, 3, 9, 1, 14])
    assert can_unpad(model)
    real = tokens["attention_mask"].bool()
    weights = torch.randn(5, 14, 32)
    found = {}
    for enabled in (False, True):
        model.zero_grad()
        with fast(model, enabled):
            hidden = model(**tokens).last_hidden_state
        (hidden * weights)[real].sum().backward()
        found[enabled] = hidden[real].detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    (plain, of_plain), (quick, of_fast) = found[False], found[True]
    torch.testing.assert_close(quick, plain, atol=2e-5, rtol=1e-4)
    assert of_plain.keys() == of_fast.keys()
    assert len(of_plain) > 10
    assert sum(g.abs().sum() > 0 for g in of_fast.values()) > 10
    for parameter, gradient in of_plain.items():
        torch.testing.assert_close(of_fast[parameter], gradient, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ENCODERS)
def test_compiled_layers_give_the_same(name, monkeypatch):
    seen, compile_ = [], torch.compile

    def spy(function):
        seen.append(type(function.__self__).__name__)
        return compile_(function, backend="eager", fullgraph=True)  # traced as on a GPU, and run as it is

    monkeypatch.setattr(torch, "compile", spy)
    model, found = without_dropout(ENCODERS[name]), []
    tower = TextTower(model, "mean", 8, 2)
    several = [14, 3, 9, 1, 14], [4, 8, 11], [16, 5]  # the second shape is the general one, and serves the third
    for lengths in several:
        for compiled in (False, True):
            tower.zero_grad()
            with fast(tower, True, compiled):
                rows = tower(**titles(lengths))
            rows.square().sum().backward()
            found.append((rows.detach(), [p.grad.clone() for p in tower.parameters() if p.grad is not None]))
        (plain, of_plain), (quick, of_compiled) = found[-2:]
        torch.testing.assert_close(quick, plain, atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(of_compiled, of_plain, atol=2e-4, rtol=1e-3)
    layers = getattr(model.config, "num_hidden_layers", None) or model.config.n_layers
    assert len(seen) == 3 * layers  # the projection's layers are not alike
    assert len(set(seen)) == 1
    torch.compiler.reset()


def test_a_vits_blocks_are_compiled_and_no_other_layer(monkeypatch):
    import timm

    seen, model = [], timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0).eval()
    monkeypatch.setattr(torch, "compile", lambda function: seen.append(type(function.__self__).__name__) or function)
    with torch.inference_mode(), fast(model, True, True):
        model(torch.rand(1, 3, 32, 32))
    assert seen == ["Block"] * 11  # the last one computes the class token alone
    with fast(model, False, True):  # the plain path has none
        assert len(seen) == 11
    with fast(model):
        assert len(seen) == 11


@pytest.mark.parametrize("more", [{}, {"reg_tokens": 2, "init_values": 0.1, "qkv_bias": False}])
@pytest.mark.parametrize(("size", "bf16", "kernels"), [(64, False, 0), (144, False, 2), (144, True, 0)])
def test_a_vits_attention_gives_the_values_and_gradients_of_the_kernel(size, bf16, kernels, more, monkeypatch):
    """Short rows, or bf16, go without torch's fused kernel, and so does the last block, which has one query."""
    import timm

    torch.manual_seed(0)
    shape = {"embed_dim": 48, "num_heads": 3, "depth": 3} | more
    model = timm.create_model("vit_tiny_patch16_224", img_size=size, num_classes=0, **shape)
    pixels, weights, found, called = torch.randn(4, 3, size, size), torch.randn(4, 48), {}, []
    kernel = nn.functional.scaled_dot_product_attention

    def spy(*arguments, **options):
        called.append(1)
        return kernel(*arguments, **options)

    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", spy)
    for enabled in (False, True):
        model.zero_grad()
        called.clear()
        with fast(model, enabled), torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            features = model(pixels)
        (features.float() * weights).sum().backward()
        assert len(called) == (kernels if enabled else 3)
        found[enabled] = features.detach(), {n: p.grad for n, p in model.named_parameters()}
    (plain, of_plain), (quick, of_fast) = found[False], found[True]
    near = {"atol": 5e-2, "rtol": 5e-2} if bf16 else {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(quick, plain, **near)
    for parameter, gradient in of_plain.items():
        norm = gradient.norm()
        assert (of_fast[parameter] - gradient).norm() <= (0.05 if bf16 else 1e-4) * norm + 1e-5, parameter
    assert all(module.fused_attn for module in model.modules() if hasattr(module, "fused_attn"))


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


def test_the_mean_pooled_classifier_gives_the_same_logits(tiny_text):
    model, tokens = MeanPooledClassifier(str(tiny_text), 4).eval(), titles([7, 2, 5])
    tokens["input_ids"] %= model.backbone.config.vocab_size
    with torch.inference_mode():
        plain = model(**tokens)
        with fast(model):
            torch.testing.assert_close(model(**tokens), plain, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_attention_of_one_query_is_that_of_keys_and_values(masked, bias, monkeypatch):
    """In plain loops, over tokens and heads; a third of the weights dropped, the others made larger."""
    torch.manual_seed(0)
    n, length, wide, heads = 3, 5, 8, 2
    rows, query = torch.randn(n, length, wide), torch.randn(n, 6)
    key, value = ((torch.randn(6, wide), torch.randn(6) if bias else None) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0]]).bool() if masked else None
    kept = (torch.arange(n * heads * length) % 3 > 0).view(n, heads, length) * 1.5
    monkeypatch.setattr("icssl_lib.fast._drop", lambda x, p: x * kept)
    found = attend_first(rows, mask, query, key, value, heads, 0.3)
    for i in range(n):
        for head in range(heads):
            own = slice(3 * head, 3 * head + 3)
            k, v = (nn.functional.linear(rows[i], weight, bias)[:, own] for weight, bias in (key, value))
            score = [query[i, own] @ k[t] / 3**0.5 for t in range(length)]
            score = [s if mask is None or mask[i, t] else torch.tensor(-torch.inf) for t, s in enumerate(score)]
            weight = torch.stack(score).softmax(0) * kept[i, head]
            torch.testing.assert_close(found[i, own], sum(weight[t] * v[t] for t in range(length)))


@pytest.mark.parametrize("kind", ["classifier", "tower"])
@pytest.mark.parametrize("most", [1, 2, 4])
@pytest.mark.parametrize("name", ["bert", "electra"])
def test_a_last_layer_read_at_its_first_token_gives_the_same_values_and_gradients(name, most, kind, monkeypatch):
    monkeypatch.setattr("icssl_lib.fast.BUCKET_WEIGHTS", 5 * 2 * 14 * 14 // most)
    encoder = without_dropout(ENCODERS[name])
    if kind == "tower":
        model = TextTower(encoder, "cls", 8, 2)
    else:
        config = copy.deepcopy(ENCODERS[name])
        config.num_labels, config.classifier_dropout = 5, 0.0
        model = AutoModelForSequenceClassification.from_config(config).train()
        model.base_model.load_state_dict(encoder.state_dict())
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
    layers, seen, found = next(m for m in model.modules() if type(m).__name__.endswith("Encoder")).layer, [], {}
    layers[-1].intermediate.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[:-1].numel()))
    for enabled in (False, True):
        model.zero_grad()
        with fast(model, enabled):
            output = model(**titles([14, 3, 9, 1, 14]))
        rows = output if kind == "tower" else output.logits
        (rows * torch.linspace(-1, 1, rows.numel()).view(rows.shape)).sum().backward()
        found[enabled] = rows.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert seen == [5 * 14, 5]
    (plain, of_plain), (quick, of_fast) = found[False], found[True]
    torch.testing.assert_close(quick, plain, atol=2e-5, rtol=1e-4)
    assert of_plain.keys() == of_fast.keys()
    for parameter, gradient in of_plain.items():
        torch.testing.assert_close(of_fast[parameter], gradient, atol=2e-4, rtol=1e-3, msg=parameter)


@pytest.mark.parametrize("kind", ["bert", "vit"])
def test_a_last_layer_for_the_first_token_drops_attention_in_training_only_and_at_its_rate(kind, monkeypatch):
    import timm

    if kind == "bert":
        config = BertConfig(**SHAPE, attention_probs_dropout_prob=0.3, hidden_dropout_prob=0.2)
        model = TextTower(AutoModel.from_config(config), "cls", 8, 2)
        inputs, weights = titles([5, 3]), (2, 2, 5)  # rows, heads, tokens
    else:
        shape = {"embed_dim": 48, "depth": 1, "img_size": 32, "num_classes": 0, "attn_drop_rate": 0.3}
        model, inputs = timm.create_model("vit_tiny_patch16_224", **shape), {"x": torch.randn(2, 3, 32, 32)}
        weights = (2, 3, 5)
    seen = []
    monkeypatch.setattr("icssl_lib.fast._drop", lambda x, p: seen.append((tuple(x.shape), p)) or x)
    for training in (True, False):
        model.train(training)
        with fast(model):
            model(**inputs)
    assert [p for shape, p in seen if shape == weights] == [0.3, 0.0]


def test_a_last_layer_is_whole_where_other_tokens_are_read(tiny_text):
    bert = AutoModel.from_config(ENCODERS["bert"])
    first = TextTower(bert, "cls", 8, 2)
    assert reads_first(first, bert)
    assert not reads_first(bert, bert)
    assert not reads_first(TextTower(bert, "mean", 8, 2), bert)
    pooled = MeanPooledClassifier(str(tiny_text), 4)
    assert not reads_first(pooled, pooled.backbone)
    head = AutoModelForMaskedLM.from_config(ENCODERS["bert"])
    assert not reads_first(nn.ModuleList([first, MaskedWords(bert, head, [0, 1, 2], 3, 90)]), bert)
    other = AutoModel.from_config(ENCODERS["modernbert"])
    assert not reads_first(TextTower(other, "cls", 8, 2), other)


@pytest.mark.parametrize("options", [{"global_pool": "avg"}, {"qk_norm": True}, {"global_pool": "map"}])
def test_a_vit_that_is_not_read_off_its_class_token_or_norms_its_keys_has_its_last_block_whole(options):
    import timm

    shape = {"embed_dim": 48, "num_heads": 3, "depth": 2, "img_size": 32, "num_classes": 0}
    model = timm.create_model("vit_tiny_patch16_224", **shape, **options).eval()
    pixels, seen = torch.randn(2, 3, 32, 32), []
    model.blocks[-1].mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with torch.inference_mode():
        plain = model(pixels)
        with fast(model):
            torch.testing.assert_close(model(pixels), plain, atol=1e-5, rtol=1e-4)
    assert seen == [5 if options.get("qk_norm") else seen[0]] * 2


@given(st.lists(st.integers(1, 20), min_size=1, max_size=9))
def test_any_lengths_give_the_embeddings_of_each_title_alone(lengths):
    model, tokens = without_dropout(ENCODERS["modernbert"]).eval(), titles(lengths)
    tower = TextTower(model, "mean", 8, 2).eval()
    with torch.inference_mode():
        with fast(model):
            together = tower.embed(**tokens)
        for i in range(len(lengths)):
            alone = tower.embed(**take(tokens, torch.tensor([i]), torch.device("cpu")))
            torch.testing.assert_close(together[i : i + 1], alone, atol=2e-5, rtol=1e-4)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=12), st.integers(1, 4))
def test_buckets_hold_each_token_once_and_pad_less(lengths, most):
    mask = titles(lengths)["attention_mask"].bool()
    buckets, places = buckets_of(mask, most)
    assert sorted(places.tolist()) == mask.flatten().nonzero().squeeze(1).tolist()
    assert len(buckets) <= most
    assert sum(len(bucket.real) for bucket in buckets) == sum(lengths)
    assert sum(bucket.mask.numel() for bucket in buckets) <= mask.numel()
    tokens, laid = torch.arange(mask.numel())[places], []
    for bucket, own in zip(buckets, tokens.split([len(bucket.real) for bucket in buckets]), strict=True):
        rows = bucket.rows(own[None, None, :, None].float()).squeeze(1).squeeze(-1)  # (n, T)
        laid += [row[real].tolist() for row, real in zip(rows, bucket.mask[:, 0, 0], strict=True)]
    whole = [torch.arange(mask.numel()).view(mask.shape)[i][mask[i]].tolist() for i in range(len(mask))]
    assert sorted(laid) == sorted(whole)  # each row is whole, and in its order


def test_narrowed_weights_are_bf16_and_come_back_bit_for_bit():
    model = without_dropout(ENCODERS["bert"]).eval()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    parameters = list(map(id, model.parameters()))
    with torch.inference_mode():
        plain = model(**titles([5, 9])).last_hidden_state
        with narrowed(model):
            found = model(**titles([5, 9])).last_hidden_state
        with pytest.raises(IndexError), narrowed(model):
            model(torch.tensor([[90]]))  # a token that it does not know
    assert found.dtype == torch.bfloat16
    real = titles([5, 9])["attention_mask"].bool()
    torch.testing.assert_close(found.float()[real], plain[real], atol=0.05, rtol=0.05)
    assert list(map(id, model.parameters())) == parameters  # those that an optimiser knows
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


@pytest.mark.parametrize(("runtime", "narrow"), [({"fast": True}, True), ({"fast": False}, False)])
def test_titles_are_classified_in_bf16_where_that_is_asked(runtime, narrow, tiny_text, tiny_vision, monkeypatch):
    study = toys.study(tiny_text, tiny_vision, runtime={"device": "cpu", "precision": "no"} | runtime)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(copy.deepcopy(ENCODERS["bert"])).eval()
    dtypes = []
    model.classifier.register_forward_pre_hook(lambda _, inputs: dtypes.append(model.classifier.weight.dtype))
    tokens = titles([5, 5, 9, 2])
    monkeypatch.setattr(finetune, "tokenize", lambda *_: tokens)

    class InBf16:
        mixed_precision, device = "bf16", torch.device("cpu")

        def autocast(self):
            return torch.autocast("cpu", torch.bfloat16)

    found = finetune.predict(model, object(), ["a"] * 4, study, InBf16())
    assert set(dtypes) == {torch.bfloat16 if narrow else torch.float32}
    with torch.inference_mode():
        expected = model(**tokens).logits.softmax(-1)
    torch.testing.assert_close(torch.from_numpy(found).float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("name", ENCODERS)
def test_a_training_with_the_rows_that_titles_use_is_that_with_all_and_leaves_the_others(name):
    few = titles([14, 3, 9, 1, 14])
    few["input_ids"] = few["input_ids"] % 20  # all words are below 20
    used = few["input_ids"].unique()
    found = []
    for enabled in (False, True):
        model = without_dropout(ENCODERS[name])
        table = model.get_input_embeddings()
        before = table.weight.detach().clone()
        with trimmed(model, few["input_ids"], enabled=enabled), fast(model):
            assert len(table.weight) == (len(used) if enabled else 90)
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-8, fused=True)
            for _ in range(3):
                model(**few).last_hidden_state.square().sum().backward()
                optimizer.step()
                optimizer.zero_grad()
        assert len(table.weight) == 90
        assert torch.equal(table.weight[20:], before[20:])
        assert (table.weight[used[1:]] != before[used[1:]]).any(dim=1).all()
        found.append(dict(model.named_parameters()))
    plain, quick = found
    assert plain.keys() == quick.keys()
    for parameter, weight in plain.items():
        torch.testing.assert_close(quick[parameter], weight, atol=1e-5, rtol=1e-4)


def test_a_token_that_was_cut_off_is_refused_and_all_come_back_after_an_error():
    model = without_dropout(ENCODERS["bert"]).eval()
    table = model.get_input_embeddings()
    weight, expected = table.weight, model(**titles([5])).last_hidden_state
    with pytest.raises(IndexError), trimmed(model, torch.tensor([[5, 6]])):
        model(torch.tensor([[7]]))
    assert table.weight is weight
    assert table.padding_idx == 0
    assert torch.equal(model(**titles([5])).last_hidden_state, expected)


def test_a_table_that_another_layer_shares_is_left_whole():
    model = without_dropout(ENCODERS["bert"])
    model.decoder = nn.Linear(32, 90)
    model.decoder.weight = model.get_input_embeddings().weight
    with trimmed(model, torch.tensor([[5, 6]])):
        assert len(model.get_input_embeddings().weight) == 90


@pytest.mark.parametrize(("lr", "weight_decay"), [(7e-4, 1e-8), (5e-5, 0.0), (1e-5, 1e-4), (5e-5, 0.01), (1e-3, 1e-3)])
@pytest.mark.parametrize("fused", [True, False])
def test_adamw_leaves_a_row_without_a_gradient_as_it_is_where_the_decay_is_lost(lr, weight_decay, fused):
    weight = nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    before, weight.grad = weight.detach().clone(), torch.zeros(1000)
    optimizer = torch.optim.AdamW([weight], lr=lr, weight_decay=weight_decay, fused=fused)
    for _ in range(5):
        optimizer.step()
    assert torch.equal(weight, before) == decay_is_lost(lr, weight_decay)


@pytest.mark.parametrize("weight_decay", [1e-8, 1e-9])
def test_adams_own_l2_term_moves_a_row_without_a_gradient_however_small_it_is(weight_decay):
    weight = nn.Parameter(torch.full((3,), 0.05))
    weight.grad = torch.zeros(3)
    optimizer = torch.optim.Adam([weight], lr=1e-3, weight_decay=weight_decay)
    for _ in range(100):
        optimizer.step()
    # m / (sqrt(v) + eps) of the term alone; at 1e-8, which is eps, that is the weight itself
    expected = 0.05 * (1 - 1e-3 * weight_decay / 1e-8) ** 100
    torch.testing.assert_close(weight.detach(), torch.full((3,), expected), atol=0, rtol=0.01)


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
    assert not can_unpad(model)
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


@pytest.mark.parametrize(("kernel", "size", "bias"), [(16, 64, True), (8, 20, False), ((4, 6), 24, True)])
def test_a_vits_first_layer_gives_the_values_and_gradients_of_the_convolution(kernel, size, bias):
    torch.manual_seed(0)
    layer = nn.Conv2d(3, 10, kernel, stride=kernel, bias=bias)
    found = {}
    for enabled in (False, True):
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1), requires_grad=True)
        layer.zero_grad()
        with fast(layer, enabled):
            assert ("forward" in vars(layer)) == enabled
            y = layer(x)
        (y * torch.linspace(-1, 1, y.numel()).view(y.shape)).sum().backward()
        found[enabled] = [y.detach(), x.grad, *(p.grad.clone() for p in layer.parameters())]
    assert len(found[True]) == 3 + bias
    for quick, plain in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(quick, plain, atol=1e-4, rtol=1e-4)


def test_a_convolution_with_overlap_is_left_alone():
    for layer in (nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 2, stride=2, padding=1), nn.Conv2d(4, 8, 2, stride=2, groups=2)):
        with fast(layer):
            assert "forward" not in vars(layer)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_has_the_rate_the_mean_and_the_variance_of_torchs_own(p):
    torch.manual_seed(0)
    x = torch.ones(1 << 20)
    kept = dropout(x, p)
    n, q = x.numel(), 1 - p
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / q], rel=1e-4)
    assert abs((kept > 0).float().mean().item() - q) < 5 * (p * q / n) ** 0.5
    assert abs(kept.mean().item() - 1) < 5 * (p / q / n) ** 0.5
    rows = (kept > 0).float().view(-1, 4)  # four share a random number
    assert (torch.corrcoef(rows.T) - torch.eye(4)).abs().max() < 5 / (n / 4) ** 0.5
    lag = (kept[1:] > 0).float(), (kept[:-1] > 0).float()
    assert abs(torch.corrcoef(torch.stack(lag))[0, 1].item()) < 5 / n**0.5


@pytest.mark.parametrize("shape", [(1,), (3,), (5, 7), (2, 3, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_sends_the_gradient_where_the_value_went(shape, dtype):
    torch.manual_seed(1)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    y = dropout(x, 0.4)
    assert (y.shape, y.dtype) == (x.shape, dtype)
    y.sum().backward()
    torch.testing.assert_close(x.grad * x.detach(), y.detach(), rtol=2e-2, atol=1e-6)


def test_dropout_repeats_with_the_seed_differs_without_and_is_idle_in_evaluation():
    x = torch.randn(100)
    torch.manual_seed(0)
    first, second = dropout(x, 0.5), dropout(x, 0.5)
    torch.manual_seed(0)
    assert torch.equal(dropout(x, 0.5), first)
    assert not torch.equal(first, second)
    assert dropout(x, 0.5, training=False) is x
    assert dropout(x, 0.0) is x
    assert torch.equal(dropout(x, 1.0), torch.zeros(100))


def test_two_passes_of_a_title_have_dropouts_of_their_own():
    torch.manual_seed(0)
    model = AutoModel.from_config(ENCODERS["bert"]).train()
    tokens = {name: x.repeat_interleave(2, dim=0) for name, x in titles([9, 4]).items()}
    with fast(model):
        hidden = model(**tokens).last_hidden_state
    assert (hidden[0] - hidden[1]).abs().max() > 1e-2
    assert (hidden[2, :4] - hidden[3, :4]).abs().max() > 1e-2


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A text encoder without dropout, so that two paths can be held to each other."""
    rates = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}
    return toys.save_text(tmp_path_factory.mktemp("calm") / "text", **rates)


@pytest.mark.parametrize("method", ["simcse", "convirt"])
def test_adaptation_without_dropout_ends_with_the_weights_of_the_plain_path(method, toy, calm, tiny_vision, tmp_path):
    ends = {}
    for quick in (True, False):
        study = toys.study(calm, tiny_vision, runtime={"device": "cpu", "fast": quick})
        ends[quick] = adapt.adapt(method, toy, study, 0, tmp_path, progress=False)
    torch.testing.assert_close(
        torch.tensor(ends[True].history.loss), torch.tensor(ends[False].history.loss), atol=1e-4, rtol=1e-3
    )
    for (name, a), b in zip(ends[True].backbone.named_parameters(), ends[False].backbone.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-2, msg=name)


def test_finetuning_without_dropout_predicts_what_the_plain_path_predicts(toy, calm, tiny_vision):
    read = {}
    for quick in (True, False):
        study = toys.study(calm, tiny_vision, runtime={"device": "cpu", "fast": quick})
        read[quick] = finetune.classify("origin", str(calm), toy, study, 1.0, 0).predictions
    assert (read[True].predicted == read[False].predicted).mean() > 0.95
    assert (read[True].confidence - read[False].confidence).abs().median() < 1e-3
