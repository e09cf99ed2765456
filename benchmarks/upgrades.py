"""Three upgrades of `recommended` and two more, each alone, compared on Dev at few labels; Test is not read.

python benchmarks/upgrades.py config/law.yaml runs/law --datasets world0_000 world1_000 world2_000
python benchmarks/upgrades.py config/hm.yaml runs/hm                      (rows that are in upgrades.csv are not made)

Encoders are those of the study's run folder; one that is not there is adapted and kept in <run>/choices (delete it when
you change a constant below). Ways:

plain     `recommended` as it is, but that the encoder keeps all of adaptation in every way here
student   A. its encoder is trained on as a student of its own moving average, on labelled titles and names, even over
          classes, beside three times as many titles without a label, some of whose words are dropped. Their targets are
          moved towards the prior of the labels, and count where they are nearly as sure as the batch's labelled ones
          are (AdaMatch: Berthelot et al., 2022)
pairs     adaptation reads the pairs of Train as well as those of the SSL part, 1.6 times as many, labels unread
graphs    B. pseudo-labels are those on which two graphs agree, of titles and of pictures (label propagation: Zhou et
          al., 2004), in each of which a class begins at its name and its labelled products and gets its prior's mass
smoothed  the teacher's answers are averaged over the neighbours in both graphs; names as in `pictured`
soft      C. adaptation's targets are (1 - b) I + b softmax(v v' / tau), v the frozen tower's pictures, centred
hard      C with b = 0, which is the standard form of the loss
pictured  the teacher sees at a class name the mean picture of the ten titles that are nearest to it

Arms: own pictures; shuffled ones, of adaptation and of the teacher; none, on the encoder as it comes.

Rule, written before a number was seen: an upgrade is adopted if with 5% of the labels its mean gain over the catalogues
(three worlds and hm, six seeds) is at least .03 and no catalogue's is below 0, and with all labels it is not below
-.005. Constants are the same for all catalogues. To save hours, a way that is below 0 on a world after three seeds is
not run on. `smoothed`, the random walks in `graphs`, and `pairs` came after hm's first numbers. upgrades.csv has six
seeds of hm, of `pairs` three and of `student` one, three of world 0, two of world 1 and one or two of world 2.
"""

import argparse
import csv
from copy import deepcopy
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from choose import adapted
from roads import labelled, on_dev
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.preprocessing import normalize
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.functional import normalize as unit

from icssl_lib.adapt import adapt, save
from icssl_lib.baselines import FEATURES, Features, Frozen, taught, title
from icssl_lib.catalogue import Catalogue, open_catalogue
from icssl_lib.config import Run, Study, load_config
from icssl_lib.encoders import nearest_rows, save_pretrained, take, tokenize
from icssl_lib.fast.processes import make_accelerator
from icssl_lib.fast.unpad import fast
from icssl_lib.finetune import Read, Start, Task, begin, build
from icssl_lib.lexical import Lexical
from icssl_lib.methods import METHODS, Method, tokens_of
from icssl_lib.remedies import balanced
from icssl_lib.runs import path_of, resolved

WAYS = ["plain", "graphs", "pictured", "smoothed", "hard", "soft", "pairs", "student"]
ROWS = Path(__file__).with_name("upgrades.csv")
KEYS = ["dataset", "way", "arm", "fraction", "seed"]
ARMS = {  # the method that adapts, and what the teacher sees
    "own": ("convirt", ("picture",)), "shuffled": ("convirt_shuffled", ("picture_shuffled",)), "none": ("origin", ()),
}  # fmt: skip
STEPS, LABELLED, UNLABELLED, DROPPED, RATE, DECAY, SURE = 1500, 32, 96, 0.2, 0.1, 0.99, 0.9  # of A; RATE of finetune.lr
NEAR, WALK, SMOOTH, SHARE, WEIGHT = 10, 0.9, 0.5, 0.3, 0.3  # of B: neighbours, walks, surest of a class, weight
SOFT, TAU = 0.3, 0.1  # of C: b and tau


