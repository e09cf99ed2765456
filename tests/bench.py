"""Speed beside what users would run instead: the same work, ours and each peer's, in turns, in one run.

    .venv/bin/python tests/bench.py [--rounds 3] [--only SimCSE] [--device cuda] [--quick] [--out figures/bench]

Ours runs in a process with a study's environment, peers in one with the user's own. In each round every side does the
work once, in an order that turns; medians over all rounds are compared. Writes bench.csv (one row per pair; ratio above
1: ours is faster; low, high: the ratio in the slowest and the fastest round), machine.csv (matrix products per second,
and each training's share of them) and bench.png. Rows that were there before stay when --only leaves them out.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import torch
from tqdm import tqdm

from icssl_lib.adapt import precision_here
from icssl_lib.config import RuntimeConfig
from icssl_lib.images import all_cores, written_whole
from icssl_lib.runs import MALLOC, ROOT, machine

COLUMNS = ["work", "peer", "ours_per_s", "peer_per_s", "ratio", "low", "high"]
TRAINERS = {"sentence_transformers_simcse", "hf_trainer", "open_clip", "lightly"}  # that know bf16
# Ours by other ways, and what sets them apart.
PLAIN = {"ours, plain path": {"fast": False}}
UNRECORDED = {"ours, not recorded": {"cuda_graphs": False}}
COMPILED = {"ours, compiled as well": {"compile": True}}
TRAINED = {"ours, both towers trained": {"frozen": False}}
WHOLE_TABLE = {"ours, all words trained": {"whole_table": True}}
AUTOCAST = {"ours, by autocast": {"narrow": False}}
SMALL_PAGES = {"ours, pages of 4 KB": {}}  # in a process of its own


class Worker:
    """A process of bench_work.py."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.log = log
        command = [sys.executable, str(Path(__file__).with_name("bench_work.py"))]
        self.process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=log.open("w"),
        )  # fmt: skip

    def do(self, call: str, **arguments: Any) -> list[float]:
        """Seconds, as the call has measured them.

        Raises: RuntimeError: it failed; the message says why, the log says all.
        """
        self.process.stdin.write(json.dumps({"call": call, **arguments}) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        answer = json.loads(line) if line else {"error": f"the process died; see {self.log}"}
        if "error" in answer:
            raise RuntimeError(f"{call}: {answer['error']}")
        return answer["seconds"]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)


@dataclass
class Work:
    """One piece of work.

    items: done in what ``call`` times once. peers: name to (call, arguments that differ). training: it has steps, whose
    share of the machine's ceiling is told. ways: ours by other ways, name to arguments that differ.
    """

    name: str
    items: int
    call: str
    arguments: dict[str, Any]
    peers: dict[str, tuple[str, dict[str, Any]]]
    training: bool = False
    ways: dict[str, dict[str, Any]] = field(default_factory=dict)


PICTURE_PEERS = {"open_clip style": "open_clip", "lightly": "lightly"}


def work(
    name: str, items: int, call: str, own: dict, shared: dict, peers: dict[str, str], bf16: bool = False, **kind: Any
) -> Work:
    """One piece of work, ours with ``own`` and all sides with the ``shared`` arguments.

    Args: peers: name to call. bf16: those that know it run a second time, in it.
    """
    sides = {peer: (peer_call, shared) for peer, peer_call in peers.items()}
    if bf16:
        half = shared | {"precision": "bf16"}
        sides |= {f"{peer}, bf16": (peer_call, half) for peer, peer_call in peers.items() if peer_call in TRAINERS}
    return Work(name, items, call, own | shared, sides, **kind)


