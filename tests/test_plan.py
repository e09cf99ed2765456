"""What a study is said to cost before it runs, against hand counts, Snakemake's DAG, and what then really runs."""

import json
import re
import subprocess
import sys
import time

import pandas as pd
import pytest
import torch
import toys
from profile_study import at_most
from test_amazon import line
from torch.optim.optimizer import register_optimizer_step_post_hook

from icssl_lib import plan as planning
from icssl_lib import pretrain, runs
from icssl_lib.adapt import adapt
from icssl_lib.catalogue import Report
from icssl_lib.config import Study, load_config
from icssl_lib.finetune import classify
from icssl_lib.plan import Data, Job, PlanError, adapt_steps, costs, data_of, finetune_steps, jobs_of, measure, wall
from icssl_lib.sources.amazon import LOG, picture_path, read_products

PAPER = {
    "study": "big",
    "datasets": {
        genre: {"source": "amazon", "vintage": 2014, "meta": f"absent/{genre}.json.gz", "folder": "absent"}
        for genre in ("automotive", "beauty", "electronics")
    },
    "text": {"model": "bert-base-uncased"},
    "vision": {"model": "vit_large_patch16_224"},
    "methods": ["origin", "simcse", "convirt"],
    "runtime": {"precision": "bf16"},
}


def toy_data(catalogue, tokens: float = 5.0) -> Data:
    """The size of the toy catalogue."""
    parts = {part: len(catalogue.part(part)) for part in ("ssl", "train", "dev", "test")}
    shown = int((catalogue.part("ssl").image_row >= 0).sum())
    classes = len(catalogue.labels)
    return Data(**parts, pairs=shown, pictures=120, classes=classes, tokens=tokens, longest=tokens, origin="")


