"""The SSL stage on toys: every tower trains, labels stay unread, seeds hold."""

import dataclasses
import random
import shutil

import numpy as np
import pytest
import torch
import toys
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file

from icssl_lib import adapt as stage
from icssl_lib.adapt import (
    ImageSource,
    Towers,
    adapt,
    epoch_batches,
    load_towers,
    make_accelerator,
    make_vision,
    measure,
    save,
    ssl_pairs,
)
from icssl_lib.config import RuntimeConfig
from icssl_lib.encoders import ModelError, TextTower, load_text
from icssl_lib.methods import METHODS, Method
from icssl_lib.runs import piece

ADAPTING = [name for name, method in METHODS.items() if method.adapts]


@pytest.fixture
def study(tiny_text, tiny_vision):
    return toys.study(tiny_text, tiny_vision)


def weights(adapted) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in adapted.backbone.parameters()])


def without_pictures(catalogue):
    products = catalogue.products.assign(image_row=-1)
    return dataclasses.replace(catalogue, products=products, images=None)


# --- one real step


def test_there_are_methods_with_and_without_pictures():
    assert {METHODS[name].pictures for name in ADAPTING} == {"none", "own", "shuffled", "neighbours"}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", ADAPTING)
def test_one_step_reaches_every_tower(method, frozen, toy, tiny_text, tiny_vision, tmp_path, monkeypatch):
    study = toys.study(tiny_text, tiny_vision, vision={"frozen": frozen}, adapt={"batch_size": 60})  # one step
    towers, gradients = [], []

    class Seen(Towers):
        def __init__(self, *parts):
            super().__init__(*parts)
            towers.append(self)

    def backward(self, loss, original=Accelerator.backward):
        original(self, loss)
        gradients.append({n: None if p.grad is None else p.grad.clone() for n, p in towers[0].named_parameters()})

    monkeypatch.setattr(stage, "Towers", Seen)
    monkeypatch.setattr(Accelerator, "backward", backward)
    adapt(method, toy, study, 0, tmp_path, progress=False)

    assert len(gradients) == 1
    seen = {name: g for name, g in gradients[0].items() if ".pooler." not in name}  # transformers' own, unused here
    trained = {"text.backbone"} | ({"words"} if METHODS[method].words else set())
    if method != "mlm":
        trained |= {"text.projection"}
    if METHODS[method].pictures != "none":
        trained |= {"vision.projection"} | (set() if frozen else {"vision.backbone"})
    for part in ("text.backbone", "text.projection", "vision.backbone", "vision.projection", "words"):
        of_part = {name: g for name, g in seen.items() if name.startswith(part)}
        if part not in trained:
            assert all(g is None for g in of_part.values()), part
            continue
        assert of_part, part
        for name, gradient in of_part.items():
            assert gradient is not None, name
            assert torch.isfinite(gradient).all(), name
            if gradient.ndim > 1:  # the bias of attention keys has no gradient: softmax does not see a shift
                assert gradient.abs().max() > 0, name


# --- what it is shown


def test_pairs_hold_no_labels_and_only_the_ssl_part(toy):
    ssl = toy.part("ssl")
    for pictures in ("none", "own", "shuffled"):
        pairs = ssl_pairs(toy, pictures, seed=0)
        assert list(pairs.columns) == ["title", "image_row", "group"]
        assert list(pairs.title) == list(ssl.title)
    assert list(ssl_pairs(toy, "own", 0).image_row) == list(ssl.image_row)


@pytest.mark.parametrize("method", ["simcse", "convirt"])
def test_labels_outside_train_are_never_read(method, toy, study, tmp_path):
    blind = dataclasses.replace(toy, products=toy.products.drop(columns="label"))
    expected = weights(adapt(method, toy, study, 0, tmp_path, progress=False))
    assert torch.equal(weights(adapt(method, blind, study, 0, tmp_path, progress=False)), expected)


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
    products = toy.products.copy()
    products.loc[[0, 5], "title"] = ["Alma  MUG", "alma mug"]
    group = ssl_pairs(dataclasses.replace(toy, products=products), "none", 0).group
    assert group[0] == group[5]
    assert group.nunique() == len(group) - 1 - toy.part("ssl").title.duplicated().sum()


