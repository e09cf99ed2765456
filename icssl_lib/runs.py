"""Running the study: a strict papermill, run records, the results table, and the command line.

python -m icssl_lib.runs study config/quick.yaml [--cores N] [--out DIR] [--profile DIR]
python -m icssl_lib.runs plan config/quick.yaml [--cores N] [--hardware NAME] [--no-measure] [--json FILE]
python -m icssl_lib.runs fetch CONFIG [--dataset NAME] [--out DIR]
python -m icssl_lib.runs execute NOTEBOOK OUTPUT name=value ...
python -m icssl_lib.runs collect CONFIG OUT
"""

import argparse
import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pandas as pd

from icssl_lib import warm
from icssl_lib.catalogue import Catalogue
from icssl_lib.config import ConfigError, Study, load_config, nearest
from icssl_lib.images import all_cores, written_whole
from icssl_lib.methods import METHODS, adapted_by, entry_of

ROOT = Path(__file__).resolve().parent.parent
RESULTS = [
    *("dataset", "method", "fraction", "seed", "n_train"),
    *("accuracy", "macro_f1", "head_macro_f1", "tail_macro_f1", "split_hash", "seconds"),
]

# glibc gives large blocks back to the system when freed, and each training step has them mapped and zeroed anew: the
# gradient of a vocabulary of 30,000 alone is 46 MB. Kept, a step of MiniLM-L6 takes 0.100 s of CPU instead of 0.137.
# Pages of 2 MB, where Linux gives them on request, save the CPU most of its looking up of addresses.
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "67108864",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


class RunError(RuntimeError):
    """The study cannot go on; the message says what, where and what to do."""


# --- notebooks ---


