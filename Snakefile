"""The DAG of one study: which notebook runs on what. `make study` calls it in the run folder, runs/<study>.

A job runs again when its inputs, or its own part of the configuration (`params.digest`), changed.
"""

import shlex
import sys
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

from icssl_lib.config import load_config
from icssl_lib.dag import ROOT
from icssl_lib.methods import METHODS, adapted_by, entry_of
from icssl_lib.runs import collect, digest

STUDY_FILE = url2pathname(urlsplit(config["study"]).path)  # a file:// address
STUDY = load_config(STUDY_FILE)
ADAPTED = [m for m in STUDY.methods if m in METHODS and METHODS[m].adapts]  # variants are not looked at on maps
AFTER = "convirt" if "convirt" in ADAPTED else ADAPTED[0] if ADAPTED else None  # what the maps show beside origin
MAPS = expand("report/map-{dataset}.html", dataset=STUDY.datasets) if ADAPTED and STUDY.maps else []
SEED = "-seed{seed}" if STUDY.runtime.job_per == "seed" else ""  # a job of a method has all seeds inside, or its own


def drawn(*names, kinds=("csv", "png")):
    return [f"figures/{name}.{kind}" for name in names for kind in kinds]


PAPER = {"kinds": ("csv", "png", "svg")}  # the paper's figures stay as drawings too
SIZES = [f"{name}_class_sizes" for name in STUDY.datasets]
SHARED = any(METHODS[m].pictures != "none" for m in ADAPTED)  # a space of titles and pictures, whose recall is measured


WHOLE = {  # notebooks about the whole study, and what they leave
    "table2": (
        "04_table2",
        [*drawn("table2", "differences", kinds=["csv"]), *drawn("accuracy", "label_efficiency", **PAPER)],
    ),
    "figure5": ("05_figure5", drawn("figure5", *SIZES, **PAPER)),
    "beyond": (
        "07_beyond",
        [*drawn("compare", "factor", "share_kept", "unseen", kinds=["csv"]), *drawn("gain_by_size")],
    ),
    "ablations": ("08_ablations", [*drawn("ablations", kinds=["csv"]), *drawn("ablation_grid")]),
    "law": ("09_law", drawn("law", "ladder")),
    "cost": ("06_cost", [*drawn("cost", "onnx", kinds=["csv"]), *drawn("accuracy_cost")]),
}
ASKED = ["table2", "figure5", *STUDY.notebooks]

if Path("results.csv").is_file():  # whatever became of it, it says what the records say
    with suppress(FileNotFoundError):  # of a record that is still to be made
        collect(STUDY, Path())


def quoted(text):
    """For the shell, and for Snakemake, which fills in what stands in braces: a path may hold any character."""
    return shlex.quote(str(text)).replace("{", "{{").replace("}", "}}")


PYTHON = f"{quoted(sys.executable)} -m"
LOGGED = "> {log} 2>&1"
TRAINED = "dataset={wildcards.dataset} method={wildcards.method} {params.seeds} --gpus {resources.gpu}"


def execute(notebook, more=""):
    """The command of a notebook; ``more``: parameters, beside the study and its run folder."""
    where = f"{quoted(f'config={STUDY_FILE}')} {quoted(f'out={Path.cwd()}')}"
    path = f"{quoted(ROOT / 'notebooks')}/{notebook}.ipynb"
    return f"{PYTHON} icssl_lib.runs execute {path} {{output.notebook}} {where} {more} {LOGGED}"


def all_runs(pattern):
    return expand(pattern, dataset=STUDY.datasets, method=STUDY.methods, seed=STUDY.seeds)


def of_job(pattern):
    """The files of a job: with its own seed, or with each of the study's."""
    return pattern if SEED else expand(pattern, seed=STUDY.seeds, allow_missing=True)


def seeds(wildcards):
    return quoted(f"seeds=[{wildcards.seed}]" if SEED else f"seeds={STUDY.seeds}")


def gpus(wildcards):
    entry = entry_of(STUDY, wildcards.method)
    return STUDY.runtime.processes if STUDY.runtime.device != "cpu" and (entry.reads_encoder or entry.uses_images) else 0


def kept(method):
    """The percentages of Train whose classifiers a method keeps."""
    own, kind = STUDY.of(method).finetune, entry_of(STUDY, method).classifier
    able = kind == "recommended" or (kind == "finetune" and not own.features)
    return [f"{100 * f:03g}" for f in own.fractions if able and f in own.keep_classifiers]


def source_files(wildcards):
    source = STUDY.datasets[wildcards.dataset]
    if source.source == "amazon":
        return f"catalogues/{wildcards.dataset}/fetched.json"
    tables = [source.table, *([source.labels.table] if source.labels else [])] if source.source == "table" else []
    return list(map(str, tables))


