"""Towers on models made on the fly: shapes, pooling, freezing, and what cannot be loaded."""

import copy
import json
import pickle

import pytest
import timm
import torch
import toys
from safetensors.torch import save_file
from torch import nn
from transformers import RobertaConfig, RobertaModel, T5Config, T5Model

from icssl_lib import encoders
from icssl_lib.config import TextConfig, VisionConfig
from icssl_lib.encoders import ModelError, TextTower, VisionTower, embed_titles, load_text, load_vision, take, tokenize

TITLES = ["alma mug 7", "bora", "cira lamp 12 rug vase dena 5", "eris rug", "fola fola fola vase", "7"]


@pytest.fixture(scope="module")
def text(tiny_text):
    return load_text(str(tiny_text))


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_projection_has_the_depth_and_ends_linear(depth):
    head = encoders.projection(5, 7, depth)
    assert sum(isinstance(layer, nn.Linear) for layer in head) == depth
    assert sum(isinstance(layer, nn.ReLU) for layer in head) == depth - 1
    assert isinstance(head[-1], nn.Linear)
    assert head(torch.randn(3, 5)).shape == (3, 7)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_text_tower(text, pooling):
    backbone, tokenizer = text
    tower = TextTower(backbone, pooling, projection_dim=16, depth=2).eval()
    tokens = tokenize(tokenizer, TITLES, 32)
    pooled = tower.embed(**tokens)
    assert pooled.shape == (6, 32)
    assert tower(**tokens).shape == (6, 16)
    alone = torch.cat([tower.embed(**tokenize(tokenizer, [title], 32)) for title in TITLES])
    torch.testing.assert_close(pooled, alone, rtol=1e-4, atol=1e-5)  # padding changes nothing
    hidden = backbone(**tokenize(tokenizer, TITLES[:1], 32)).last_hidden_state[0]
    torch.testing.assert_close(alone[0], hidden[0] if pooling == "cls" else hidden.mean(0), rtol=1e-4, atol=1e-5)


def test_weights_are_float32_even_where_the_folder_says_otherwise(tiny_text, tmp_path):
    backbone, tokenizer = load_text(str(tiny_text))
    backbone.bfloat16().save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    assert {p.dtype for p in load_text(str(tmp_path))[0].parameters()} == {torch.float32}


def test_vision_tower_normalises_pixels(tiny_vision):
    backbone = load_vision(VisionConfig(model=f"local-dir:{tiny_vision}", image_size=toys.SIZE))
    tower = VisionTower(backbone, projection_dim=16, depth=2).eval()
    pixels = torch.randint(0, 256, (3, toys.SIZE, toys.SIZE, 3), dtype=torch.uint8)
    assert tower(pixels).shape == (3, 16)
    settings = backbone.pretrained_cfg
    mean, std = (torch.tensor(settings[name]) for name in ("mean", "std"))
    by_hand = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
    torch.testing.assert_close(tower.embed(pixels), backbone(by_hand), rtol=1e-4, atol=1e-4)


def test_frozen_vision_neither_trains_nor_drops_out(tmp_path):
    folder = toys.save_vision(tmp_path / "vision", proj_drop_rate=0.5)
    config = VisionConfig(model=f"local-dir:{folder}", image_size=toys.SIZE)
    pixels = torch.randint(0, 256, (4, toys.SIZE, toys.SIZE, 3), dtype=torch.uint8)
    free = VisionTower(load_vision(config), projection_dim=16, depth=2).train()
    assert not torch.equal(free.embed(pixels), free.embed(pixels))  # there is dropout to be switched off
    frozen = VisionTower(load_vision(config), projection_dim=16, depth=2, frozen=True).train()
    features = frozen.embed(pixels)
    assert torch.equal(features, frozen.embed(pixels))
    assert not features.requires_grad
    frozen(features).sum().backward()
    assert all(p.grad is None for p in frozen.backbone.parameters())
    assert all(p.grad is not None for p in frozen.projection.parameters())
    assert frozen.projection.training


def test_checkpoint_of_another_size_is_interpolated(tmp_path):
    original = timm.create_model("test_vit", num_classes=7)  # 160 x 160, with a classifier
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    config = VisionConfig(model="test_vit", checkpoint=tmp_path / "model.safetensors", image_size=96)
    backbone = load_vision(config)
    assert backbone.pos_embed.shape[1] == 6 * 6 + backbone.num_prefix_tokens
    torch.testing.assert_close(backbone.state_dict()["blocks.0.attn.qkv.weight"], original.blocks[0].attn.qkv.weight)
    assert backbone(torch.randn(2, 3, 96, 96)).shape == (2, backbone.num_features)


