"""The DAG of a study: Snakemake (`python -m icssl_lib.dag OPTIONS`), and processes that share GPUs and end together."""

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from resource import RUSAGE_CHILDREN, getrusage
from subprocess import Popen, TimeoutExpired
from typing import IO, Any

import psutil
from joblib import cpu_count
from tqdm import tqdm

from icssl_lib.config import ConfigError, Study, nearest
from icssl_lib.files import locked, written_whole
from icssl_lib.methods import METHODS, adapted_by, entry_of

ROOT = Path(__file__).resolve().parent.parent
STUDY = "ICSSL_STUDY"  # in the environment of a study's processes on this machine: its pid

# glibc gives large blocks back to the system when freed, and each training step has them mapped and zeroed anew: the
# gradient of a vocabulary of 30,000 alone is 46 MB. Kept, a step of MiniLM-L6 takes 0.100 s of CPU instead of 0.137.
MALLOC = {"MALLOC_MMAP_THRESHOLD_": "2000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000", "MALLOC_TOP_PAD_": "67108864"}


class RunError(RuntimeError):
    """The study cannot go on; the message says what, where and what to do."""


def exit_with_study() -> None:
    """End this process when the study that started it here ends: after kill -9 of a study no job goes on writing."""

    def watch() -> None:
        while psutil.pid_exists(int(os.environ[STUDY])):
            time.sleep(0.2)
        os._exit(1)

    if STUDY in os.environ:
        threading.Thread(target=watch, daemon=True).start()


def all_gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    import torch  # two seconds that a job on a CPU need not wait

    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(i) for i in range(torch.cuda.device_count())]


@contextmanager
def own_gpus(count: int, folder: Path) -> Iterator[None]:
    """Show this process and its kernel ``count`` GPUs that no other job of the study in ``folder`` uses.
    Without a GPU nothing happens, nor where a cluster has given the job its own. Raises: RunError: fewer are free."""
    gpus, taken = all_gpus() if count and STUDY in os.environ else [], []
    with ExitStack() as locks:  # which fall with the process, however that ends
        for position, gpu in enumerate(gpus):
            with suppress(BlockingIOError):
                if len(taken) < count:
                    locks.enter_context(locked(folder / f".gpu{position}.lock", wait=False))
                    taken.append(gpu)
        if gpus and len(taken) < count:
            raise RunError(f"{count} GPUs are needed, {len(taken)} of {len(gpus)} are free; lower runtime.processes")
        if gpus:
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        yield


def check_methods(study: Study) -> None:
    """Raises: ConfigError: a method or variant that does not fit the registry or the others, or no `origin`."""
    for name, variant in study.variants.items():
        if name in METHODS:
            raise ConfigError(f"variants: '{name}' is a method already; choose another name")
        if variant.of not in METHODS:
            raise ConfigError(f"variants.{name}.of: no method '{variant.of}'; {nearest(variant.of, list(METHODS))}")
        if variant.adapt and not METHODS[variant.of].adapts:
            raise ConfigError(f"variants.{name}.adapt: '{variant.of}' adapts nothing; name a method that does")
        if "model" in variant.text and (before := METHODS[variant.of].after):
            raise ConfigError(f"variants.{name}.text.model: '{variant.of}' starts from '{before}'; vary that method")
        if variant.vision and (towers := METHODS[variant.of].encoder):
            raise ConfigError(f"variants.{name}.vision: '{variant.of}' uses the vision tower of '{towers}'; vary that")
    for method in study.methods:
        known = [*METHODS, *study.variants]
        if method not in known:
            raise ConfigError(f"methods: no method '{method}'; {nearest(method, known)}")
        for needed in (adapted_by(study, method), entry_of(study, method).after):
            if needed not in (None, *study.methods):
                raise ConfigError(f"methods: '{method}' starts from the encoder of '{needed}'; add '{needed}'")
    if "origin" not in study.methods:
        raise ConfigError("methods: 'origin' is missing; every difference is taken from it")


def snakemake(config: Path, out: Path, *options: str) -> list[str]:
    """The command that runs a configuration's DAG in its run folder."""
    return [
        *(sys.executable, "-m", "icssl_lib.dag", "--snakefile", str(ROOT / "Snakefile"), "--directory", str(out)),
        # As an address, since Snakemake reads values as YAML, for which a path may hold a comment or end in a quote.
        *("--config", f"study={config.resolve().as_uri()}"),
        *("--scheduler", "greedy", "--nolock", "--rerun-incomplete", "--keep-going", "--nocolor"),
        *("--rerun-triggers", "mtime", "params", "input", *options),
    ]


