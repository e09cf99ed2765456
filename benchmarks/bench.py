"""Speed beside what users would run instead: the same work, ours and each peer's, in turns, in one run.

    .venv/bin/python benchmarks/bench.py [--rounds 3] [--only SimCSE] [--device cuda] [--quick] [--out figures/bench]

Ours runs in a process with a study's environment, peers in one with the user's own. In each round every side does the
work once, in an order that turns; medians over all rounds are compared. In bench.csv the rows of this machine are
replaced, one per pair: items per second, their ratio (above 1: ours is faster), low and high (the ratio in the slowest
and in the fastest round). bench.png draws them.
"""

import argparse
import os
import statistics
from collections import defaultdict
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import bench_work
import matplotlib as mpl
import pandas as pd
import torch
from joblib import cpu_count
from tqdm import tqdm

from icssl_lib.config import RuntimeConfig
from icssl_lib.dag import MALLOC, ROOT
from icssl_lib.fast.processes import precision_here
from icssl_lib.files import written_whole
from icssl_lib.runs import machine

COLUMNS = ["machine", "work", "peer", "ours_per_s", "peer_per_s", "ratio", "low", "high"]
TRAINERS = {"sentence_transformers_simcse", "hf_trainer", "open_clip", "lightly"}  # that know bf16
# Ours by other ways, and what sets them apart.
PLAIN = {"ours, plain path": {"fast": False}}
UNRECORDED = {"ours, not recorded": {"cuda_graphs": False}}
SIMCSE = {"sentence-transformers": "sentence_transformers_simcse"}
PICTURES = {"open_clip style": "open_clip", "lightly": "lightly"}
READERS = {"HF pipeline, batch 32": "pipeline"}
CPU_READERS = READERS | {"ONNX Runtime, batch 32": "onnxruntime_predict"}


def worker(environment: dict[str, str], log: Path) -> ProcessPoolExecutor:
    """A process in which bench_work.py's functions run; it has its own environment and prints to ``log``."""
    before = dict(os.environ)
    os.environ.update(environment)  # some of it is read as the process starts
    pool = ProcessPoolExecutor(1, get_context("spawn"), bench_work.print_to, (log,))
    pool.submit(int).result()
    os.environ.clear()
    os.environ.update(before)
    return pool


@dataclass
class Work:
    """One piece of work.

    items: done in what ``call`` times once. own, shared: arguments of ours, and of every side. peers: name to call.
    ways: ours by other ways, name to arguments that differ. bf16: peers that know it run a second time, in it.
    """

    name: str
    items: int
    call: str
    own: dict[str, Any]
    shared: dict[str, Any]
    peers: dict[str, str]
    ways: dict[str, dict[str, Any]] = field(default_factory=dict)
    bf16: bool = False

    def sides(self, ours: Executor, peers: Executor) -> dict[str, tuple[Executor, str, dict[str, Any]]]:
        """Name to process, call and arguments; ours first."""
        sides = {"ours": (ours, self.call, self.own | self.shared)}
        sides |= {name: (ours, self.call, self.own | self.shared | changes) for name, changes in self.ways.items()}
        sides |= {name: (peers, call, self.shared) for name, call in self.peers.items()}
        half = {name: call for name, call in self.peers.items() if self.bf16 and call in TRAINERS}
        return sides | {f"{n}, bf16": (peers, call, self.shared | {"precision": "bf16"}) for n, call in half.items()}


def works(device: str, bf16: bool, quick: bool = False) -> list[Work]:
    """All that is compared; on a GPU with the paper's encoders.

    Args: bf16: whether peers run in it too. quick: models that do in milliseconds, on a CPU, for a test.
    """
    gpu, small, large = device == "cuda", "minilm", "bert-base"
    simcse, pictures, n, few, tuned = [(small, 32, 8), (small, 128, 2), (large, 32, 2)], [112, 224], 1000, 24, 8
    pictures = [("ViT-Ti", size, 32, 4) for size in pictures]
    if gpu:
        simcse, small = [(large, 32, 60), (large, 128, 40), (large, 512, 24)], large
        pictures, n, tuned = [("ViT-B", 224, 128, 24), ("ViT-L", 224, 32, 24), ("ViT-L", 224, 128, 24)], 10_000, 60
    if quick:
        simcse, pictures, small, n, few = [("tiny", 32, 8)], [("ViT-Ti", 32, 32, 4)], "tiny", 40, 4
    plain = {} if gpu else PLAIN
    training = {"ways": UNRECORDED if gpu else PLAIN, "bf16": bf16}
    found = []
    for shape, batch, steps in simcse:
        shared, name = {"shape": shape, "batch": batch, "n_steps": steps}, f"SimCSE step, {shape}, batch {batch}"
        found.append(Work(name, batch, "ours_adapt", {"method": "simcse"}, shared, SIMCSE, **training))
    for vit, size, batch, steps in pictures:
        shared = {"shape": small, "vit": vit, "batch": batch, "n_steps": steps, "size": size}
        name = f"ConVIRT step, {small} + {vit}, {size} px" + (f", batch {batch}" if gpu else "")
        found.append(Work(name, batch, "ours_adapt", {"method": "convirt"}, shared, PICTURES, **training))
    shared, name = {"shape": small, "batch": 32, "n_steps": tuned}, f"fine-tuning step, {small}, batch 32"
    found.append(Work(name, 32, "ours_finetune", {}, shared, {"HF Trainer": "hf_trainer"}, **training))
    shared, peers = {"shape": small, "n": few}, {"SetFit": "setfit"}
    found.append(Work(f"{few} labels to a classifier, {small}", 1, "ours_few_labels", {}, shared, peers, plain))
    shared, peers = {"shape": small, "n": n}, CPU_READERS if not gpu else READERS
    found.append(Work(f"classifying titles, {small}", n, "ours_predict", {}, shared, peers, plain))
    peers = {"SentenceTransformer.encode": "sentence_transformer_encode"}
    found.append(Work(f"embedding titles, {small}", n, "ours_embed", {}, shared, peers))
    return found