def test_tokens_are_cut_at_max_tokens_and_in_a_batch_to_the_longest(text):
    assert tokenize(text[1], ["alma " * 50], 8)["input_ids"].shape == (1, 8)
    tokens, index = tokenize(text[1], TITLES, 32), torch.tensor([3, 1])
    lengths = tokens["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 2
    for multiple, length in ((1, int(lengths[index].max())), (8, 8)):
        part = take(tokens, index, "cpu", multiple)
        assert {name: rows.tolist() for name, rows in part.items()} == {
            name: rows[index, :length].tolist() for name, rows in tokens.items()
        }


def test_embed_titles_does_not_depend_on_order_or_batch(text):
    backbone, tokenizer = text
    config = TextConfig(model="unused")
    backbone.train()
    expected = embed_titles(backbone, tokenizer, TITLES, config)
    assert expected.shape == (6, 32)
    assert expected.dtype == torch.float32
    assert torch.equal(expected, embed_titles(backbone, tokenizer, TITLES, config))  # no dropout
    many = embed_titles(backbone, tokenizer, TITLES[::-1] * 50, config)  # three batches
    torch.testing.assert_close(many[-6:].flip(0), expected)


def test_a_folder_without_model_or_weights_or_with_damaged_ones_is_named(tiny_text, tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ModelError, match=r"text\.model: .* holds no config\.json; name a folder"):
            load_text(str(folder))
    (tmp_path / "config.json").write_bytes((tiny_text / "config.json").read_bytes())
    with pytest.raises(ModelError, match="cannot load"):
        load_text(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ModelError, match="cannot load"):
        load_text(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "sprung"), protocol=2))
    with pytest.raises(ModelError, match=r"cannot load .*Weights only load failed"):
        load_text(str(tmp_path))
    assert not (tmp_path / "sprung").exists()
    backbone, tokenizer = load_text(str(tiny_text))
    backbone.embeddings.word_embeddings.weight.data.fill_(torch.nan)
    with pytest.raises(ModelError, match="numbers that are not finite"):
        encoders.save_pretrained(backbone, tokenizer, tmp_path / "nan") or load_text(str(tmp_path / "nan"))


def test_hub_name_without_network_points_to_the_folder_option():
    with pytest.raises(ModelError, match=r"'nobody/no-such-model'.*Without network, name a folder"):
        load_text("nobody/no-such-model")
    with pytest.raises(ModelError, match=r"'test_vit'.*Without network, .*vision\.checkpoint"):
        load_vision(VisionConfig(model="test_vit", image_size=160))


@pytest.mark.parametrize(("model", "message"), [
    ("vit_tinny_patch16_224", "did you mean 'vit_tiny_patch16_224'"), ("local-dir:absent", "cannot load weights")
])  # fmt: skip
def test_unknown_names_of_timm(model, message):
    with pytest.raises(ModelError, match=message):
        load_vision(VisionConfig(model=model))