def works(bf16: bool, quick: bool) -> list[Work]:
    """All that is compared on a CPU.

    Args: bf16: whether peers run in it too. quick: models that do in milliseconds, for a test.
    """
    small, large, n, sizes = ("tiny", "tiny", 40, (32,)) if quick else ("minilm", "bert-base", 1000, (112, 224))
    training = {"bf16": bf16, "training": True, "ways": PLAIN}
    found = []
    peers = {"sentence-transformers": "sentence_transformers_simcse", "SimCSE's own style": "original_simcse"}
    many = "tiny, many words" if quick else "minilm, 250,000 words"  # as of a multilingual encoder
    for shape, batch, steps in ((small, 32, 8), (small, 128, 2), (large, 32, 2), (many, 32, 4)):
        shared, name = {"shape": shape, "batch": batch, "n_steps": steps}, f"SimCSE step, {shape}, batch {batch}"
        ways = {small: PLAIN | WHOLE_TABLE | SMALL_PAGES, large: PLAIN, many: PLAIN | WHOLE_TABLE}[shape]
        asked = peers if shape != many else {"sentence-transformers": "sentence_transformers_simcse"}
        kind = training | {"ways": ways if batch == 32 else PLAIN}
        found.append(work(name, batch, "ours_adapt", {"method": "simcse"}, shared, asked, **kind))
    for size in sizes:
        shared = {"shape": small, "vit": "ViT-Ti", "batch": 32, "n_steps": 4, "size": size}
        name = f"ConVIRT step, {small} + ViT-Ti, {size} px"
        found.append(work(name, 32, "ours_adapt", {"method": "convirt"}, shared, PICTURE_PEERS, **training))
    # Another training, which is asked for and not a faster one of the same; its pictures are embedded before the steps.
    frozen = {"method": "convirt", "frozen": True}
    name = f"ConVIRT step, {small}, ViT-Ti frozen, {size} px"
    found.append(work(name, 32, "ours_adapt", frozen, shared, {}, ways=TRAINED))
    shared, peers = {"shape": small, "batch": 32, "n_steps": 8}, {"HF Trainer": "hf_trainer"}
    name, kind = f"fine-tuning step, {small}, batch 32", training | {"ways": PLAIN | SMALL_PAGES}
    found.append(work(name, 32, "ours_finetune", {}, shared, peers, **kind))
    shared, peers = {"shape": small, "n": 4 if quick else 24}, {"SetFit": "setfit"}
    name = f"{shared['n']} labels to a classifier, {small}"
    found.append(work(name, 1, "ours_few_labels", {}, shared, peers, ways=PLAIN))
    shared = {"shape": small, "n": n}
    peers = {"HF pipeline, batch 32": "pipeline", "ONNX Runtime, batch 32": "onnxruntime_predict"}
    ways = PLAIN | (AUTOCAST if bf16 else {})
    found.append(work(f"classifying titles, {small}", n, "ours_predict", {}, shared, peers, ways=ways))
    peers = {"SentenceTransformer.encode": "sentence_transformer_encode"}
    found.append(work(f"embedding titles, {small}", n, "ours_embed", {}, shared, peers))
    shared, peers = {"n": n, "size": sizes[-1]}, {"torch DataLoader": "dataloader_ingest"}
    name = f"pictures to a store, 300 to {sizes[-1]} px"
    found.append(work(name, n, "ours_ingest", {}, shared, peers))
    return found


def gpu_works(bf16: bool) -> list[Work]:
    """All that is compared on a GPU, with the paper's encoders. Args: as of `works`."""
    training = {"bf16": bf16, "training": True}
    shape, n, found = "bert-base", 10_000, []
    peers = {"sentence-transformers": "sentence_transformers_simcse"}
    for batch, steps in ((32, 60), (128, 40), (512, 24)):
        shared, name = {"shape": shape, "batch": batch, "n_steps": steps}, f"SimCSE step, {shape}, batch {batch}"
        own = {"method": "simcse"}
        found.append(work(name, batch, "ours_adapt", own, shared, peers, **training, ways=UNRECORDED))
    for vit, batch in (("ViT-B", 128), ("ViT-L", 32), ("ViT-L", 128)):
        shared = {"shape": shape, "vit": vit, "batch": batch, "n_steps": 24, "size": 224}
        name = f"ConVIRT step, {shape} + {vit}, 224 px, batch {batch}"
        ways = UNRECORDED | (COMPILED if (vit, batch) == ("ViT-L", 128) else {})  # which takes a minute to begin with
        one = work(name, batch, "ours_adapt", {"method": "convirt"}, shared, PICTURE_PEERS, **training, ways=ways)
        for peer in PICTURE_PEERS if bf16 else ():  # there nobody trains towers for pictures in float32
            del one.peers[peer]
        found.append(one)
    shared, peers = {"shape": shape, "batch": 32, "n_steps": 60}, {"HF Trainer": "hf_trainer"}
    name = f"fine-tuning step, {shape}, batch 32"
    found.append(work(name, 32, "ours_finetune", {}, shared, peers, **training, ways=UNRECORDED))
    shared, peers = {"shape": shape, "n": n}, {"HF pipeline, batch 32": "pipeline"}
    found.append(work(f"classifying titles, {shape}", n, "ours_predict", {}, shared, peers))
    peers = {"SentenceTransformer.encode": "sentence_transformer_encode"}
    found.append(work(f"embedding titles, {shape}", n, "ours_embed", {}, shared, peers))
    return found