def metadata_file(wildcards):
    source = STUDY.datasets[wildcards.dataset]
    return [source.meta] if Path(source.meta).is_file() else []  # `fetch` says what is missing


def pretrained(text, vision):
    """The towers of notebook 00 that are needed, of those that this study makes itself."""
    needed = {"text": text, "vision": vision}
    return [f"pretrained/{t}/config.json" for t in needed if needed[t] and getattr(STUDY, t).model == "pretrained"]


def encoders_of(method, wildcards):
    """What a method adapted, for the seeds of a job; None: nothing."""
    adapted = f"encoders/{wildcards.dataset}/{method}/seed{{seed}}/config.json"
    return expand(adapted, seed=wildcards.seed if SEED else STUDY.seeds) if method else []


def towers_adapted(wildcards):
    """What adaptation starts from: the encoder that another method adapted, or the study's; the vision tower."""
    entry = entry_of(STUDY, wildcards.method)
    return pretrained(not entry.after, entry.pictures != "none") + encoders_of(entry.after, wildcards)


def towers_read(wildcards):
    """What a classifier starts from: the encoder that a method adapted, or the study's; the vision tower."""
    made_by, entry = adapted_by(STUDY, wildcards.method), entry_of(STUDY, wildcards.method)
    own = pretrained(not made_by and entry.reads_encoder, entry.uses_images)
    return own + encoders_of(made_by, wildcards)


def settings(wildcards, stage):
    own, entry = STUDY.of(wildcards.method), entry_of(STUDY, wildcards.method)
    vision = own.vision if stage == "adapt" or entry.uses_images else None
    return digest(own.text, vision, getattr(own, stage), own.runtime)


KEPT = {  # of each data set and method
    (dataset, method): [
        f"classifiers/{dataset}/{method}/seed{seed}/f{percent}/config.json"
        for seed in STUDY.seeds for percent in kept(method)
    ]
    for dataset in STUDY.datasets for method in STUDY.methods if kept(method)
}


def executed(notebook, methods=[""]):
    """The names of a notebook that runs once, or for each data set and ``methods``, and of each seed's job."""
    names = expand(f"notebooks/{notebook}.ipynb", dataset=STUDY.datasets, method=methods, seed=STUDY.seeds)
    return list(dict.fromkeys(names))


NOTEBOOKS = [
    *executed("01_catalogue-{dataset}"),
    *executed(f"02_adapt-{{dataset}}-{{method}}{SEED}", [m for m in STUDY.methods if adapted_by(STUDY, m) == m]),
    *executed(f"03_finetune-{{dataset}}-{{method}}{SEED}", STUDY.methods),
    *(executed("explore_embeddings-{dataset}") if MAPS else []),
    *[f"notebooks/{WHOLE[name][0]}.ipynb" for name in ASKED],
]


wildcard_constraints:
    dataset="|".join(STUDY.datasets),
    method="|".join(STUDY.methods),
    seed=r"\d+",
    tower="text|vision",


rule all:  # each file by name, because Snakemake makes no file anew that only a finished job asks for
    input:
        "report/index.html", "results.csv", MAPS, [WHOLE[name][1] for name in ASKED],
        expand(drawn("{dataset}_maps", "{dataset}_measures"), dataset=STUDY.datasets) if MAPS else [],
        expand("figures/{dataset}_recall.csv", dataset=STUDY.datasets) if MAPS and SHARED else [],
        all_runs("records/{dataset}/{method}/seed{seed}.json"),
        all_runs("predictions/{dataset}/{method}/seed{seed}.parquet"),
        expand("encoders/{dataset}/{method}/seed{seed}/{file}", dataset=STUDY.datasets, method=ADAPTED,
               seed=STUDY.seeds, file=["config.json", "towers.safetensors"]),
        KEPT.values(), NOTEBOOKS, [name.replace(".ipynb", ".html") for name in NOTEBOOKS],


rule pretrain:
    output:
        weights="pretrained/{tower}/config.json",
        notebook="notebooks/00_pretrain-{tower}.ipynb",
    params: digest=digest(STUDY.pretrain, STUDY.vision.image_size, STUDY.text.max_tokens),
    priority: 100
    log: "logs/00_pretrain-{tower}.log",
    shell: execute("00_pretrain", "tower={wildcards.tower}")


rule fetch:
    input: metadata_file,
    output: "catalogues/{dataset}/fetched.json",
    params: digest=lambda w: digest(STUDY.datasets[w.dataset]),
    priority: 95
    log: "logs/fetch-{dataset}.log",
    shell: f"{PYTHON} icssl_lib.runs fetch {quoted(STUDY_FILE)} --dataset {{wildcards.dataset}} --out . {LOGGED}"