def test_a_batch_of_one_title_is_left_out_and_counted_and_nothing_else_is_an_error(toy, study, tmp_path):
    ssl = toy.products.index[toy.products.part == "ssl"]
    study = study.model_copy(update={"adapt": study.adapt.model_copy(update={"batch_size": 2, "epochs": 1})})
    products = toy.products.copy()
    products.loc[ssl[: len(ssl) // 2], "title"] = "alma mug"
    with pytest.warns(UserWarning, match=r"toy: \d+ of \d+ batches were left out, all one title"):
        history = adapt("simcse", dataclasses.replace(toy, products=products), study, 0, tmp_path, False).history
    assert 0 < len(history) < len(ssl) // 2
    products.loc[ssl, "title"] = "alma mug"
    with (
        pytest.warns(UserWarning, match="all one title"),
        pytest.raises(ValueError, match="no batch has two different titles"),
    ):
        adapt("simcse", dataclasses.replace(toy, products=products), study, 0, tmp_path, False)


def test_titles_without_a_picture_are_left_out_where_pictures_are_needed(toy):
    products = toy.products.copy()
    products.loc[[0, 3], "image_row"] = -1
    some = dataclasses.replace(toy, products=products)
    n = len(toy.part("ssl"))
    assert [len(ssl_pairs(some, pictures, 0)) for pictures in ("none", "own", "shuffled")] == [n, n - 2, n - 2]
    assert (ssl_pairs(some, "shuffled", 0).image_row >= 0).all()


@pytest.mark.parametrize(("n", "size", "batches"), [(10, 3, 3), (9, 3, 3), (2, 32, 1), (33, 32, 1), (64, 32, 2)])
def test_epoch_batches_are_of_one_size_and_take_a_row_at_most_once(n, size, batches):
    generator = torch.Generator().manual_seed(0)
    epochs = [[b.tolist() for b in epoch_batches(n, size, generator)] for _ in range(2)]
    for epoch in epochs:
        rows = [row for batch in epoch for row in batch]
        assert [len(batch) for batch in epoch] == [min(n, size)] * batches
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(range(n))
    if n > 2:
        assert epochs[0] != epochs[1]


# --- seeds


def test_a_seed_gives_the_same_bits_and_each_method_other_ones(toy, study, tmp_path):
    runs = {name: weights(adapt(name, toy, study, 0, tmp_path, progress=False)) for name in ADAPTING}
    for name in ("simcse", "convirt"):
        again = adapt(name, toy, study, 0, tmp_path, progress=False)
        assert torch.equal(weights(again), runs[name])
        assert not torch.equal(weights(adapt(name, toy, study, 1, tmp_path, progress=False)), runs[name])
    for i, one in enumerate(ADAPTING):
        assert not any(torch.equal(runs[one], runs[other]) for other in ADAPTING[i + 1 :])


def test_measuring_leaves_the_random_state(toy, study, tmp_path):
    set_seed(0)
    backbone, tokenizer = load_text(study.text.model)
    towers = Towers(TextTower(backbone, "mean", 16, 2), make_vision(study, tmp_path))
    accelerator = make_accelerator(study.runtime)
    images = ImageSource(toy, towers.vision, accelerator)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    space = measure(towers, tokenizer, toy, study, images, accelerator)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    assert list(space.measure) == ["title alignment", "title uniformity", "title-picture alignment"]
    assert np.isfinite(space.value).all()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]


# --- what it leaves


@pytest.mark.parametrize("method", ["simcse", "convirt"])
def test_loss_falls_and_the_history_is_whole(method, toy, tiny_text, tiny_vision, tmp_path):
    study = toys.study(tiny_text, tiny_vision, adapt={"epochs": 6, "batch_size": 16})
    adapted = adapt(method, toy, study, 0, tmp_path, progress=False)
    history = adapted.history
    assert list(history.columns) == ["step", "epoch", "loss", "seconds"]
    assert list(history.step) == list(range(6 * (60 // 16)))
    by_epoch = history.groupby("epoch").loss.mean()
    assert by_epoch.iloc[-1] < by_epoch.iloc[0] - 0.3
    assert not adapted.backbone.training
    assert set(adapted.space.when) == {"before", "after"}


def test_features_of_a_frozen_tower_are_those_of_its_pixels(toy, tiny_text, tiny_vision, tmp_path):
    study = toys.study(tiny_text, tiny_vision, vision={"frozen": True})
    vision = make_vision(study, tmp_path)
    images = ImageSource(toy, vision, make_accelerator(study.runtime))
    rows = np.array([7, 0, 99])
    torch.testing.assert_close(images[rows], vision.embed(torch.tensor(toy.images[rows])), rtol=1e-4, atol=1e-5)


def state(towers) -> dict[str, torch.Tensor]:
    return {name: weight.detach().cpu().clone() for name, weight in towers.state_dict().items()}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("method", ADAPTING)
def test_the_towers_come_back_as_they_were_left(method, frozen, toy, tiny_text, tiny_vision, tmp_path, monkeypatch):
    study = toys.study(tiny_text, tiny_vision, vision={"frozen": frozen})
    towers = []

    class Seen(Towers):
        def __init__(self, *parts):
            super().__init__(*parts)
            towers.append(self)

    monkeypatch.setattr(stage, "Towers", Seen)
    folder = piece(tmp_path, "encoders", toy.name, method, 0)
    save(adapt(method, toy, study, 0, tmp_path, progress=False), folder)
    back, tokenizer = load_towers(study, tmp_path, toy.name, method, 0)

    left, found = state(towers[0]), state(back)
    left = {name: weight for name, weight in left.items() if not name.startswith("words.")}  # nobody guesses later
    assert left.keys() == found.keys()
    assert all(torch.equal(left[name], found[name]) for name in left)
    assert not back.training
    kept = load_file(folder / "towers.safetensors")
    assert {name.split(".")[0] for name in kept} == (
        {"text"} if METHODS[method].pictures == "none" else {"text", "vision"}
    )
    assert not [name for name in kept if name.startswith("text.backbone.")]
    fresh = state(Seen(TextTower(*load_text(study.text.model)[:1], "mean", 16, 2), make_vision(study, tmp_path)))
    name = "vision.backbone.patch_embed.proj.weight"
    if name in kept:
        assert torch.equal(kept[name], fresh[name]) == frozen
    assert list(tokenizer("alma mug")["input_ids"])


def test_the_towers_of_two_processes_are_kept(toy, study, tmp_path):
    shared = study.model_copy(update={"runtime": RuntimeConfig(device="cpu", processes=2)})
    save(
        adapt("convirt", toy, shared, 0, tmp_path, progress=False), piece(tmp_path, "encoders", toy.name, "convirt", 0)
    )
    towers, _ = load_towers(study, tmp_path, toy.name, "convirt", 0)
    pictures = towers.vision.projection(towers.vision.embed(torch.tensor(toy.images[[0, 1]])))
    fresh = make_vision(study, tmp_path).projection[0].weight
    assert pictures.shape == (2, study.adapt.projection_dim)
    assert not torch.equal(towers.vision.projection[0].weight, fresh)


def test_the_folder_is_still_a_plain_one(toy, study, tmp_path):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModel, pipeline

    adapted = adapt("convirt", toy, study, 0, tmp_path, progress=False)
    save(adapted, tmp_path / "encoder")
    assert torch.equal(
        weights(adapted), torch.cat([p.flatten() for p in AutoModel.from_pretrained(tmp_path / "encoder").parameters()])
    )
    tokens = pipeline("feature-extraction", model=str(tmp_path / "encoder"))("alma mug", return_tensors=True)[0]
    titles = SentenceTransformer(str(tmp_path / "encoder"), device="cpu").encode(["alma mug"])
    assert titles[0] == pytest.approx(tokens.mean(dim=0).numpy(), abs=1e-5)


def test_towers_that_do_not_fit_or_are_not_there(toy, study, tiny_text, tiny_vision, tmp_path):
    folder = piece(tmp_path, "encoders", toy.name, "simcse", 0)
    save(adapt("simcse", toy, study, 0, tmp_path, progress=False), folder)
    wider = toys.study(tiny_text, tiny_vision, adapt={"projection_dim": 24})
    with pytest.raises(ModelError, match=r"towers.safetensors does not fit the study's settings \(.*size mismatch"):
        load_towers(wider, tmp_path, toy.name, "simcse", 0)
    shutil.copytree(folder, piece(tmp_path, "encoders", toy.name, "convirt", 0))  # without a vision tower
    with pytest.raises(ModelError, match=r"vision\.\S+ is not in both"):
        load_towers(study, tmp_path, toy.name, "convirt", 0)
    (folder / "towers.safetensors").write_bytes(b"torn")
    with pytest.raises(ModelError, match="does not fit"):
        load_towers(study, tmp_path, toy.name, "simcse", 0)
    (folder / "towers.safetensors").unlink()
    with pytest.raises(ModelError, match=r"no such file: .*run the adaptation again: .* CONFIG OUT toy simcse 0"):
        load_towers(study, tmp_path, toy.name, "simcse", 0)


# --- what it refuses


@pytest.mark.parametrize("method", ["convirt", "convirt_shuffled"])
def test_a_catalogue_without_pictures_is_refused_by_name(method, toy, study, tmp_path):
    bare = without_pictures(toy)
    with pytest.raises(ValueError, match="toy: the SSL part has 0 titles with a picture"):
        adapt(method, bare, study, 0, tmp_path, progress=False)
    adapt("simcse", bare, study, 0, tmp_path, progress=False)


def test_a_method_that_does_not_adapt_is_refused(toy, study, tmp_path):
    with pytest.raises(ValueError, match="'origin' uses the encoder as it comes"):
        adapt("origin", toy, study, 0, tmp_path)


def test_a_loss_that_is_not_finite_stops(toy, study, tmp_path, monkeypatch):
    broken = Method("broken", lambda towers, batch, config: towers.text(**batch.tokens).sum() * float("nan"))
    monkeypatch.setitem(METHODS, "broken", broken)
    with pytest.raises(FloatingPointError, match=r"broken: loss is nan at step 0; lower adapt\.lr"):
        adapt("broken", toy, study, 0, tmp_path, progress=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="torch sees no GPU"):
        make_accelerator(RuntimeConfig(device="cuda"))