def compare(
    work: Work, rounds: int, ours: Worker, peers: Worker, small_pages: Worker, bar: tqdm
) -> tuple[list[dict], float]:
    """Rows of bench.csv, and our median seconds. A peer that fails is named with its error, and has no row.

    Args: small_pages: as ``ours``, in a process that does not ask for large ones, for the way `SMALL_PAGES`.
    Raises: RuntimeError: ours fails.
    """
    sides = {"ours": (ours, work.call, work.arguments)}
    for name, changes in work.ways.items():
        sides[name] = (small_pages if name in SMALL_PAGES else ours, work.call, work.arguments | changes)
    sides |= {name: (peers, *what) for name, what in work.peers.items()}
    seconds: dict[str, list[list[float]]] = defaultdict(list)
    for turn in range(rounds):
        names = list(sides)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            bar.set_description(f"{work.name}: {name}")
            worker, call, arguments = sides[name]
            try:
                seconds[name].append(worker.do(call, **arguments))
            except RuntimeError as error:
                if name == "ours":
                    raise
                tqdm.write(f"{work.name}: {name} is left out: {error}")
                del sides[name]
    median = {name: statistics.median(chain(*seconds[name])) for name in sides}
    rows = []
    for name in list(sides)[1:]:
        of_rounds = [
            statistics.median(theirs) / statistics.median(own)
            for own, theirs in zip(seconds["ours"], seconds[name], strict=True)
        ]
        rates = work.items / median["ours"], work.items / median[name]
        figures = [*rates, median[name] / median["ours"], min(of_rounds), max(of_rounds)]
        rows.append(dict(zip(COLUMNS, [work.name, name, *(float(f"{x:.4g}") for x in figures)], strict=True)))
        tqdm.write(f"{work.name:45} {name:30} {figures[2]:6.2f} ({figures[3]:.2f} to {figures[4]:.2f})")
    return rows, median["ours"]


def draw(table: pd.DataFrame, where: str) -> "mpl.figure.Figure":
    """Each pair's ratio as a bar, the spread over rounds as a line; 1: as fast as the peer."""
    import matplotlib.pyplot as plt

    table = table.iloc[::-1].reset_index(drop=True)
    fig, ax = plt.subplots(figsize=(9, 1.3 + 0.27 * len(table)), layout="constrained")
    plain = table.peer.isin(PLAIN | UNRECORDED | COMPILED | TRAINED | WHOLE_TABLE | AUTOCAST | SMALL_PAGES)
    error = [(table.ratio - table.low).clip(lower=0), (table.high - table.ratio).clip(lower=0)]
    for mask, colour, hatch, label in (
        (~plain, "#0173b2", "", "a peer"),
        (plain, "#d5d5d5", "//", "ours, another path"),
    ):
        part = table[mask]
        ax.barh(part.index, part.ratio, color=colour, hatch=hatch, edgecolor="black", label=f"against {label}")
    ax.errorbar(table.ratio, table.index, xerr=error, fmt="none", color="black", capsize=2)
    for y, row in table.iterrows():
        ax.text(row.high + 0.06, y, f"{row.ratio:.2f}", va="center", fontsize=8)
    ax.axvline(1, color="black", linestyle="--", linewidth=1)
    ax.set_yticks(table.index, table.work + "  |  " + table.peer, fontsize=8)
    ax.set(
        xlabel="Times as fast (ratio of medians; line: the rounds)",
        xlim=(0, 1.12 * table.high.max()),
    )
    fig.suptitle(f"Right of the dashed line ours is faster. {where}", fontsize=9, x=0.01, ha="left")
    fig.legend(loc="outside lower right", ncols=2, fontsize=8)
    return fig