rule catalogue:
    input: source_files,
    output:
        catalogue="catalogues/{dataset}/catalogue.json",
        notebook="notebooks/01_catalogue-{dataset}.ipynb",
    params: digest=lambda w: digest(STUDY.datasets[w.dataset], STUDY.vision.image_size, STUDY.split_seed),
    priority: 90
    log: "logs/01_catalogue-{dataset}.log",
    shell: execute("01_catalogue", "dataset={wildcards.dataset}")


rule adapt:
    input:
        "catalogues/{dataset}/catalogue.json",
        towers_adapted,
    output:
        of_job("encoders/{dataset}/{method}/seed{seed}/config.json"),
        of_job("encoders/{dataset}/{method}/seed{seed}/towers.safetensors"),
        notebook=f"notebooks/02_adapt-{{dataset}}-{{method}}{SEED}.ipynb",
    params: seeds=seeds, digest=lambda w: settings(w, "adapt"),
    priority: lambda w: 80 if entry_of(STUDY, w.method).pictures != "none" else 70
    resources: gpu=gpus, cpus_per_task=STUDY.runtime.processes * STUDY.runtime.threads,
    log: f"logs/02_adapt-{{dataset}}-{{method}}{SEED}.log",
    shell: execute("02_adapt", TRAINED)


rule finetune:
    input:
        "catalogues/{dataset}/catalogue.json",
        towers_read,
    output:
        of_job("records/{dataset}/{method}/seed{seed}.json"),
        of_job("predictions/{dataset}/{method}/seed{seed}.parquet"),
        notebook=f"notebooks/03_finetune-{{dataset}}-{{method}}{SEED}.ipynb",
    params: seeds=seeds, digest=lambda w: settings(w, "finetune"),
    priority: lambda w: 62 if w.method in ("origin", AFTER) else 60  # the maps wait for these
    resources: gpu=gpus, cpus_per_task=STUDY.runtime.processes * STUDY.runtime.threads,
    log: f"logs/03_finetune-{{dataset}}-{{method}}{SEED}.log",
    shell: execute("03_finetune", TRAINED)


for (dataset, method), folders in KEPT.items():

    rule:  # links to what training left among the pieces
        name: f"classifiers_{dataset}_{method}"
        input: expand(f"records/{dataset}/{method}/seed{{seed}}.json", seed=STUDY.seeds),
        output: folders,
        localrule: True
        shell:
            "for file in {output}; do to=$(dirname $file); from=$(echo pieces${{to#classifiers}}-*/classifier);"
            " rm -rf $to; cp -Rl $from $to 2> /dev/null || {{ rm -rf $to; cp -R $from $to; }}; done"


rule results:
    input: all_runs("records/{dataset}/{method}/seed{seed}.json"),
    output: "results.csv",
    log: "logs/results.log",
    shell: f"{PYTHON} icssl_lib.runs collect {quoted(STUDY_FILE)} --out . {LOGGED}"


rule explore:
    input:
        "catalogues/{dataset}/catalogue.json",
        expand("encoders/{{dataset}}/{m}/seed{k}/config.json", m=ADAPTED, k=STUDY.seeds),
        expand("predictions/{{dataset}}/{m}/seed{k}.parquet", m=["origin", AFTER], k=STUDY.seeds[0]),
    output:
        drawn("{dataset}_maps", "{dataset}_measures"), drawn(*["{dataset}_recall"] * SHARED, kinds=["csv"]),
        map="report/map-{dataset}.html",
        notebook="notebooks/explore_embeddings-{dataset}.ipynb",
    priority: 65  # before the other classifiers: half a minute each, at the end one core would wait for another's map
    log: "logs/explore_embeddings-{dataset}.log",
    shell: execute("explore_embeddings", f"dataset={{wildcards.dataset}} after={AFTER} seed={STUDY.seeds[0]}")


for name, (notebook, left) in WHOLE.items():
    alone = name == "cost"  # last, so that no other job disturbs its times; on a cluster it cannot ask for all cores
    others = [file for other in ASKED if other != "cost" for file in WHOLE[other][1]]

    rule:
        name: name
        input:
            "results.csv",
            all_runs("predictions/{dataset}/{method}/seed{seed}.parquet"),
            [*others, *MAPS, *KEPT.values()] if alone else [],
        output:
            left,
            notebook=f"notebooks/{notebook}.ipynb",
        params: notebook=notebook,  # the command is made when the job runs, when the loop has ended
        threads: workflow.resource_settings.cores or 1 if alone else 1
        log: f"logs/{notebook}.log",
        shell: execute("{params.notebook}")


rule report:
    input: [WHOLE[name][1] for name in ASKED], current=[*NOTEBOOKS, *MAPS, *KEPT.values()],
    output: "report/index.html", [name.replace(".ipynb", ".html") for name in NOTEBOOKS],
    log: "logs/report.log",
    shell: f"{quoted(sys.executable)} {quoted(ROOT / 'notebooks/report.py')} {quoted(STUDY_FILE)} . {{input.current}} {LOGGED}"