class Trap:
    """Unpickling it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_that_is_pickled_missing_damaged_or_does_not_fit(tmp_path):
    path = tmp_path / "model.safetensors"
    config = VisionConfig(model="test_vit", checkpoint=path, image_size=160)
    with pytest.raises(ModelError, match=r"No such file .*model\.safetensors"):
        load_vision(config)
    for content in (b"not a checkpoint", pickle.dumps(Trap(tmp_path / "sprung"))):
        path.write_bytes(content)
        with pytest.raises(ModelError, match=r"checkpoint: .*\.safetensors: .*; only \.safetensors files are read"):
            load_vision(config)
    assert not (tmp_path / "sprung").exists()
    save_file({"something": torch.zeros(2)}, path)
    with pytest.raises(ModelError, match="cannot load weights of 'test_vit'"):
        load_vision(config)


def test_an_encoder_that_would_not_read_titles_is_refused(tiny_text, tmp_path):
    toys.save_text(tmp_path / "few", vocab_size=20)
    backbone, tokenizer = load_text(str(tiny_text))
    tokenizer.pad_token = None
    encoders.save_pretrained(backbone, tokenizer, tmp_path / "unpadded")
    shape = {"vocab_size": 300, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    T5Model(T5Config(**shape)).save_pretrained(tmp_path / "both")
    load_text(str(tiny_text))[1].save_pretrained(tmp_path / "both")
    messages = {"unpadded": "has a tokenizer without a padding token", "both": "is an encoder-decoder"}
    for name, message in (messages | {"few": "has 20 embeddings, but its tokenizer has"}).items():
        with pytest.raises(ModelError, match=message):
            load_text(str(tmp_path / name), max_tokens=33)
    for name in ("no/such/folder", "./bert", f"{tmp_path.name}/x/"):
        with pytest.raises(ModelError, match=r"holds no config\.json"):
            load_text(name)


@pytest.mark.parametrize(("change", "message"), [
    ({"num_hidden_layers": 2}, "lacks 16 weights"),
    ({"return_dict": False}, "is no encoder of texts: 'tuple' object"),
    ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "custom code"),
])  # fmt: skip
@pytest.mark.filterwarnings("ignore:.* is not as it was written")  # then comes the error
def test_a_folder_that_asks_for_what_is_not_there_is_refused(change, message, tiny_text, tmp_path):
    encoders.save_pretrained(*load_text(str(tiny_text)), tmp_path / "model")
    path = tmp_path / "model/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ModelError, match=r"cannot load '.*config\.json is not as it was written; .* SHA256SUMS if you"):
        load_text(str(tmp_path / "model"))
    (tmp_path / "model/SHA256SUMS").unlink()
    with pytest.raises(ModelError, match=f"text.model: .*{message}"):
        load_text(str(tmp_path / "model"))


def test_positions_of_roberta_begin_behind_the_padding_id(tiny_text, tmp_path):
    tokenizer, shape = load_text(str(tiny_text))[1], {"num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=300, hidden_size=32, max_position_embeddings=34, pad_token_id=1, **shape)
    encoders.save_pretrained(RobertaModel(config), tokenizer, tmp_path / "roberta")
    load_text(str(tmp_path / "roberta"), 32)
    with pytest.raises(ModelError, match="reads at most 32 tokens"):
        load_text(str(tmp_path / "roberta"), 33)


def test_titles_of_another_language_are_refused(text):
    with pytest.raises(ModelError, match=r"no token for \d+% of the titles' words \(e\.g\. 'Кружка"):
        tokenize(text[1], ["Кружка 赤い", *["Лампа настольная"] * 20], 32)
    with pytest.raises(ModelError, match="no token for 100% of the titles' words"):
        tokenize(text[1], ["เสื้อ"] * 24, 32)  # one word each, which the marks of begin and end do not make known
    tokenize(text[1], ["Кружка 赤い"], 32)  # one title may be of anything
    none = copy.deepcopy(text[1])
    none.unk_token = None
    assert tokenize(none, ["mug"] * 20, 32)["input_ids"].shape[0] == 20


def test_another_pooling_is_refused(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    modes = {"word_embedding_dimension": 32, "pooling_mode_max_tokens": True}
    (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(modes))
    with pytest.raises(ModelError, match=r"pools by pooling_mode_max_tokens; set text\.pooling"):
        encoders.pooling_of(str(tmp_path))
    for found, expected in (
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True}, "mean"),
        ({"pooling_mode": "cls", "embedding_dimension": 32, "include_prompt": True}, "cls"),
    ):
        (tmp_path / "1_Pooling" / "config.json").write_text(json.dumps(found))
        assert encoders.pooling_of(str(tmp_path)) == expected
    (tmp_path / "1_Pooling").rename(tmp_path / "pool")
    modules = [{"path": "pool", "type": "sentence_transformers.models.Pooling"}, {"path": "", "type": "a.Dense"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules[:1]))
    assert encoders.pooling_of(str(tmp_path)) == "cls"
    for text, message in ((json.dumps(modules), "pools by Dense and cls; set"), ("{", "cannot read how")):
        (tmp_path / "modules.json").write_text(text)
        with pytest.raises(ModelError, match=message):
            encoders.pooling_of(str(tmp_path))


def test_a_checkpoint_of_another_family_says_which_keys(tmp_path):
    save_file(timm.create_model("resnet10t").state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(ModelError, match=r"(?s)cannot load weights of 'test_vit'.*Missing key.*patch_embed.*layer4"):
        load_vision(VisionConfig(model="test_vit", checkpoint=tmp_path / "model.safetensors", image_size=160))