def soft(towers: nn.Module, batch: dict, config, b: float = SOFT) -> Tensor:
    """Cross-entropy of each title with the batch's pictures and back, all keys in the denominator."""
    text, image = unit(towers.text(**tokens_of(batch))), unit(towers.vision(batch["images"]))  # (N, D)
    seen = unit(batch["images"] - batch["images"].mean(dim=0))  # (N, F) of the frozen tower
    target = (1 - b) * torch.eye(len(text)) + b * (seen @ seen.T / TAU).softmax(dim=1)  # (N, N)
    scores = text @ image.T / config.temperature
    return config.alpha * cross_entropy(scores, target) + (1 - config.alpha) * cross_entropy(scores.T, target.T)


for name, b in {"soft": SOFT, "hard": 0.0}.items():
    for arm, pictures in {"own": "own", "shuffled": "shuffled"}.items():
        METHODS[f"{name}_{arm}"] = Method(f"{name}, {arm}", partial(soft, b=b), pictures=pictures)


def pool_of(task: Task, train: pd.DataFrame) -> pd.DataFrame:
    """Products of the SSL part and the rest of Train, their labels unread."""
    parts = [task.catalogue.part(part) for part in ("ssl", "train")]
    return pd.concat([part[~part.id.isin(train.id)] for part in parts], ignore_index=True)


def pictured(task: Task, train: pd.DataFrame, kind: str, titles: Features) -> Features:
    """Features of pictures; where there is none, the mean of those of the titles nearest to this one."""
    seen, pool = FEATURES[kind](task, train), pool_of(task, train)
    pool = pool[pool.image_row >= 0]

    def read(products: pd.DataFrame) -> np.ndarray:
        rows, absent = seen(products), (products.image_row < 0).to_numpy()
        if absent.any():
            asked, known = (torch.tensor(titles(part)).float() for part in (products[absent], pool))
            nearest = nearest_rows(asked, known, NEAR)[1].numpy()
            rows[absent] = normalize(seen(pool)[nearest].mean(axis=1))
        return rows

    return read


def graph_of(rows: np.ndarray) -> sparse.csr_matrix:
    """The random walk to the nearest neighbours, by cosine and either way, of each of unit ``rows`` (N, F): (N, N)."""
    cosine, near = nearest_rows(torch.tensor(rows).float(), torch.tensor(rows).float(), NEAR, skip_self=True)
    at = np.arange(len(rows)).repeat(NEAR)
    found = sparse.csr_matrix((cosine.clamp(min=1e-6).numpy().ravel(), (at, near.numpy().ravel())), (len(rows),) * 2)
    return normalize(found.maximum(found.T), norm="l1")


def walked(graph: sparse.csr_matrix, start: np.ndarray, share: float) -> np.ndarray:
    """Label propagation with restart: from ``start`` (N, C), to which it comes back by 1 - ``share`` in each step."""
    found = start
    for _ in range(30):
        found = share * (graph @ found) + (1 - share) * start
    return found


def two_graphs(task: Task, train: pd.DataFrame, pool: pd.DataFrame, features: tuple[str, ...], titles: Features):
    """The graphs of titles and, with ``features``, of pictures, over ``train`` and then ``pool``."""
    nodes = pd.concat([train, pool], ignore_index=True)
    words = TruncatedSVD(128, random_state=0).fit_transform(Lexical.fit(nodes.title)(nodes))
    rows = [np.hstack([titles(nodes), normalize(words)])]
    rows += [pictured(task, train, kind, titles)(nodes) for kind in features]
    return [graph_of(normalize(each)) for each in rows]


def student_of(task: Task, train: pd.DataFrame, pool: pd.DataFrame, sure: np.ndarray, agreed, titles: Features) -> Read:
    """What learns also, at weight .3, the surest 30% of each class of the ``pool`` whose labels are ``agreed``."""
    pool = pool.assign(label=np.array(task.catalogue.labels, dtype=object)[sure.argmax(axis=1)], sure=sure.max(axis=1))
    pool = pool[agreed]
    rank = pool.groupby("label").sure.rank(ascending=False, method="first", pct=True)
    both = pd.concat([train, pool[rank <= SHARE]], ignore_index=True)
    weight = np.where(both.index < len(train), 1.0, WEIGHT)
    return Frozen.fit([Lexical.fit(both.title), titles], both, task.catalogue.labels, weight)