def start(config: Path, study: Study, out: Path, cores: int | None, profile: Path | None, lock: int) -> Popen:
    """Start Snakemake, which says what it does to study.log. Raises: ConfigError: more processes than GPUs."""
    environment = MALLOC | os.environ | {
        "OMP_NUM_THREADS": str(study.runtime.threads), "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
        "TQDM_MININTERVAL": "5",  # seconds between two states of a job's progress bar, each of which is a message
    }  # fmt: skip
    command, heirs = snakemake(config, out, *(["--cores", str(cores)] if cores else [])), []
    if profile is not None:
        command += ["--profile", str(profile.resolve())]
        heirs = [lock]  # Snakemake outlives a killed study while it cancels jobs, and the lock with it
        if setpriv := shutil.which("setpriv"):  # Linux: when this process is killed, Snakemake is interrupted
            command = [setpriv, "--pdeathsig", "INT", *command]
    else:
        environment[STUDY] = str(os.getpid())
        if gpus := all_gpus() if study.runtime.device != "cpu" else []:
            if study.runtime.processes > len(gpus):
                raise ConfigError(f"runtime.processes: {study.runtime.processes} exceeds the {len(gpus)} GPUs here")
            command += ["--resources", f"gpu={len(gpus)}"]  # one job at a time on a GPU
    with (out / "study.log").open("a") as log:
        return Popen(command, env=environment, stdout=log, stderr=log, pass_fds=heirs)


def follow(process: Popen, log: IO[str], label: str) -> tuple[int, list[str], str]:
    """Show Snakemake's progress, with time left, until it ends: jobs done, logs of failed jobs, what it said last.
    ``log`` is a file: on a pipe whose reader is killed, Snakemake would break before it cancels jobs."""
    text, jobs, ended = "", 0, False
    with tqdm(desc=label, unit="job", smoothing=0.1, mininterval=1) as bar:
        while not ended:
            with suppress(TimeoutExpired):
                process.wait(1)
            ended = process.returncode is not None  # asked before reading, so that the last lines are not missed
            new = log.read()
            text += new
            for done, total in re.findall(r"^(\d+) of (\d+) steps", new, re.MULTILINE):
                jobs, bar.total = int(done), int(total)
                bar.update(jobs - bar.n)
    failed = re.findall(r"^Error in rule .*\n(?:\s.*\n)*?\s+log: ([^\s,]+)", text, re.MULTILINE)
    return jobs, failed, " ".join(text.rpartition("\n\n")[2].split())


def run(config: Path, study: Study, out: Path, cores: int | None, profile: Path | None) -> dict[str, Any]:
    """Run or finish the study of a configuration, at most ``cores`` jobs at a time (None: one per core of this machine,
    or as the Snakemake profile in the folder ``profile`` says). Returns: seconds, jobs, cores, largest_process_gb,
    machine. Here they are kept in wall.json. Raises: ConfigError; RunError: one runs there already, or jobs failed."""
    cores = cores or (None if profile else cpu_count())
    begun, log, kept = time.perf_counter(), out / "study.log", out / "wall.json"
    out.mkdir(parents=True, exist_ok=True)
    log.touch()
    with ExitStack() as stack:
        try:
            lock = stack.enter_context(locked(out / ".lock", wait=False))
        except BlockingIOError:
            raise RunError(f"{out}: a study runs in this folder already; wait for it, or give another --out") from None
        reader = stack.enter_context(log.open(errors="replace"))
        reader.seek(0, os.SEEK_END)
        for sums in list(out.glob("[cep][alnr]*/**/SHA256SUMS")):  # pretrained, catalogues, encoders, classifiers
            if not all((sums.parent / line[66:]).is_file() for line in sums.read_text("utf-8", "replace").splitlines()):
                shutil.rmtree(sums.parent)  # a file is gone: all of it is made anew
        process = stack.enter_context(start(config, study, out, cores, profile, lock))
        jobs, failures, last = follow(process, reader, study.study)
    if process.returncode != 0:
        for path in failures:
            lines = (out / path).read_text(errors="replace").splitlines() if (out / path).is_file() else []
            print(f"{path}: " + " ".join(lines[-1:]), file=sys.stderr)
        logs = f"the whole log is {log}" + (f", the jobs' are in {out}/.snakemake" if profile else "")
        what = f"{len(failures)} jobs failed" if failures else f"Snakemake: {last[:1000]}"
        raise RunError(f"{what}; {logs}. Once mended, the same command resumes")
    wall = {"seconds": round(time.perf_counter() - begun, 1), "jobs": jobs, "cores": cores}
    wall["largest_process_gb"] = round(getrusage(RUSAGE_CHILDREN).ru_maxrss / 1e6, 2)  # kB on Linux
    wall["machine"] = json.loads(next((out / "records").rglob("*.json")).read_text())["machine"]
    # of the call that ran the most jobs: one that only finished the rest says little
    if profile is None and (not kept.is_file() or json.loads(kept.read_text())["jobs"] <= jobs):
        with written_whole(kept) as part:
            part.write_text(json.dumps(wall, indent=1))
    return wall


def _interrupt(*_: object) -> None:
    """Interrupt once: each thread of a dead study signals, and Snakemake would stop cancelling jobs at the second."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    exit_with_study()  # Snakemake is some seconds old when it reads a Snakefile, which could watch as well
    signal.signal(signal.SIGINT, _interrupt)  # a shell's background job would ignore it
    from snakemake.cli import main  # nobody else needs it

    main(sys.argv[1:])  # exits by itself