def test_flops_of_a_toy_are_a_hand_count(tiny_text, tiny_vision):
    study, tokens = toys.study(tiny_text, tiny_vision), 7

    def block(n: int, width: int, hidden: int) -> int:
        projections, mlp = 4 * width * width, 2 * width * hidden
        return 2 * n * (projections + mlp) + 2 * 2 * n * n * width  # and queries with keys, weights with values

    found = costs(study, tokens)
    pooler = 2 * 32 * 32
    assert found["text"].flops == block(tokens, 32, 64) + pooler
    patches = (toys.SIZE // 16) ** 2
    assert found["vision"].flops == 2 * patches * 3 * 16 * 16 * 32 + block(patches + 1, 32, 128)
    assert found["text"].saved > 4 * tokens * 32  # at least what the first layer read
    longer = costs(study, 2 * tokens)["text"]
    assert 2 * found["text"].saved < longer.saved < 4 * found["text"].saved


def test_weights_are_those_of_the_real_models(tiny_text, tiny_vision, tmp_path):
    study = toys.study(tiny_text, tiny_vision)
    real = planning.make_backbone(study, "text")
    assert costs(study, 4)["text"].params == sum(p.numel() for p in real.parameters())
    small = {"titles": 60, "vocab_size": 200, "hidden_size": 32, "layers": 2, "heads": 2, "text_epochs": 1}
    small |= {"pictures": 64, "vision_size": 32, "vision_layers": 2, "vision_epochs": 1}
    genre = {"source": "synthetic", "genre": "beauty", "products": 100, "classes": 4}
    raw = {"study": "tiny", "datasets": {"toy": genre}, "pretrain": small, "vision": {"image_size": 32}}
    study = Study.model_validate(raw)
    pretrain.pretrain_text(study, tmp_path / "text", progress=False)
    pretrain.pretrain_vision(study, tmp_path / "vision", progress=False)
    found = costs(study, 4)
    from icssl_lib.encoders import load_text, load_vision

    backbone, tokenizer = load_text(str(tmp_path / "text"))
    fewer = (200 - len(tokenizer)) * 32  # words that the titles did not yield
    assert found["text"].params == sum(p.numel() for p in backbone.parameters()) + fewer
    vision = load_vision(study.vision.model_copy(update={"model": f"local-dir:{tmp_path / 'vision'}"}))
    assert found["vision"].params == sum(p.numel() for p in vision.parameters())


def test_steps_are_those_that_training_takes(toy, tiny_text, tiny_vision, tmp_path):
    study = toys.study(tiny_text, tiny_vision, adapt={"epochs": 2, "mask_duplicates": False}, finetune={"min_steps": 9})
    data = toy_data(toy)
    history = adapt("convirt", toy, study, 0, tmp_path, progress=False).history
    assert adapt_steps(study, data.pairs) == (len(history), 8)
    taken = []
    hook = register_optimizer_step_post_hook(lambda *_: taken.append(1))
    try:
        for fraction in study.finetune.fractions:
            classify("origin", str(tiny_text), toy, study, fraction, 0)
    finally:
        hook.remove()
    assert sum(finetune_steps(study, data.train)) == len(taken) > 9
    assert adapt_steps(study.model_copy(update={"runtime": study.runtime.model_copy(update={"processes": 3})}), 60) == (
        2 * (60 // 6),
        6,
    )


def test_the_dag_is_snakemakes(root, tmp_path):
    config = root / "config/quick.yaml"
    study = load_config(config)
    table = planning.plan(study, tmp_path, 2, measured=False)
    stages = pd.DataFrame(table["stages"])
    command = runs.snakemake(config, tmp_path, "--dry-run", "--quiet", "rules")
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rules = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE))
    for stage in ("pretrain", "catalogue", "adapt", "finetune", "explore"):
        assert stages.jobs[stages.stage == stage].sum() == int(rules[stage]), stage
    assert table["total"]["jobs"] == int(rules["total"]) - 1  # the target `all`
    steps = stages.set_index(["stage", "method"]).steps
    assert steps["adapt", "convirt"] == 3 * 6 * sum(n // 2 // 32 for n in (4000, 4000, 2160))
    assert table["total"]["hours"] is None
    assert stages.hours.isna().all()
    shown = planning.show(table)
    assert "Hours: measure them where" in shown
    assert re.search(r"^ *total +75 ", shown, re.MULTILINE)


def test_paper_scale_without_network(tmp_path):
    study = Study.model_validate(PAPER)
    table = planning.plan(study, tmp_path, 8, hardware="h100", measured=False)
    stages = pd.DataFrame(table["stages"]).set_index(["stage", "method"])
    pairs = [n // 2 for n in (200_907, 199_757, 107_947)]
    assert stages.steps["adapt", "convirt"] == 3 * 50 * sum(n // 32 for n in pairs)
    # 6 x weights x patches, and attention: 303 million weights of ViT-L/16, 197 tokens, 24 blocks of width 1,024
    vision = 6 * 302.3e6 * 197 + 3 * 24 * 4 * 197**2 * 1024
    items = stages["items"]["adapt", "convirt"]
    assert vision < stages.flops["adapt", "convirt"] / items < 1.2 * vision
    assert 6 < stages.memory_gb["adapt", "convirt"] < 40
    assert stages.disk_gb["catalogue", ""] == pytest.approx(sum((200_907, 199_757, 107_947)) * 224**2 * 3 / 1e9)
    rate = 0.3 * 989e12
    assert stages.hours["adapt", "convirt"] == pytest.approx(stages.flops["adapt", "convirt"] / rate / 3600, rel=0.01)
    assert table["total"]["wall_hours"] < table["total"]["hours"] / 4
    assert "paper's Table 1" in planning.show(table)
    if not torch.cuda.is_available():
        study = Study.model_validate(PAPER | {"runtime": {"device": "cuda"}})
        table = planning.plan(study, tmp_path, 8)
        assert table["total"]["hours"] is None
        assert "No hours: runtime.device: cuda, but torch sees no GPU" in planning.show(table)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": {"model": "nobody/no-such-model"}}, r"need the config\.json of 'nobody/no-such-model'"),
        ({"vision": {"model": "vit_larg_patch16_224"}}, r"did you mean 'vit_large_patch16_224"),
        ({"datasets": {"toys": PAPER["datasets"]["beauty"]}}, r"datasets\.toys: absent/beauty.* fetch it first"),
    ],
)
def test_what_cannot_be_planned_is_said(change, message, tmp_path):
    with pytest.raises(PlanError, match=message):
        planning.plan(Study.model_validate(PAPER | change), tmp_path, 1, measured=False)


AFTER_A_BACKWARD_PASS = """
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from icssl_lib.plan import in_parallel

def slope(x):
    at = torch.tensor([x], requires_grad=True)
    torch.square(at).backward()
    return at.grad.item()

if __name__ == "__main__":
    with FakeTensorMode():  # as an export does: from here on a backward pass starts threads
        torch.ones(1)
    print([slope(3.0), *in_parallel(1, slope, 3.0)])
"""


def test_steps_are_timed_also_where_autograd_has_threads_that_a_fork_lacks(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(AFTER_A_BACKWARD_PASS)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[6.0, 6.0]", done.stderr


def test_calibrated_seconds_are_those_of_real_calls(toy, tiny_text, tiny_vision, tmp_path):
    def study(epochs: int) -> Study:
        return toys.study(tiny_text, tiny_vision, adapt={"epochs": epochs}, finetune={"epochs": epochs})

    def real(call, steps) -> float:
        """Seconds of CPU of a step: what a longer training takes beyond a shorter one."""
        took = []
        for epochs in (1, 31):
            began = time.process_time()
            call(study(epochs))
            took.append(time.process_time() - began)
        return (took[1] - took[0]) / (steps(study(31)) - steps(study(1)))

    data = {"toy": toy_data(toy)}
    jobs = jobs_of(study(1), data, lambda tokens: costs(study(1), tokens), 0.001)
    speed = measure(study(1), data, jobs, cores=1, total=3)
    assert set(speed.step) == {"simcse", "convirt", "finetune"}
    assert min(speed.forward.values()) > 0
    adapted = real(
        lambda s: adapt("convirt", toy, s, 0, tmp_path, progress=False), lambda s: adapt_steps(s, data["toy"].pairs)[0]
    )
    assert adapted / 3 < speed.step["convirt"] < 3 * adapted
    tuned = real(
        lambda s: classify("origin", str(tiny_text), toy, s, 1.0, 0), lambda s: finetune_steps(s, data["toy"].train)[-1]
    )
    assert tuned / 3 < speed.step["finetune"] < 3 * tuned


def test_wall_is_the_longest_way_through_the_dag():
    jobs = [Job("a", "", after=[]), Job("b", "", after=[0]), Job("b", "", after=[0]), Job("c", "", after=[1, 2])]
    assert wall(jobs, [5, 3, 4, 1], devices=1) == 13
    assert wall(jobs, [5, 3, 4, 1], devices=2) == 10
    assert wall(jobs, [5, 3, 4, 1], devices=9) == 10


def test_a_studys_jobs_on_more_cores_take_at_most():
    seconds = {"pretrain": [10.0, 4.0], "finetune": [3.0, 5.0, 4.0], "cost": [7.0], "all": [0.0]}
    assert at_most(seconds, 1) == 26 + 7
    assert at_most(seconds, 2) == 26 / 2 + (10 + 5 + 5) / 2 + 7
    # One after the other on one core; pretraining beside it on the second; never less than the longest chain.
    assert at_most(seconds, 100) == pytest.approx(10 + 5 + 5 + 7, abs=0.1)
    schedule = [Job("", "", after=[]), Job("", "", after=[])] + [Job("", "", after=[0])] * 3
    for cores in (1, 2, 3, 4):
        real = wall(schedule, [10.0, 4.0, 3.0, 5.0, 4.0], cores)
        assert real + 7 <= at_most(seconds, cores) + 1e-9, cores


def test_ingested_catalogue_is_counted_exactly(tmp_path):
    from icssl_lib.catalogue import ingest

    genre = {"source": "synthetic", "genre": "beauty", "products": 120, "classes": 4}
    raw = {"study": "tiny", "datasets": {"toy": genre}, "pretrain": {}, "vision": {"image_size": 16}}
    study = Study.model_validate(raw)
    before = data_of("toy", study, tmp_path)
    ingested = ingest("toy", study.datasets["toy"], 16, 0, tmp_path / "catalogues/toy", progress=False)
    after = data_of("toy", study, tmp_path)
    for data in (before, after):
        assert [getattr(data, part) for part in ("ssl", "train", "dev", "test")] == [
            len(ingested.part(part)) for part in ("ssl", "train", "dev", "test")
        ]
        assert (data.pictures, data.pairs, data.classes) == (120, data.ssl, len(ingested.labels))
    assert before.tokens == after.tokens > 5


def test_plan_of_the_smoke_study_is_saved_and_runs_nothing(root, tmp_path, capsys):
    out, saved, config = tmp_path / "out", tmp_path / "deep/plan.json", str(root / "config/smoke.yaml")
    arguments = ["--out", str(out), "--no-measure", "--hardware", "t4", "--cores", "2", "--json", str(saved)]
    assert runs.main(["plan", config, *arguments]) == 0
    plan = json.loads(saved.read_text())
    assert plan["total"]["hours"] > plan["total"]["wall_hours"] > plan["total"]["hours"] / 2
    stages = {(row["stage"], row["method"]): row["jobs"] for row in plan["stages"]}
    assert len(stages) == 2 + 1 + 3 + 6 + 1 + 1
    assert (stages["pretrain", "vision"], stages["adapt", "simcse"], stages["finetune", "tfidf"]) == (1, 2, 2)
    said = capsys.readouterr().out
    assert f"{plan['total']['jobs'] + 1} jobs are left to run" in said
    assert "Snakemake" not in said
    assert not list(out.rglob("*.ipynb"))


def test_unknown_hardware_gives_the_nearest(root, tmp_path, capsys):
    config = str(root / "config/smoke.yaml")
    assert runs.main(["plan", config, "--hardware", "h1000", "--out", str(tmp_path), "--no-measure"]) == 1
    assert "--hardware: no 'h1000'; did you mean 'h100'?" in capsys.readouterr().err


def amazon_study(folder, **keys) -> Study:
    """A dataset with no name of the paper's: 40 mugs, 12 rugs, 3 vases, and 8 lamps that name no picture."""
    products = [("mug", i, f"http://a.example/{i}.jpg") for i in range(40)]
    products += [("rug", i, f"http://a.example/{100 + i // 2}.jpg") for i in range(12)]  # two share one picture
    products += [("vase", i, f"http://a.example/{200 + i}.jpg") for i in range(3)]
    products += [("lamp", i, None) for i in range(8)]
    lines = [line(2023, f"{k}{i}", f"{k} number {i}", ("Home", k), url) for k, i, url in products]
    lines.append(line(2023, "mug0", "mug number 0, again", ("Home", "mug"), "http://a.example/999.jpg"))
    folder.mkdir(exist_ok=True)
    (folder / "meta.jsonl").write_text("\n".join(lines))
    source = {"source": "amazon", "vintage": 2023, "meta": str(folder / "meta.jsonl"), "folder": folder}
    return Study.model_validate(PAPER | {"datasets": {"toys": source | keys}})


def size(data: Data) -> tuple[int, int]:
    """Products and pictures."""
    return data.ssl + data.train + data.dev + data.test, data.pictures


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, (55, 49)),
        ({"min_class_size": 4}, (52, 46)),
        ({"missing_image": "keep"}, (63, 49)),
        ({"missing_image": "keep", "min_class_size": 10}, (52, 46)),
    ],
)
def test_amazon_is_counted_by_its_metadata_before_any_picture_is_fetched(tmp_path, keys, expected):
    study = amazon_study(tmp_path / "data", **keys)
    data = data_of("toys", study, tmp_path)
    assert size(data) == expected
    lost = "their products are kept" if "missing_image" in keys else "products without one are dropped"
    assert data.origin.endswith(f"; pictures not fetched yet: {expected[1]}, of which some may be gone ({lost})")
    assert (data.pairs == data.ssl) == (expected[0] < 60)  # lamps have no picture
    assert data.sample is None