def graphs(task: Task, train: pd.DataFrame, features: tuple[str, ...], titles: Features) -> Read:
    """Upgrade B; without pictures the graph of titles alone."""
    labels, pool = task.catalogue.labels, pool_of(task, train)
    target = pd.Index(labels).get_indexer(train.label)
    start = np.zeros((len(train) + len(pool), len(labels)))
    start[np.arange(len(train)), target] = 1
    start /= np.maximum(start.sum(axis=0), 1)  # a class begins with mass 1, however many labels it has
    prior, found = np.bincount(target, minlength=len(labels)) / len(train), []  # names are among them: none is 0
    for graph in two_graphs(task, train, pool, features, titles):
        mass = walked(graph, start, WALK) + 1e-9
        for _ in range(5):
            mass = mass / mass.sum(axis=1, keepdims=True)
            mass = mass * (prior / mass.mean(axis=0))
        found.append((mass / mass.sum(axis=1, keepdims=True))[len(train) :])
    agreed = found[0].argmax(axis=1) == found[-1].argmax(axis=1)
    sure = np.prod(found, axis=0)
    return student_of(task, train, pool, sure, agreed, titles)


def smoothed(task: Task, train: pd.DataFrame, features: tuple[str, ...], titles: Features) -> Read:
    """The teacher's answers, averaged over both graphs."""
    labels, pool = task.catalogue.labels, pool_of(task, train)
    seen = [pictured(task, train, kind, titles) for kind in features]
    teacher = Frozen.fit([Lexical.fit(train.title), titles, *seen], train, labels)
    start = np.vstack([np.eye(len(labels))[pd.Index(labels).get_indexer(train.label)], teacher(pool)])
    both = two_graphs(task, train, pool, features, titles)
    found = walked(sum(both) / len(both), start, SMOOTH)[len(train) :]
    return student_of(task, train, pool, found, np.ones(len(pool), bool), titles)


def perturbed(tokens: dict, generator: torch.Generator) -> dict:
    """Tokens (N, T) of which some are hidden from attention, special ones at either end excepted."""
    mask = tokens["attention_mask"]
    last = mask.sum(dim=1, keepdim=True) - 1
    place = torch.arange(mask.shape[1])[None]
    free = (place > 0) & (place < last)
    hidden = free & (torch.rand(mask.shape, generator=generator) < DROPPED)
    return tokens | {"attention_mask": mask.masked_fill(hidden, 0)}


def student(task: Task, train: pd.DataFrame, folder: Path) -> Path:
    """Upgrade A: the folder of the encoder that the moving average leaves."""
    study, labels, accelerator = task.study, task.catalogue.labels, make_accelerator(task.study.runtime)
    torch.manual_seed(task.seed)
    generator = torch.Generator().manual_seed(task.seed)
    head = study.finetune.model_copy(update={"head": "pooled"})
    model, tokenizer = build(task.start.encoder, labels, study.model_copy(update={"finetune": head}))
    pool = pool_of(task, train)
    tokens, others = (tokenize(tokenizer, list(part.title), study.text.max_tokens) for part in (train, pool))
    target = torch.tensor(pd.Index(labels).get_indexer(train.label))
    begin(model, tokens, target, accelerator)
    teacher = deepcopy(model).requires_grad_(False).eval()
    prior = (target.bincount(minlength=len(labels)) + 1.0) / (len(target) + len(labels))
    mass = prior.clone()
    optimizer = torch.optim.Adam(model.parameters(), lr=study.finetune.lr * RATE, fused=True)
    queue = torch.zeros(0, dtype=torch.long)
    with fast(model, study.runtime.fast):
        for step in range(STEPS):
            while len(queue) < LABELLED:
                queue = torch.cat([queue, balanced(target, generator)])
            rows, queue = queue[:LABELLED], queue[LABELLED:]
            asked = take(others, torch.randint(len(pool), (UNLABELLED,), generator=generator), "cpu")
            own = take(tokens, rows, "cpu")
            with torch.no_grad():
                guess = teacher(**asked).softmax(dim=1)
                mass = DECAY * mass + (1 - DECAY) * guess.mean(dim=0)
                guess = guess * prior / mass
                guess = guess / guess.sum(dim=1, keepdim=True)
                sure = teacher(**own).softmax(dim=1).max(dim=1).values.mean() * SURE
                kept = guess.max(dim=1).values >= sure
            model.train()
            loss = cross_entropy(model(**own), target[rows])
            if kept.any():
                wrong = cross_entropy(model(**perturbed(asked, generator)), guess, reduction="none")
                loss = loss + min(1, 2 * step / STEPS) * (wrong * kept).mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                for mean, new in zip(teacher.parameters(), model.parameters(), strict=True):
                    mean.lerp_(new, 1 - DECAY)
    save_pretrained(teacher.backbone, tokenizer, folder, teacher.pooling)
    return folder