def parameters_of(notebook: Path) -> dict[str, Any]:
    """Names and defaults in the cell tagged ``parameters``.

    Raises: RunError: no such notebook, or no cell with that tag (papermill would then run with defaults).
    """
    import papermill

    if not notebook.is_file():
        raise RunError(
            f"{notebook}: no such notebook; {nearest(notebook.name, [p.name for p in notebook.parent.glob('*.ipynb')])}"
        )
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    tagged = [c for c in cells if "parameters" in c["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise RunError(f"{notebook}: {len(tagged)} cells are tagged `parameters`, expected 1; tag the first code cell")
    return papermill.inspect_notebook(str(notebook))


def as_declared(texts: dict[str, str], known: dict[str, Any]) -> dict[str, Any]:
    """Values as a command line has them: text where the notebook's default is one (a path, a name that looks like a
    number), else what they are in YAML. known: of `parameters_of`."""
    import yaml

    is_text = {name for name, about in known.items() if about["default"][:1] in ("'", '"')}
    return {name: value if name in is_text else yaml.safe_load(value) for name, value in texts.items()}


def execute(notebook: Path, output: Path, parameters: dict[str, Any]) -> None:
    """Run a notebook by papermill, refusing parameters that it does not know, which papermill only warns about.

    The kernel speaks over IPC: parallel kernels clash on TCP ports. One whose process died is tried once more.
    The output appears when the notebook has run to its end; after an error it stands beside it as ``*.failed.ipynb``.

    Raises: RunError: unknown parameter (with the nearest name), or the notebook failed.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError
    from traitlets.config import Config

    known = parameters_of(notebook)
    for name in parameters:
        if name not in known:
            raise RunError(f"{notebook.name} has no parameter '{name}'; {nearest(name, list(known))}")
    failed = output.with_suffix(".failed.ipynb")
    failed.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="icssl") as sockets:
        os.environ["JUPYTER_RUNTIME_DIR"] = sockets
        os.environ.pop("MPLBACKEND", None)  # of this process; with "Agg" the kernel would show no figure
        if warm.SOCKET in os.environ:
            warm.install_kernel(Path(sockets))
        # Without an `ip` of its own each kernel binds "kernel-ipc" in the working folder, and takes another's calls.
        ipc = {"transport": "ipc", "ip": f"{sockets}/kernel"} if os.name == "posix" else {}
        # A widget's state is of no use without its kernel: megabytes, and a page that asks a server for code.
        settings = {"KernelManager": ipc, "NotebookClient": {"store_widget_state": False}}
        for attempt in (1, 2):
            try:
                papermill.execute_notebook(
                    str(notebook), str(failed), parameters, kernel_name="python3", progress_bar=False,
                    log_output=True, cwd=str(notebook.parent), config=Config(settings), start_timeout=600,
                )  # fmt: skip
            except papermill.PapermillExecutionError as error:
                raise RunError(f"{notebook.name}: {error.ename}: {error.evalue} (all of it: {failed})") from None
            except DeadKernelError:
                if attempt == 2:
                    raise RunError(f"{notebook.name}: the kernel died twice; out of memory?") from None
                continue
            break
    os.replace(failed, output)


# --- records ---


def piece(out: Path, kind: str, dataset: str, method: str, seed: int) -> Path:
    """Where a piece of the study lies below the run folder, without suffix: kind/dataset/method/seed<k>."""
    return out / kind / dataset / method / f"seed{seed}"


def machine() -> dict[str, Any]:
    """What the record says of hardware and software."""
    import torch
    import transformers

    cpu = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())[1]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    instructions = torch.backends.cpu.get_cpu_capability()
    if getattr(torch.cpu, "get_capabilities", dict)().get("amx_bf16"):
        instructions += ", AMX"
    about = {"cpu": cpu, "instructions": instructions, "cores": os.cpu_count()}
    return about | {"device": device, "system": platform.platform(), **versions}


def save_record(
    out: Path,
    catalogue: Catalogue,
    method: str,
    seed: int,
    study: Study,
    scores: pd.DataFrame,
    predictions: pd.DataFrame,
) -> None:
    """Write what `finetune.classify_fractions` returned: predictions (parquet), then the record (JSON).

    The record holds what the numbers depend on: split, settings, hardware and software.
    """
    from icssl_lib.adapt import precision_here

    keys = {"dataset": catalogue.name, "method": method, "seed": seed}
    path = piece(out, "predictions", **keys).with_suffix(".parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        predictions.to_parquet(part, index=False)
    settings = study.of(method).model_dump(mode="json", include={"text", "vision", "adapt", "finetune", "runtime"})
    record = {**keys, "split_hash": catalogue.split_hash, "fractions": scores.to_dict("records")}
    record["precision"] = precision_here(study.runtime)  # what "auto" was
    path = piece(out, "records", **keys).with_suffix(".json")
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as part:
        part.write_text(json.dumps(record | {"settings": settings, "machine": machine()}, indent=1))


def collect(study: Study, out: Path) -> pd.DataFrame:
    """All records of the study as ``results.csv``, in the order of the configuration.

    Raises: RunError: a record is missing.
    """
    rows = []
    for dataset in study.datasets:
        for method in study.methods:
            for seed in study.seeds:
                path = piece(out, "records", dataset, method, seed).with_suffix(".json")
                if not path.is_file():
                    raise RunError(f"{path}: no such record; run notebook 03 for it, or `make study`")
                record = json.loads(path.read_text())
                rows += [scores | {"split_hash": record["split_hash"]} for scores in record["fractions"]]
    results = pd.DataFrame(rows)[RESULTS]  # in the order of the configuration, the fractions within a seed
    with written_whole(out / "results.csv") as part:
        results.to_csv(part, index=False, float_format="%.6f")
    shutil.rmtree(out / "trainings", ignore_errors=True)  # weights that methods shared; all have their records
    return results


def fetch_datasets(study: Study, out: Path, only: str | None = None) -> None:
    """Fetch metadata and pictures of the datasets that have some; what came is counted in fetched.json of each.

    Raises: ConfigError: no such dataset. FetchError, CatalogueError: see icssl_lib.fetch.
    """
    from icssl_lib.fetch import fetch

    remote = [name for name, source in study.datasets.items() if source.source == "amazon"]
    if only is not None and only not in remote:
        raise ConfigError(f"datasets: no dataset '{only}' that is fetched; {nearest(only, remote)}")
    for name in remote if only is None else [only]:
        counted = json.dumps(fetch(name, study.datasets[name]), indent=1) + "\n"
        path = out / "catalogues" / name / "fetched.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file() or path.read_text(encoding="utf-8") != counted:  # else the catalogue would run again
            with written_whole(path) as part:
                part.write_text(counted, encoding="utf-8")
        print(f"{name}: {counted}", end="")


# --- the DAG ---


def digest(*parts: Any) -> str:
    """A short hash of configuration parts: a job runs again when its own part of the configuration changed."""
    text = json.dumps([p.model_dump(mode="json") if hasattr(p, "model_dump") else p for p in parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def check_methods(study: Study) -> None:
    """Raises: ConfigError: a method that neither registry nor variants know or whose encoder no other makes, a variant
    with a method's name or of none, or one that changes an adaptation that does not take place; or no `origin`."""
    for name, variant in study.variants.items():
        if name in METHODS:
            raise ConfigError(f"variants: '{name}' is a method already; choose another name")
        if variant.of not in METHODS:
            raise ConfigError(f"variants.{name}.of: no method '{variant.of}'; {nearest(variant.of, list(METHODS))}")
        if variant.adapt and not METHODS[variant.of].adapts:
            raise ConfigError(f"variants.{name}.adapt: '{variant.of}' adapts nothing; name a method that does")
        if variant.vision and (towers := METHODS[variant.of].encoder):
            raise ConfigError(f"variants.{name}.vision: '{variant.of}' has its vision tower from '{towers}'; vary that")
    for method in study.methods:
        if method not in (known := [*METHODS, *study.variants]):
            raise ConfigError(f"methods: no method '{method}'; {nearest(method, known)}")
        entry, made_by = entry_of(study, method), adapted_by(study, method)
        if entry.looks and made_by and entry_of(study, made_by).pictures == "none":
            raise ConfigError(f"methods: '{method}' looks at pictures, and '{made_by}' adapts no vision tower")
        if made_by not in (None, *study.methods):
            raise ConfigError(f"methods: '{method}' classifies with the encoder of '{made_by}'; add '{made_by}'")
    if "origin" not in study.methods:
        raise ConfigError("methods: 'origin' is missing; every difference is taken from it")


def check_tables(study: Study) -> None:
    """Raises: ConfigError: a table that is not there; Snakemake would only miss an input."""
    for name, source in study.datasets.items():
        if source.source == "table" and not source.table.is_file():
            near = nearest(source.table.name, [path.name for path in source.table.parent.glob("*")])
            raise ConfigError(f"datasets.{name}.table: no such file: {source.table}; {near}")


@contextlib.contextmanager
def locked(out: Path) -> Iterator[int]:
    """Only one study at a time in a run folder. The lock falls with its process, however that ends, and with every
    process that was given the yielded file descriptor."""
    import fcntl

    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(f"{out}: a study runs in this folder already; wait for it, or give another --out") from None
        yield handle.fileno()


def snakemake(config: Path, out: Path, *options: str, cores: int | None = None) -> list[str]:
    """The command that runs the DAG of one configuration in its run folder.

    Args: cores: of this machine, where jobs run on it; what is timed takes all of them. None: jobs run elsewhere.
    """
    here = [f"cores={cores}"] if cores else []
    return [
        *(sys.executable, "-m", "icssl_lib.warm", "dag"),
        *("--snakefile", str(ROOT / "Snakefile"), "--directory", str(out)),
        # As an address, since Snakemake reads values as YAML, for which a path may hold a comment or end in a quote.
        *("--config", f"study={config.resolve().as_uri()}", *here),
        *("--scheduler", "greedy", "--nolock", "--rerun-incomplete"),
        *("--rerun-triggers", "mtime", "params", "input", "--keep-going", "--nocolor", *options),
    ]  # fmt: skip


def written_by(process: subprocess.Popen, log: IO[str]) -> Iterator[str]:
    """The lines that a process appends to a file which is open for reading, until the process ends.

    Not a pipe: Snakemake would break on one whose reader was killed, before it has cancelled its jobs.
    """
    rest = ""
    while True:
        ended = process.poll() is not None  # asked before reading, so that the last lines are not missed
        rest += log.read()
        *lines, rest = rest.split("\n")
        yield from lines
        if ended:
            yield rest
            return
        time.sleep(0.2)


def follow(lines: Iterable[str], label: str) -> tuple[int, list[Path]]:
    """Show the DAG's progress as one line with time left; jobs done, failed jobs' logs."""
    from tqdm import tqdm

    failures, in_error, jobs = [], False, 0
    with tqdm(total=None, desc=label, unit="job", smoothing=0.1, mininterval=1) as bar:
        for line in lines:
            if match := re.match(r"(\d+) of (\d+) steps", line):
                jobs, bar.total = int(match[1]), int(match[2])
                bar.update(jobs - bar.n)
            elif line.startswith("Error in rule"):
                in_error = True
            elif in_error and (match := re.match(r"\s+log: (\S+)", line)):
                failures.append(Path(match[1].rstrip(",")))
                in_error = False
    return jobs, failures


def watch_memory(stop: threading.Event) -> dict[str, float]:
    """Peak memory of this process's descendants in GB, updated until ``stop``; pages that forks share count once."""
    import psutil

    peak = {"gb": 0.0}

    def watch() -> None:
        while not stop.wait(5):
            total = 0
            for child in psutil.Process().children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    memory = child.memory_full_info()
                    total += getattr(memory, "pss", memory.rss)  # pss: on Linux
            peak["gb"] = max(peak["gb"], total / 1e9)

    threading.Thread(target=watch, daemon=True).start()
    return peak


def show_plan(config: Path, out: Path, cores: int, hardware: str | None, measured: bool, saved: Path | None) -> None:
    """Print what a study costs (icssl_lib.plan) and how many jobs are left to run; ``saved``: a JSON file for it.

    Raises: ConfigError, PlanError, CatalogueError; RunError: the DAG is not sound.
    """
    from icssl_lib import plan as planning  # imports torch

    study = load_config(config)
    check_methods(study)
    check_tables(study)
    cost = planning.plan(study, out, cores, hardware, measured)
    print(planning.show(cost))
    if saved is not None:
        planning.save(cost, saved)
    out.mkdir(parents=True, exist_ok=True)
    command = snakemake(config, out, "--dry-run", "--quiet", "rules")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RunError(f"the DAG is not sound: {(done.stdout + done.stderr).strip()}")
    left = re.search(r"^total +(\d+)", done.stdout + done.stderr, re.MULTILINE)
    print(f"{left[1] if left else 'No'} jobs are left to run in {out}")


def may_fork(device: str) -> bool:
    """Whether jobs may be forks of one process: a GPU's state does not survive one, so there kernels start cold."""
    devices = Path("/dev")  # kfd: AMD's; dxg: Windows', inside WSL
    has_gpu = sys.platform != "linux" or any(path for kind in ("nvidia*", "kfd", "dxg") for path in devices.glob(kind))
    return device == "cpu" or (device == "auto" and not has_gpu)


def all_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


@contextlib.contextmanager
def own_gpus(count: int, folder: Path) -> Iterator[None]:
    """Show this process and its kernel ``count`` GPUs that no other job of the study in ``folder`` uses.

    The locks fall with the process, however that ends. Without a GPU nothing happens.

    Raises: RunError: fewer are free.
    """
    import fcntl

    gpus = all_gpus() if count else []
    with contextlib.ExitStack() as stack:
        taken: list[str] = []
        for position, gpu in enumerate(gpus):
            handle = stack.enter_context((folder / f".gpu{position}.lock").open("w"))
            with contextlib.suppress(BlockingIOError):
                if len(taken) < count:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    taken.append(gpu)
        if gpus:
            if len(taken) < count:
                raise RunError(f"{count} GPUs are needed, {len(taken)} of {len(gpus)} are free: runtime.processes")
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        yield


def run_study(config: Path, out: Path, cores: int | None, profile: Path | None = None) -> None:
    """Run or finish the study of a configuration; print Table 2 and where everything lies.

    Args:
        cores: at most so many jobs at a time; None: one per core of this machine, or as the profile says.
        profile: folder of a Snakemake profile whose executor runs the jobs elsewhere. They are then no forks of a warm
            server and do not watch this process, which is on another machine; Snakemake does, and cancels them.

    Raises: ConfigError, RunError.
    """
    study = load_config(config)
    check_methods(study)
    check_tables(study)
    if profile is None:
        cores = cores or all_cores()
    elif not any(profile.glob("config*.yaml")):
        known = [str(p.parent) for p in sorted((ROOT / "profiles").glob("*/config*.yaml"))]
        raise ConfigError(f"--profile: {profile} is no folder with a Snakemake profile; there are {', '.join(known)}")
    started, stop = time.perf_counter(), threading.Event()
    log_file = out / "study.log"
    with locked(out) as lock, log_file.open("a") as log, log_file.open(errors="replace") as reader:
        reader.seek(0, os.SEEK_END)
        peak = watch_memory(stop)
        environment = MALLOC | os.environ | {
            "OMP_NUM_THREADS": str(study.runtime.threads), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
        }  # fmt: skip
        command = snakemake(config, out, *(("--cores", str(cores)) if cores else ()), cores=None if profile else cores)
        if profile is None:
            environment[warm.STUDY] = str(os.getpid())
        else:
            command += ["--profile", str(profile.resolve())]
            if setpriv := shutil.which("setpriv"):  # Linux: when this process is killed, Snakemake cancels its jobs
                command = [setpriv, "--pdeathsig", "INT", *command]
        here = profile is None and may_fork(study.runtime.device)
        if profile is None and not here:  # one job at a time on a GPU
            gpus = max(1, len(all_gpus()))
            if study.runtime.processes > gpus:
                raise ConfigError(f"runtime.processes: {study.runtime.processes} need as many GPUs; here: {gpus}")
            command += ["--resources", f"gpu={gpus}"]
        with warm.serving(environment) if here else contextlib.nullcontext():
            # Through a profile Snakemake outlives a killed study while it cancels jobs: the lock stays with it.
            heirs = [lock] if profile else ()
            process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT, pass_fds=heirs)
            jobs, failures = follow(written_by(process, reader), study.study)
            failed = process.wait() != 0
        stop.set()
        if failed:
            for path in failures:
                lines = (out / path).read_text(errors="replace").splitlines() if (out / path).is_file() else []
                print(f"{path}: " + " ".join(lines[-1:]), file=sys.stderr)
            logs = f"the whole log is {out / 'study.log'}" + (f", the jobs' are in {out}/.snakemake" if profile else "")
            raise RunError(f"{len(failures)} jobs failed; {logs}. Mended, the same command goes on")
    wall = {
        "seconds": round(time.perf_counter() - started, 1),
        "jobs": jobs,
        "cores": cores,
        "peak_memory_gb": round(peak["gb"], 2),
        "machine": json.loads(next((out / "records").rglob("*.json")).read_text())["machine"],
    }
    if profile is not None:  # a queue's time says nothing of a machine
        wall["where"] = f"through {profile}"
        return print_summary(study, out, wall)
    kept = out / "wall.json"  # of the call that ran the most jobs: one that only finished the rest says little
    if not kept.is_file() or json.loads(kept.read_text())["jobs"] <= jobs:
        with written_whole(kept) as part:
            part.write_text(json.dumps(wall, indent=1))
    print_summary(study, out, wall)


def print_summary(study: Study, out: Path, wall: dict[str, float]) -> None:
    """Table 2 on the terminal, and where everything lies."""
    from icssl_lib.metrics import format_table2

    print(f"\n{format_table2(pd.read_csv(out / 'results.csv'))}\n")
    where = wall.get("where") or f"on {wall['cores']} cores, at most {wall['peak_memory_gb']:.1f} GB"
    print(f"Done in {wall['seconds'] / 60:.1f} minutes {where}. In {out}:")
    for name, what in (
        ("report/index.html", "the report: open it in a browser"),
        ("results.csv", "every number, one row per data set, method, fraction and seed"),
        ("figures/", "each figure as png and svg beside the csv it was drawn from"),
        ("encoders/, classifiers/", "plain Hugging Face folders"),
        ("predictions/", "every prediction on Test, as parquet"),
        ("notebooks/", "the executed notebooks"),
    ):
        print(f"  {name:24} {what}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="icssl_lib.runs", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("study", "plan", "publish"):
        command = commands.add_parser(name)
        command.add_argument("config", type=Path)
        command.add_argument("--out", type=Path, help="default: runs/<study>")
        command.add_argument("--cores", type=int, help="jobs at a time; default: one per core")
        if name == "study":
            command.add_argument("--profile", type=Path, help="a Snakemake profile, such as profiles/slurm")
        if name == "plan":
            command.add_argument("--hardware", help="h100, a100, ...: hours by its data sheet, on --cores of them")
            command.add_argument("--no-measure", action="store_true", help="spare 30 s; no hours for this machine")
            command.add_argument("--json", type=Path, metavar="FILE", help="save it")
    command = commands.add_parser("fetch")
    command.add_argument("config", type=Path)
    command.add_argument("--dataset", help="default: all that are fetched (source: amazon)")
    command.add_argument("--out", type=Path, help="default: runs/<study>")
    command = commands.add_parser("execute")
    command.add_argument("notebook", type=Path)
    command.add_argument("output", type=Path)
    command.add_argument("parameters", nargs="*", metavar="name=value")
    command.add_argument("--gpus", type=int, default=0, help="how many GPUs of this machine the job is to have")
    for name in ("collect", "report"):
        command = commands.add_parser(name)
        command.add_argument("config", type=Path)
        command.add_argument("out", type=Path)
    options = parser.parse_args(argv)
    warm.exit_with_study()
    try:
        if options.command == "execute":
            if bare := [pair for pair in options.parameters if "=" not in pair]:
                raise RunError(f"parameter '{bare[0]}': expected name=value")
            pairs = dict(pair.split("=", 1) for pair in options.parameters)
            gpus = options.gpus if warm.STUDY in os.environ else 0  # elsewhere the cluster has given the job its own
            with own_gpus(gpus, Path.cwd()):
                execute(options.notebook, options.output, as_declared(pairs, parameters_of(options.notebook)))
        elif options.command == "collect":
            collect(load_config(options.config), options.out)
        elif options.command == "report":
            from icssl_lib.report import build

            build(load_config(options.config), options.out)
        else:
            out = options.out or Path("runs") / load_config(options.config).study
            if options.command == "fetch":
                fetch_datasets(load_config(options.config), out, options.dataset)
            elif options.command == "study":
                run_study(options.config, out, options.cores, options.profile)
            elif options.command == "publish":
                from icssl_lib.publish import publish

                study = load_config(options.config)
                own = all(source.source == "synthetic" for source in study.datasets.values())
                for path in publish(study.study, out, ROOT, words=own):
                    print(f"filled {path.relative_to(ROOT)}")
            else:
                cores = options.cores or (1 if options.hardware else all_cores())
                show_plan(options.config, out, cores, options.hardware, not options.no_measure, options.json)
    except (RunError, ValueError, OSError) as error:  # ConfigError, CatalogueError, ModelError: ValueErrors
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
