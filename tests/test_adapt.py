"""The SSL stage on toys: every tower trains, labels stay unread, seeds hold."""

import dataclasses
import random
from functools import partial

import numpy as np
import pytest
import torch
import toys
from accelerate.utils import set_seed
from safetensors.torch import load_file
from toys import flip

from icssl_lib import adapt as stage
from icssl_lib.adapt import adapt, build, build_vision, load_towers, save, ssl_pairs
from icssl_lib.config import Run, RuntimeConfig
from icssl_lib.encoders import ModelError, load_text, tokenize
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.methods import METHODS, Method

ADAPTING = [name for name, method in METHODS.items() if method.adapts]


@pytest.fixture
def study(tiny_text, tiny_vision):
    return toys.study(tiny_text, tiny_vision)


def run(method: str, seed: int = 0) -> Run:
    return Run("toy", method, seed)


def weights(adapted) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in adapted.backbone.parameters()])


def with_titles(catalogue, rows, title):
    products = catalogue.products.copy()
    products.loc[rows, "title"] = title
    return dataclasses.replace(catalogue, products=products)


def parts_of(method, study, toy):
    """Towers, from rows to batches, and the plain step, as `adapt` puts them together."""
    entry, accelerator = METHODS[method], make_accelerator(study.runtime)
    set_seed(0)
    towers, tokenizer = build(study, entry)
    pairs = ssl_pairs(toy, entry.pictures, 0)
    images = stage.ImageSource(toy, towers.vision, accelerator) if towers.vision else None
    tokens = tokenize(tokenizer, list(pairs.title), study.text.max_tokens)
    of_pairs = {"pairs": pairs, "tokens": tokens, "images": images, "config": study.adapt}
    batches = partial(stage.pair_batches, **of_pairs, accelerator=accelerator)
    return towers, batches, partial(stage.plain_step, accelerator=accelerator)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", ADAPTING)
def test_one_step_reaches_every_tower(method, frozen, toy, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision, vision={"frozen": frozen})
    towers, batches, step = parts_of(method, study, toy)
    ((_, batch),) = batches([(0, torch.arange(60))])
    step(towers.train(), batch, partial(METHODS[method].loss, config=study.adapt))
    gradients = {n: p.grad for n, p in towers.named_parameters() if ".pooler." not in n}  # transformers' own, unused
    trained = {"text.backbone"} | ({"words"} if METHODS[method].words else set())
    trained |= {"scale"} if METHODS[method].scaled else set()
    trained |= {"text.projection"} if method != "mlm" else set()
    if METHODS[method].pictures != "none":
        trained |= {"vision.projection"} | (set() if frozen else {"vision.backbone"})
    for part in ("text.backbone", "text.projection", "vision.backbone", "vision.projection", "words", "scale"):
        of_part = {name: g for name, g in gradients.items() if name.startswith(part)}
        assert of_part or part not in trained, part
        for name, gradient in of_part.items():
            assert (gradient is not None) == (part in trained), name
            if gradient is not None:
                assert torch.isfinite(gradient).all(), name
                # The bias of attention keys has no gradient: softmax does not see a shift.
                assert gradient.ndim == 1 or gradient.abs().max() > 0, name


def test_train_is_a_plain_loop_over_its_batches(study, toy):
    """The library's loop against the loop written out: losses and weights, with the optimiser's own steps."""
    runs = []
    for own in (False, True):
        towers, batches, step = parts_of("simcse", study, toy)
        optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-3)
        loss_fn, history = partial(METHODS["simcse"].loss, config=study.adapt), []
        rows = [(epoch, index) for epoch in (0, 1) for index in torch.arange(30).split(10)]
        if own:
            towers.train()
            for epoch, batch in batches(rows):
                loss = loss_fn(towers, batch)
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                history.append((len(history), epoch, loss.item()))
        else:
            stage.train(towers, batches(rows), loss_fn, optimizer, step, history)
        runs.append(([row[:3] for row in history], torch.cat([p.detach().flatten() for p in towers.parameters()])))
    assert runs[0][0] == runs[1][0]
    assert [epoch for _, epoch, _ in runs[0][0]] == [0, 0, 0, 1, 1, 1]
    assert torch.equal(runs[0][1], runs[1][1])


def test_pairs_hold_no_labels_and_only_the_ssl_part(toy):
    ssl = toy.part("ssl")
    for pictures in ("none", "own", "shuffled"):
        pairs = ssl_pairs(toy, pictures, seed=0)
        assert list(pairs.columns) == ["title", "image_row", "group"]
        assert list(pairs.title) == list(ssl.title)
    assert list(ssl_pairs(toy, "own", 0).image_row) == list(ssl.image_row)
    assert len(ssl_pairs(toy, "own", 0, fraction=0.5)) == len(ssl) // 2