def quick_study(folder: Path) -> list[dict]:
    """tests/bench_quick.yaml before the fast path and after it: two wall.json of one machine, or nothing."""
    before, after = folder / "quick_before.json", folder / "quick_after.json"
    if not before.is_file() or not after.is_file():
        return []
    earlier, later = json.loads(before.read_text()), json.loads(after.read_text())
    ratio = round(earlier["seconds"] / later["seconds"], 3)
    rates = float(f"{1 / later['seconds']:.4g}"), float(f"{1 / earlier['seconds']:.4g}")
    row = ["quick study, one genre and seed", "the state before", *rates, ratio, ratio, ratio]
    return [dict(zip(COLUMNS, row, strict=True))]


def keep(rows: list[dict], shares: list[dict], ceiling: float, where: str, options: argparse.Namespace) -> None:
    """Write what there is so far: bench.csv, machine.csv, bench.png."""
    table, path = pd.DataFrame(rows, columns=COLUMNS), options.out / "bench.csv"
    if options.only and path.is_file():
        table = pd.concat([pd.read_csv(path), table]).drop_duplicates(["work", "peer"], keep="last")
    with written_whole(path) as part:
        table.to_csv(part, index=False)
    frame = pd.DataFrame(shares).round(4).assign(ceiling_tflops=round(ceiling / 1e12, 3), machine=where)
    path = options.out / "machine.csv"
    if options.only and path.is_file() and shares:
        frame = pd.concat([pd.read_csv(path), frame]).drop_duplicates("work", keep="last")
    if shares:
        with written_whole(path) as part:
            frame.to_csv(part, index=False)
    with written_whole(options.out / "bench.png") as part:
        draw(table, where).savefig(part, format="png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", help="works whose name holds one of these")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny models, on a CPU: does it run?")
    parser.add_argument("--threads", type=int, default=all_cores(), help="of both sides (default: all cores)")
    parser.add_argument("--out", type=Path, help="default: figures/bench, or figures/bench-gpu")
    options = parser.parse_args()
    options.out = options.out or ROOT / "figures" / ("bench" if options.device == "cpu" else "bench-gpu")
    mpl.use("Agg")
    options.out.mkdir(parents=True, exist_ok=True)
    home = Path(os.environ.get("ICSSL_BENCH", ROOT / "runs" / "bench"))
    home.mkdir(parents=True, exist_ok=True)
    precision = precision_here(RuntimeConfig(device=options.device, precision="auto"))
    plain = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads), "ICSSL_BENCH": str(home)}
    plain |= {"TOKENIZERS_PARALLELISM": "true", "ICSSL_DEVICE": options.device}
    ours, peers = Worker(MALLOC | plain, home / "ours.log"), Worker(plain, home / "peers.log")
    kept_only = {name: value for name, value in MALLOC.items() if name != "GLIBC_TUNABLES"}
    small_pages = Worker(kept_only | plain, home / "small_pages.log")
    about = machine()
    kind = "bf16" if precision == "bf16" else "float32"
    where = f"{about['cpu']} ({about['instructions']}), threads: {options.threads}, ours in {kind}"
    if options.device == "cuda":
        where = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, ours in {kind}"
    rows, shares = quick_study(options.out) if options.device == "cpu" else [], []
    ceiling = ours.do("gemm", precision=precision)[0]
    bf16 = precision == "bf16"
    planned = gpu_works(bf16) if options.device == "cuda" else works(bf16, options.quick)
    if options.only:
        planned = [one for one in planned if any(part in one.name for part in options.only)]
    bar = tqdm(planned, unit="work")
    for one in bar:
        found, seconds = compare(one, options.rounds, ours, peers, small_pages, bar)
        rows += found
        if one.training:
            needed = ours.do("flops", of=one.call, **one.arguments)[0]
            rate = needed / seconds
            share = {"gflop_a_step": needed / 1e9, "tflops": rate / 1e12, "share_of_ceiling": rate / ceiling}
            shares.append({"work": one.name} | share)
        keep(rows, shares, ceiling, where, options)
    for worker in (ours, peers, small_pages):
        worker.close()
    print(f"\n{where}; matrix products: {ceiling / 1e12:.3f} TFLOP/s")
    print(pd.DataFrame(shares).round(4).to_string(index=False))
    print(pd.DataFrame(rows, columns=COLUMNS).to_string(index=False))


if __name__ == "__main__":
    main()