def encoder_of(study: Study, out: Path, run: Run) -> str:
    """The folder or name of an arm's encoder, of the study or adapted here."""
    if run.method == "origin":
        return study.text.model
    kept = path_of(out, "encoders", run)
    return str(kept if (kept / "config.json").is_file() else adapted(study, run, out))


def adapted_on_all(study: Study, out: Path, run: Run) -> str:
    """The folder of an encoder that is adapted on the pairs of the SSL part and of Train."""
    folder = out / "choices" / f"{run.dataset}-{run.method}-all-{run.seed}"
    if not (folder / "config.json").is_file():
        catalogue = open_catalogue(out / "catalogues" / run.dataset)
        products = catalogue.products.assign(part=catalogue.products.part.replace("train", "ssl"))
        save(adapt(run, replace(catalogue, products=products), study, progress=False), folder)
    return str(folder)


def reader(way: str, arm: str, study: Study, out: Path, catalogue: Catalogue, train: pd.DataFrame, seed: int) -> Read:
    """The classifier of a way and an arm, of the products ``train`` of `roads.labelled`."""
    method, features = ARMS[arm]
    changed = f"{way}_{arm}" if way in ("soft", "hard") else method
    adapting = adapted_on_all if way == "pairs" else encoder_of
    start = Start(adapting(study, out, Run(catalogue.name, changed, seed)), study.vision)
    task = Task(catalogue, study, start, seed)
    if way == "student":
        folder = out / "choices" / f"student-{catalogue.name}-{arm}-{len(train)}-{seed}"
        if not (folder / "config.json").is_file():
            student(task, train, folder)
        task = Task(catalogue, study, Start(str(folder), study.vision), seed)
    titles = title(task, train)
    if way in ("graphs", "smoothed"):
        return {"graphs": graphs, "smoothed": smoothed}[way](task, train, features, titles)
    found = [pictured(task, train, f, titles) if way == "pictured" else FEATURES[f](task, train) for f in features]

    def asked(rows: pd.DataFrame) -> list[Features]:
        return [Lexical.fit(rows.title), titles]

    return taught(task, train, asked, lambda rows: [*asked(rows), *found])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--datasets", nargs="+", help="default: all of the study")
    parser.add_argument("--fractions", nargs="+", type=float, default=[0.05])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--ways", nargs="+", default=WAYS, choices=WAYS)
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS))
    options = parser.parse_args()
    out = options.run.resolve()
    study = resolved(load_config(options.config), out)
    done = pd.read_csv(ROWS)[KEYS].astype(str).agg("|".join, axis=1).tolist() if ROWS.is_file() else []
    with ROWS.open("a", newline="", encoding="utf-8", buffering=1) as file:
        write = csv.writer(file, lineterminator="\n").writerow
        if not ROWS.stat().st_size:
            write([*KEYS, "dev_accuracy", "without_label"])
        for dataset, seed in product(options.datasets or study.datasets, options.seeds):
            catalogue = open_catalogue(out / "catalogues" / dataset)
            for way, arm, fraction in product(options.ways, options.arms, options.fractions):
                row = [dataset, way, arm, fraction, seed]
                needless = arm == "none" and way in ("soft", "hard", "pictured", "pairs")  # there it is plain
                if needless or "|".join(map(str, row)) in done:
                    continue
                train = labelled(catalogue, fraction, seed)
                found = on_dev(reader(way, arm, study, out, catalogue, train, seed), catalogue, train)
                row += ["" if np.isnan(share) else f"{share:.4f}" for share in found]
                write(row)
                print(*row, flush=True)


if __name__ == "__main__":
    main()