@pytest.mark.parametrize("method", ["simcse", "convirt"])
def test_labels_are_never_read(method, toy, study):
    blind = dataclasses.replace(toy, products=toy.products.drop(columns="label"))
    expected = weights(adapt(run(method), toy, study, progress=False))
    assert torch.equal(weights(adapt(run(method), blind, study, progress=False)), expected)


def test_shuffled_pairs_are_the_same_pictures_and_nobody_keeps_its_own(toy):
    own, drawn = ssl_pairs(toy, "own", 0).image_row, []
    for seed in range(20):
        shuffled = ssl_pairs(toy, "shuffled", seed).image_row
        assert sorted(shuffled) == sorted(own)
        assert (shuffled != own).all()
        assert list(shuffled) == list(ssl_pairs(toy, "shuffled", seed).image_row)
        drawn.append(tuple(shuffled))
    assert len(set(drawn)) == 20


def test_equal_normalised_titles_are_one_group(toy):
    group = ssl_pairs(with_titles(toy, [0, 5], ["Alma  MUG", "alma mug"]), "none", 0).group
    assert group[0] == group[5]
    assert group.nunique() == len(group) - 1 - toy.part("ssl").title.duplicated().sum()


def test_a_batch_of_one_title_has_no_loss_and_trains_nothing(toy, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision, adapt={"batch_size": 2, "weight_decay": 0.0})
    ssl = toy.products.index[toy.products.part == "ssl"]
    loss = adapt(run("simcse"), with_titles(toy, ssl[: len(ssl) // 2], "alma mug"), study, progress=False).history.loss
    assert 0 < (loss == 0).sum() < len(loss)
    adapted = adapt(run("simcse"), with_titles(toy, ssl, "alma mug"), study, progress=False)
    assert (adapted.history.loss == 0).all()
    assert torch.equal(weights(adapted), torch.cat([p.flatten() for p in load_text(str(tiny_text))[0].parameters()]))


def test_titles_without_a_picture_are_left_out_where_pictures_are_needed(toy, study):
    products = toy.products.copy()
    products.loc[[0, 3], "image_row"] = -1
    some, n = dataclasses.replace(toy, products=products), len(toy.part("ssl"))
    assert [len(ssl_pairs(some, pictures, 0)) for pictures in ("none", "own", "shuffled")] == [n, n - 2, n - 2]
    assert (ssl_pairs(some, "shuffled", 0).image_row >= 0).all()
    bare = dataclasses.replace(toy, products=products.assign(image_row=-1), images=None)
    with pytest.raises(ValueError, match="toy: the SSL part has too few titles with a picture for a batch: 0"):
        adapt(run("convirt"), bare, study)


def test_a_seed_gives_the_same_bits_and_each_method_other_ones(toy, study):
    assert {METHODS[name].pictures for name in ADAPTING} == {"none", "own", "shuffled"}
    names = [name for name in ADAPTING if not METHODS[name].after]  # those differ by where they start from
    runs = {name: weights(adapt(run(name), toy, study, progress=False)) for name in names}
    for name in ("simcse", "convirt"):
        assert torch.equal(weights(adapt(run(name), toy, study, progress=False)), runs[name])
        assert not torch.equal(weights(adapt(run(name, 1), toy, study, progress=False)), runs[name])
    for i, one in enumerate(names):
        assert not any(torch.equal(runs[one], runs[other]) for other in names[i + 1 :])


def test_measuring_leaves_the_random_state(toy, study):
    towers, tokenizer = build(study, METHODS["convirt"])
    accelerator = make_accelerator(study.runtime)
    images = stage.ImageSource(toy, towers.vision, accelerator)
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    space = stage.measure(towers, tokenizer, toy, study, images, accelerator)
    after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()  # noqa: NPY002
    assert list(space.measure) == ["title alignment", "title uniformity", "title-picture alignment"]
    assert np.isfinite(space.value).all()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


@pytest.mark.parametrize("method", ["simcse", "convirt"])
def test_loss_falls_and_the_history_is_whole(method, toy, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision, adapt={"epochs": 6, "batch_size": 16})
    adapted = adapt(run(method), toy, study, progress=False)
    assert list(adapted.history.columns) == ["step", "epoch", "loss", "seconds"]
    assert list(adapted.history.step) == list(range(6 * (60 // 16)))
    by_epoch = adapted.history.groupby("epoch").loss.mean()
    assert by_epoch.iloc[-1] < by_epoch.iloc[0] - 0.3
    assert not adapted.backbone.training
    assert set(adapted.space.when) == {"before", "after"}


def test_features_of_a_frozen_tower_are_those_of_its_pixels(toy, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision, vision={"frozen": True})
    vision, rows = build_vision(study), np.array([7, 0, 99])
    features = stage.ImageSource(toy, vision, make_accelerator(study.runtime))[rows]
    torch.testing.assert_close(features, vision.embed(torch.tensor(toy.images[rows])), rtol=1e-4, atol=1e-5)
    for kept in toy.folder.glob("images.npy.*.npz"):
        flip(kept)  # damaged, they are computed again
    assert torch.equal(stage.ImageSource(toy, vision, make_accelerator(study.runtime))[rows], features)


@pytest.mark.parametrize(("method", "frozen", "processes"), [
    ("simcse", False, 1), ("convirt", False, 1), ("convirt", True, 1), ("mlm", False, 1), ("convirt", False, 2),
    ("convirt_sigmoid", False, 1), ("convirt_sigmoid", False, 2),
])  # fmt: skip
def test_the_towers_come_back_as_they_were_left(method, frozen, processes, toy, study, tmp_path):
    vision, runtime = study.vision.model_copy(update={"frozen": frozen}), {"device": "cpu", "processes": processes}
    study = study.model_copy(update={"vision": vision, "runtime": RuntimeConfig(**runtime)})
    adapted = adapt(run(method), toy, study, progress=False)
    save(adapted, tmp_path / "encoder")
    back, tokenizer = load_towers(study, method, tmp_path / "encoder")
    kept, state = load_file(tmp_path / "encoder" / "towers.safetensors"), back.state_dict()
    assert not back.training
    assert kept.keys() == adapted.rest.keys()
    assert all(torch.equal(state[name], adapted.rest[name]) for name in kept)
    assert all(torch.equal(w, back.text.backbone.state_dict()[n]) for n, w in adapted.backbone.state_dict().items())
    parts = {"text", *(["vision"] if METHODS[method].pictures != "none" else []), *(["scale"] * METHODS[method].scaled)}
    assert {n.split(".")[0] for n in kept} == parts
    if METHODS[method].scaled:  # learnt, and not what they begin with
        fresh = build(study, METHODS[method])[0].scale
        assert kept["scale.bias"] != fresh.bias
        assert kept["scale.log_scale"] != fresh.log_scale
    assert not [name for name in kept if name.startswith("text.backbone.")]
    if METHODS[method].pictures != "none":
        name, fresh = "backbone.patch_embed.proj.weight", build_vision(study)
        assert torch.equal(kept[f"vision.{name}"], fresh.state_dict()[name]) == frozen
        pictures = back.vision.projection(back.vision.embed(torch.tensor(toy.images[[0, 1]])))
        assert pictures.shape == (2, study.adapt.projection_dim)
    assert list(tokenizer("alma mug")["input_ids"])


def test_the_folder_is_a_plain_one(toy, study, tmp_path):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, pipeline

    adapted, folder = adapt(run("convirt"), toy, study, progress=False), str(tmp_path / "encoder")
    save(adapted, tmp_path / "encoder")
    loaded = AutoModel.from_pretrained(folder)
    assert torch.equal(weights(adapted), torch.cat([p.flatten() for p in loaded.parameters()]))
    tokens = pipeline("feature-extraction", model=folder)("alma mug", return_tensors=True)[0]
    titles = SentenceTransformer(folder, device="cpu").encode(["alma mug"])
    assert titles[0] == pytest.approx(tokens.mean(dim=0).numpy(), abs=1e-5)


def test_towers_that_do_not_fit_or_are_not_there(toy, study, tiny_text, tiny_vision, tmp_path):
    save(adapt(run("simcse"), toy, study, progress=False), tmp_path)
    wider = toys.study(tiny_text, tiny_vision, adapt={"projection_dim": 24})
    for settings, method, what in ((wider, "simcse", "size mismatch"), (study, "convirt", r"Missing key.*vision\.")):
        with pytest.raises(ModelError, match=rf"towers.safetensors: no towers that fit the study's settings.*{what}"):
            load_towers(settings, method, tmp_path)
    (tmp_path / "towers.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="no towers that fit"):
        load_towers(study, "simcse", tmp_path)
    (tmp_path / "towers.safetensors").unlink()
    with pytest.raises(ModelError, match=r"No such file.*run the adaptation again"):
        load_towers(study, "simcse", tmp_path)


def test_a_method_that_does_not_adapt_is_refused(toy, study):
    with pytest.raises(ValueError, match="'origin' uses the encoder as it comes"):
        adapt(run("origin"), toy, study)


def test_a_loss_that_is_not_finite_stops(toy, study, monkeypatch):
    def broken(towers, batch, config):
        return towers.text(batch["input_ids"], batch["attention_mask"]).sum() * float("nan")

    monkeypatch.setitem(METHODS, "broken", Method("broken", broken))
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 0; lower adapt\.lr"):
        adapt(run("broken"), toy, study, progress=False)
