"""What a study is said to cost before it runs, against hand counts and what then really runs."""

import pandas as pd
import plan as planning
import pytest
import torch
import toys
from plan import products_of, show, step_cost, trainings_of
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoConfig, BertConfig

from icssl_lib.adapt import adapt
from icssl_lib.catalogue import PARTS, ingest
from icssl_lib.classify import classify
from icssl_lib.config import Run, Study, Variant, load_config
from icssl_lib.finetune import Start
from icssl_lib.sources.raw import CatalogueError
from icssl_lib.sources.synthetic.pretrain import loadable


@pytest.mark.parametrize("method", ["simcse", "convirt", "mlm_simcse", "tfidf"])
def test_steps_are_those_that_training_takes(toy, tiny_text, tiny_vision, method):
    methods = ["origin", "simcse", "convirt"]
    study = toys.study(
        tiny_text, tiny_vision, adapt={"epochs": 2, "mask_duplicates": False}, finetune={"min_steps": 9}
    ).model_copy(update={"methods": [*methods, *({method} - set(methods))]})
    jobs = pd.DataFrame(trainings_of(study, toy.products), columns=["stage", "method", "kind", "steps"])
    planned = jobs[jobs.method == method].groupby("stage", sort=False).steps.sum().to_dict()
    taken = []
    hook = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    try:
        if "adapt" in planned:
            history = adapt(Run("toy", method, 0), toy, study, progress=False).history
            assert planned["adapt"] == len(history) == len(taken)
            taken.clear()
        for fraction in study.finetune.fractions:
            classify(Run("toy", method, 0), fraction, toy, study, Start(str(tiny_text), study.vision))
    finally:
        hook.remove()
    assert planned["finetune"] == len(taken)
    assert (len(taken) == 0) == (method == "tfidf")


def test_a_variant_is_planned_and_frozen_features_take_no_steps(toy, tiny_text, tiny_vision):
    study = toys.study(tiny_text, tiny_vision, finetune={"features": ["title"]}).model_copy(
        update={"methods": ["origin", "half"], "variants": {"half": Variant(of="convirt", adapt={"alpha": 0.5})}}
    )
    jobs = trainings_of(study, toy.products)
    assert [row[:2] for row in jobs if row[3]] == [("adapt", "half")]
    assert step_cost(study, "half", ["mug 1"] * 8)[0] > 0


def test_flops_of_a_toy_are_a_hand_count(tiny_text, tiny_vision):
    study, titles = toys.study(tiny_text, tiny_vision), ["mug 1 lamp 2 rug"] * 8
    tokens, patches = 7, (toys.SIZE // 16) ** 2

    def block(n: int, width: int, hidden: int) -> int:
        projections, mlp = 4 * width * width, 2 * width * hidden
        return 2 * n * (projections + mlp) + 2 * 2 * n * n * width  # and queries with keys, weights with values

    text = 3 * block(tokens, 32, 64)  # training is three times forward; of pixels nobody needs a gradient
    image = 2 * 2 * patches * 3 * 16 * 16 * 32 + 3 * block(patches + 1, 32, 128)
    for kind, row in {"convirt": text + image, "simcse": 2 * text}.items():
        flops, seconds = step_cost(study, kind, titles)
        assert flops == pytest.approx(8 * row, rel=0.1), kind  # heads are small
        assert 0 < seconds < 1
    assert step_cost(study, "finetune", titles)[0] == pytest.approx(8 * text, rel=0.1)


def test_data_are_counted_as_ingest_will_leave_them_and_must_be_there(tmp_path):
    genre = {"source": "synthetic", "genre": "beauty", "products": 120, "classes": 4}
    absent = {"source": "amazon", "vintage": 2014, "meta": "absent/meta.json.gz", "folder": "absent"}
    study = Study.model_validate({"study": "s", "datasets": {"beauty": genre, "toys": absent}, "pretrain": {}})
    before = products_of("beauty", study, tmp_path)
    made = ingest("beauty", study.datasets["beauty"], 16, 0, tmp_path / "catalogues/beauty", progress=False)
    for products in (before, products_of("beauty", study, tmp_path)):
        assert products.part.value_counts().to_dict() == {part: len(made.part(part)) for part in PARTS}
        assert (products.image_row >= 0).all()
        assert products.label.nunique() == len(made.labels)
    with pytest.raises(CatalogueError, match="no such metadata file"):  # and the paper has no such genre
        products_of("toys", study, tmp_path)


def test_the_paper_is_planned_without_network_data_or_gpu(root, tiny_text, tiny_vision, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    paper = load_config(root / "config/paper.yaml")
    made = loadable(paper, tmp_path)
    assert AutoConfig.from_pretrained(made.text.model).hidden_size == BertConfig().hidden_size
    assert (made.vision.model, made.vision.random) == ("vit_large_patch16_224", True)
    toy = toys.study(tiny_text, tiny_vision)
    small = paper.model_copy(update={"text": toy.text, "vision": toy.vision, "methods": ["origin", "convirt"]})
    table = planning.plan(small, tmp_path, 2)
    assert "call `make plan` where there is a GPU" in show(table)
    steps, flops, hours = (table.set_index(["stage", "method"])[name] for name in ("steps", "flops", "hours"))
    assert steps["adapt", "convirt"] == 3 * 50 * sum(n // 2 // 32 for n in (200_907, 199_757, 107_947))
    assert flops.loc["adapt"].min() > 0
    assert hours.loc["adapt"].isna().all()


def test_plan_of_the_smoke_study(root, tmp_path):
    one, many = (planning.plan(load_config(root / "config/smoke.yaml"), tmp_path, cores) for cores in (1, 99))
    jobs = one.set_index(["stage", "method"]).jobs
    assert (jobs["pretrain", "vision"], jobs["adapt", "convirt"], jobs["finetune", "tfidf"]) == (1, 1, 1)
    assert one.attrs["hours"] == pytest.approx(one.hours.sum())
    # The longest chain: pretrain, catalogue, adapt, fine-tune, report
    assert 5 * planning.JOB / 3600 < many.attrs["hours"] < one.attrs["hours"]
    assert "hours from start to end" in show(many)
    assert not list(tmp_path.iterdir())  # nothing ran
