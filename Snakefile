"""The DAG of one study: which notebook runs on what. `make study` calls it in the run folder, runs/<study>.

A job runs again when its inputs, or its own part of the configuration (`params.digest`), changed.
"""

import shlex
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from icssl_lib.config import TextConfig, load_config
from icssl_lib.methods import METHODS, adapted_by, entry_of, trained_alike
from icssl_lib.runs import ROOT, digest

STUDY_FILE = url2pathname(urlsplit(config["study"]).path)  # a file:// address
STUDY = load_config(STUDY_FILE)
NOTEBOOKS = ROOT / "notebooks"
OUT = Path.cwd()


def quoted(text):
    """For the shell, and for Snakemake, which fills in what stands in braces: a path may hold any character."""
    return shlex.quote(str(text)).replace("{", "{{").replace("}", "}}")


RUN = f"{quoted(sys.executable)} -m icssl_lib.warm run"
WHERE = f"{quoted(f'config={STUDY_FILE}')} {quoted(f'out={OUT}')}"
EXECUTE = f"{RUN} execute {quoted(NOTEBOOKS)}/{{params.notebook}}.ipynb {{output.notebook}} {WHERE}"
PIECE = "dataset={wildcards.dataset} method={wildcards.method} seed={wildcards.seed}"
TRAIN = f"{EXECUTE} {PIECE} --gpus {{resources.gpu}}"
ADAPTED = [m for m in STUDY.methods if m in METHODS and METHODS[m].adapts]  # variants are not looked at on maps
AFTER = "convirt" if "convirt" in ADAPTED else ADAPTED[0] if ADAPTED else None  # what the maps show beside origin
ASKED = {"cost": "figures/cost.csv", "beyond": "figures/compare.csv", "ablations": "figures/ablations.csv"}
PRETRAINED = [t for t, name in (("text", STUDY.text.model), ("vision", STUDY.vision.model)) if name == "pretrained"]


def gpus(wildcards):
    trains = entry_of(STUDY, wildcards.method).classifier != "tfidf" and STUDY.runtime.device != "cpu"
    return STUDY.runtime.processes if trains else 0


def cpus(wildcards):
    return STUDY.runtime.processes * STUDY.runtime.threads


def source_files(wildcards):
    source = STUDY.datasets[wildcards.dataset]
    fetched = [f"catalogues/{wildcards.dataset}/fetched.json"] if source.source == "amazon" else []
    return [str(source.table)] if source.source == "table" else fetched


def metadata_file(wildcards):
    source = STUDY.datasets[wildcards.dataset]
    return [] if source.remote or not Path(source.meta).is_file() else [source.meta]  # `fetch` says what is missing


def pieces(kind, suffix, methods=STUDY.methods):
    return expand(kind + "/{d}/{m}/seed{k}" + suffix, d=STUDY.datasets, m=methods, k=STUDY.seeds)


def towers_read(wildcards):
    """What a classifier starts from: the encoder that a method adapted, or the study's; the vision tower."""
    made_by, entry = adapted_by(STUDY, wildcards.method), entry_of(STUDY, wildcards.method)
    text, vision = not made_by and entry.classifier != "image", entry.looks
    adapted = [f"encoders/{wildcards.dataset}/{made_by}/seed{wildcards.seed}/config.json"] if made_by else []
    return adapted + [f"pretrained/{t}/config.json" for t in PRETRAINED if (text if t == "text" else vision)]


def trained_first(wildcards):
    """Records of the methods whose trainings this one's classifier takes over: it waits for them."""
    makers = {users[0] for users in trained_alike(STUDY, wildcards.method).values()} - {wildcards.method}
    return expand(f"records/{wildcards.dataset}/{{m}}/seed{wildcards.seed}.json", m=sorted(makers))


def pretrain_digest(wildcards):
    tokens = STUDY.text.max_tokens  # added later: where it is the default, what was made before stays
    more = [tokens] if wildcards.tower == "text" and tokens != TextConfig().max_tokens else []
    return digest(STUDY.pretrain, STUDY.vision.image_size, *more)


def finetune_digest(wildcards):
    own, entry = STUDY.of(wildcards.method), entry_of(STUDY, wildcards.method)
    return digest(own.text, own.finetune, own.runtime, *([own.vision] if entry.looks else []), *entry.recipe)


def adapt_digest(wildcards):
    own = STUDY.of(wildcards.method)
    return digest(own.text, own.vision, own.adapt, own.runtime)


def towers_of(wildcards):
    towers = PRETRAINED if entry_of(STUDY, wildcards.method).pictures != "none" else [t for t in PRETRAINED if t == "text"]
    return expand("pretrained/{tower}/config.json", tower=towers)


wildcard_constraints:
    dataset="|".join(STUDY.datasets),
    method="|".join(STUDY.methods),
    seed=r"\d+",
    tower="text|vision",


rule all:
    input:
        "report/index.html",


rule pretrain:
    output:
        weights="pretrained/{tower}/config.json",
        notebook="notebooks/00_pretrain-{tower}.ipynb",
    params:
        notebook="00_pretrain",
        digest=pretrain_digest,
    priority: 100
    log: "logs/00_pretrain-{tower}.log",
    shell: f"{EXECUTE} tower={{wildcards.tower}} > {{log}} 2>&1"


rule fetch:
    input:
        metadata_file,
    output:
        "catalogues/{dataset}/fetched.json",
    params:
        digest=lambda w: digest(STUDY.datasets[w.dataset]),
    priority: 95
    log: "logs/fetch-{dataset}.log",
    shell: f"{RUN} fetch {quoted(STUDY_FILE)} --dataset {{wildcards.dataset}} --out {quoted(OUT)} > {{log}} 2>&1"