def compare(work: Work, rounds: int, ours: Executor, peers: Executor, bar: tqdm) -> list[dict]:
    """Rows of bench.csv. A peer that fails is named with its error, and has no row; where ours fails, all ends."""
    sides = work.sides(ours, peers)
    seconds: dict[str, list[list[float]]] = defaultdict(list)
    for turn in range(rounds):
        names = list(sides)
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            bar.set_description(f"{work.name}: {name}")
            process, call, arguments = sides[name]
            try:
                seconds[name].append(process.submit(getattr(bench_work, call), **arguments).result())
            except Exception as error:
                if name == "ours":
                    raise
                tqdm.write(f"{work.name}: {name} is left out: {type(error).__name__}: {str(error)[:300]}")
                del sides[name]
    median = {name: statistics.median(chain(*seconds[name])) for name in sides}
    rows = []
    for name in list(sides)[1:]:
        pairs = zip(seconds["ours"], seconds[name], strict=True)
        rounded = [statistics.median(theirs) / statistics.median(own) for own, theirs in pairs]
        figures = [work.items / median["ours"], work.items / median[name], median[name] / median["ours"]]
        figures = [float(f"{x:.4g}") for x in (*figures, min(rounded), max(rounded))]
        rows.append(dict(zip(COLUMNS[1:], [work.name, name, *figures], strict=True)))
        tqdm.write(f"{work.name:45} {name:30} {figures[2]:6.2f} ({figures[3]:.2f} to {figures[4]:.2f})")
    return rows


def draw(table: pd.DataFrame, where: str) -> "mpl.figure.Figure":
    """Each pair's ratio as a bar, the spread over rounds as a line; 1: as fast as the peer."""
    import matplotlib.pyplot as plt

    table = table.iloc[::-1].reset_index(drop=True)
    fig, ax = plt.subplots(figsize=(9, 1.3 + 0.27 * len(table)), layout="constrained")
    own = table.peer.str.startswith("ours, ")
    for mask, colour, label in ((~own, "#0173b2", "a peer"), (own, "#d5d5d5", "ours, another path")):
        ax.barh(table.index[mask], table.ratio[mask], color=colour, edgecolor="black", label=f"against {label}")
    error = [(table.ratio - table.low).clip(lower=0), (table.high - table.ratio).clip(lower=0)]
    ax.errorbar(table.ratio, table.index, xerr=error, fmt="none", color="black", capsize=2)
    for y, row in table.iterrows():
        ax.text(row.high + 0.06, y, f"{row.ratio:.2f}", va="center", fontsize=8)
    ax.axvline(1, color="black", linestyle="--", linewidth=1)
    ax.set_yticks(table.index, table.work + "  |  " + table.peer, fontsize=8)
    ax.set(xlabel="Times as fast (ratio of medians; line: the rounds)", xlim=(0, 1.12 * table.high.max()))
    fig.suptitle(f"Right of the dashed line ours is faster. {where}", fontsize=9, x=0.01, ha="left")
    fig.legend(loc="outside lower right", ncols=2, fontsize=8)
    return fig


def keep(rows: list[dict], where: str, out: Path, some: bool) -> pd.DataFrame:
    """Write bench.csv and bench.png. ``some``: rows of this machine whose pairs were left out stay, as others' do."""
    table, path = pd.DataFrame(rows, columns=COLUMNS).assign(machine=where), out / "bench.csv"
    if path.is_file():
        before = pd.read_csv(path)
        before = before if some else before[before.machine != where]
        table = pd.concat([before, table], ignore_index=True).drop_duplicates(COLUMNS[:3], keep="last")
    out.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        table.to_csv(part, index=False)
    here = table[table.machine == where]
    with written_whole(out / "bench.png") as part:
        draw(here, where).savefig(part, format="png", dpi=110)
    return here


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=[""], help="works whose name holds one of these")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="tiny models, on a CPU: does it run?")
    parser.add_argument("--threads", type=int, default=cpu_count(), help="of both sides (default: all cores)")
    parser.add_argument("--out", type=Path, default=ROOT / "figures" / "bench")
    options = parser.parse_args()
    mpl.use("Agg")
    home = Path(os.environ.get("ICSSL_BENCH", ROOT / "runs" / "bench"))
    home.mkdir(parents=True, exist_ok=True)
    precision = precision_here(RuntimeConfig(device=options.device, precision="auto"))
    plain = os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(options.threads), "ICSSL_BENCH": str(home)}
    plain |= {"TOKENIZERS_PARALLELISM": "true", "ICSSL_DEVICE": options.device}
    peers, ours = worker(plain, home / "peers.log"), worker(MALLOC | plain, home / "ours.log")
    about, kind = machine(), "bf16" if precision == "bf16" else "float32"
    where = f"{about['cpu']} ({about['instructions']}), threads: {options.threads}, ours in {kind}"
    if options.device == "cuda":
        where = f"{torch.cuda.get_device_name()}, torch {torch.__version__}, ours in {kind}"
    planned = works(options.device, precision == "bf16", options.quick)
    planned = [one for one in planned if any(part in one.name for part in options.only)]
    rows: list[dict] = []
    for one in (bar := tqdm(planned, unit="work")):
        rows += compare(one, options.rounds, ours, peers, bar)
        table = keep(rows, where, options.out, options.only != [""])
    for process in (ours, peers):
        process.shutdown()
    print(f"\n{where}\n{table.drop(columns='machine').to_string(index=False)}")


if __name__ == "__main__":
    main()