def test_amazon_is_counted_where_its_metadata_are_fetched_to(tmp_path):
    study = amazon_study(tmp_path / "data", meta="https://a.example/meta_Toys.jsonl")
    with pytest.raises(PlanError, match=r"toys: https://a\.example/meta_Toys\.jsonl is not there .* fetch it first"):
        data_of("toys", study, tmp_path)
    (tmp_path / "data/meta.jsonl").rename(tmp_path / "data/2023-meta_Toys.jsonl")
    study = study.model_copy(update={"methods": ["origin"]})
    table = planning.plan(study, tmp_path, 1, measured=False)
    assert "toys: 55 products, 49 pictures, " in planning.show(table)


@pytest.mark.parametrize(("missing_image", "expected"), [("drop", (51, 46)), ("keep", (63, 46))])
def test_what_became_of_fetched_pictures_is_counted(tmp_path, missing_image, expected):
    """Gone for good: products with them are dropped; refused: asked again, so it may come."""
    study = amazon_study(tmp_path / "data", missing_image=missing_image)
    urls = [product.url for product in read_products("toys", study.datasets["toys"], Report()) if product.url]
    status = dict.fromkeys(urls, "ok") | {urls[1]: "gone", urls[2]: "corrupt", urls[40]: "gone", urls[5]: "refused"}
    entries = [json.dumps({"path": picture_path(url), "status": s}) + "\n" for url, s in status.items()]
    (tmp_path / "data" / LOG).write_text("".join(entries))
    data = data_of("toys", study, tmp_path)
    assert size(data) == expected
    assert "; pictures not fetched yet: 1, of which" in data.origin
    (tmp_path / "data" / LOG).write_text("".join(entries).replace("refused", "ok"))
    assert data_of("toys", study, tmp_path).origin == "by its metadata, before cleaning"


@pytest.mark.parametrize(("unlabelled", "expected"), [("ssl", (50, 30, 10, 10)), ("drop", (25, 15, 5, 5))])
def test_products_without_a_label_are_counted_where_they_will_be(tmp_path, unlabelled, expected):
    rows = [[f"Lamp {i}", "" if i % 2 else f"class {i % 4}"] for i in range(100)]
    pd.DataFrame(rows, columns=["title", "label"]).to_csv(tmp_path / "shop.csv", index=False)
    source = {"source": "table", "table": tmp_path / "shop.csv", "image": None, "unlabelled": unlabelled}
    study = Study.model_validate(PAPER | {"datasets": {"shop": source}, "methods": ["origin", "simcse"]})
    data = data_of("shop", study, tmp_path)
    assert (data.ssl, data.train, data.dev, data.test, data.classes) == (*expected, 2)