rule catalogue:
    input:
        source_files,
    output:
        catalogue="catalogues/{dataset}/catalogue.json",
        notebook="notebooks/01_catalogue-{dataset}.ipynb",
    params:
        notebook="01_catalogue",
        digest=lambda w: digest(STUDY.datasets[w.dataset], STUDY.vision.image_size, STUDY.split_seed),
    priority: 90
    log: "logs/01_catalogue-{dataset}.log",
    shell: f"{EXECUTE} dataset={{wildcards.dataset}} > {{log}} 2>&1"


rule adapt:
    input:
        "catalogues/{dataset}/catalogue.json",
        towers_of,
    output:
        encoder="encoders/{dataset}/{method}/seed{seed}/config.json",
        towers="encoders/{dataset}/{method}/seed{seed}/towers.safetensors",
        notebook="notebooks/02_adapt-{dataset}-{method}-seed{seed}.ipynb",
    params:
        notebook="02_adapt",
        digest=adapt_digest,
    priority: lambda w: 80 if entry_of(STUDY, w.method).pictures != "none" else 70
    resources:
        gpu=gpus,
        cpus_per_task=cpus,
    log: "logs/02_adapt-{dataset}-{method}-seed{seed}.log",
    shell: f"{TRAIN} > {{log}} 2>&1"


rule finetune:
    input:
        "catalogues/{dataset}/catalogue.json",
        towers_read,
        trained_first,
    output:
        record="records/{dataset}/{method}/seed{seed}.json",
        predictions="predictions/{dataset}/{method}/seed{seed}.parquet",
        notebook="notebooks/03_finetune-{dataset}-{method}-seed{seed}.ipynb",
    params:
        notebook="03_finetune",
        digest=finetune_digest,
    priority: lambda w: 60 - STUDY.seeds.index(int(w.seed)) / 100  # a whole seed first, then the next
    resources:
        gpu=gpus,
        cpus_per_task=cpus,
    log: "logs/03_finetune-{dataset}-{method}-seed{seed}.log",
    shell: f"{TRAIN} > {{log}} 2>&1"


rule results:
    input:
        pieces("records", ".json"),
    output:
        "results.csv",
    log: "logs/results.log",
    shell: f"{RUN} collect {quoted(STUDY_FILE)} {quoted(OUT)} > {{log}} 2>&1"


rule table2:
    input:
        "results.csv",
        pieces("predictions", ".parquet"),
    output:
        table="figures/table2.csv",
        notebook="notebooks/04_table2.ipynb",
    params:
        notebook="04_table2",
    log: "logs/04_table2.log",
    shell: f"{EXECUTE} > {{log}} 2>&1"


rule figure5:
    input:
        "results.csv",
    output:
        figure="figures/figure5.csv",
        notebook="notebooks/05_figure5.ipynb",
    params:
        notebook="05_figure5",
    log: "logs/05_figure5.log",
    shell: f"{EXECUTE} > {{log}} 2>&1"


rule explore:
    input:
        "catalogues/{dataset}/catalogue.json",
        lambda w: expand(f"encoders/{w.dataset}/{{m}}/seed{{k}}/config.json", m=ADAPTED, k=STUDY.seeds),
        lambda w: expand(f"predictions/{w.dataset}/{{m}}/seed{STUDY.seeds[0]}.parquet", m=["origin", AFTER]),
    output:
        map="report/map-{dataset}.html",
        figure="figures/{dataset}_maps.png",
        notebook="notebooks/explore_embeddings-{dataset}.ipynb",
    params:
        notebook="explore_embeddings",
    priority: 65  # before the other classifiers: half a minute each, at the end one core would wait for another's map
    log: "logs/explore_embeddings-{dataset}.log",
    shell: f"{EXECUTE} dataset={{wildcards.dataset}} after={AFTER} seed={STUDY.seeds[0]} > {{log}} 2>&1"


rule cost:
    input:
        "figures/table2.csv",
        "figures/figure5.csv",
        expand("report/map-{d}.html", d=STUDY.datasets) if ADAPTED else [],
        [ASKED[name] for name in STUDY.notebooks if name != "cost"],
    output:
        table="figures/cost.csv",
        exports="figures/onnx.csv",
        figure="figures/accuracy_cost.png",
        notebook="notebooks/06_cost.ipynb",
    params:
        notebook="06_cost",
    threads: config.get("cores", 1)  # alone, so that no other job disturbs its times; on a cluster it cannot ask for that
    log: "logs/06_cost.log",
    shell: f"{EXECUTE} > {{log}} 2>&1"


rule beyond:
    input:
        "results.csv",
        pieces("predictions", ".parquet"),
    output:
        table="figures/compare.csv",
        figure="figures/factor.csv",
        notebook="notebooks/07_beyond.ipynb",
    params:
        notebook="07_beyond",
    log: "logs/07_beyond.log",
    shell: f"{EXECUTE} > {{log}} 2>&1"


rule ablations:
    input:
        "results.csv",
        pieces("predictions", ".parquet"),
    output:
        table="figures/ablations.csv",
        notebook="notebooks/08_ablations.ipynb",
    params:
        notebook="08_ablations",
    log: "logs/08_ablations.log",
    shell: f"{EXECUTE} > {{log}} 2>&1"


rule report:
    input:
        "figures/table2.csv",
        "figures/figure5.csv",
        [ASKED[name] for name in STUDY.notebooks],
        expand("report/map-{d}.html", d=STUDY.datasets) if ADAPTED else [],
    output:
        "report/index.html",
    log: "logs/report.log",
    shell: f"{RUN} report {quoted(STUDY_FILE)} {quoted(OUT)} > {{log}} 2>&1"
