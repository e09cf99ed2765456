"""Kill -9 a study at random moments; the same command must finish it, with the numbers of an undisturbed run.

    .venv/bin/python tests/system/kill_study.py config/smoke.yaml          ten kills, a few minutes

By turns only the study's main process is killed, and its whole process group. Within ten seconds nothing that the
study started may be left: a job ends at once, but one that is still importing when it has imported, which takes two
seconds on an idle machine. A study that ends before its moment came is compared, and a new one begun.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import psutil

MARK = "ICSSL_KILL_TEST"  # in the environment of everything that a study starts
GRACE = 10.0  # seconds that a killed study's processes may last


def start(config: Path, out: Path, mark: str) -> subprocess.Popen:
    """The study, in a process group of its own; what it says goes to ``<out>.txt``."""
    command = [sys.executable, "-m", "icssl_lib.runs", "study", str(config), "--out", str(out)]
    with out.with_suffix(".txt").open("a") as log:
        return subprocess.Popen(
            command, env=os.environ | {MARK: mark}, stdout=log, stderr=log, start_new_session=True
        )  # fmt: skip


def alive(mark: str) -> Iterator[psutil.Process]:
    """Processes that bear the mark. (A forked kernel shows the environment of the process that it is a fork of.)"""
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                yield process
        except psutil.Error:
            continue


def orphans_after(seconds: float, mark: str) -> tuple[float, list[dict]]:
    """Wait until nothing bears the mark, at most ``seconds``: how long it took, and what is left then."""
    started = time.monotonic()
    while True:
        left = list(alive(mark))
        waited = time.monotonic() - started
        if not left or waited > seconds:
            return waited, [p.as_dict(["pid", "cmdline", "status"], ad_value="?") for p in left if p.is_running()]
        time.sleep(0.05)


def numbers(out: Path) -> str:
    """What must be the same to the last digit: results.csv without ``seconds``, and every prediction."""
    results = pd.read_csv(out / "results.csv", dtype=str, keep_default_na=False).drop(columns="seconds")
    files = sorted((out / "predictions").rglob("*.parquet"))
    return "".join(frame.to_csv(index=False) for frame in [results, *map(pd.read_parquet, files)])


def kill_often(config: Path, folder: Path, reference: Path, kills: int, seed: int, longest: float) -> list[str]:
    """Kill ``kills`` times, then let the study finish. Returns one line per kill.

    Args:
        folder: empty; the studies run in it.
        reference: the run folder of an undisturbed run.
        longest: a kill comes up to so many seconds after its study began.

    Raises:
        AssertionError: something outlived a kill, the study failed, or its numbers are others.
    """
    rng, mark, lines, expected = random.Random(seed), uuid.uuid4().hex, [], numbers(reference)
    try:
        for run in range(100):
            out, done = folder / f"run{run}", False
            while not done:
                last = len(lines) == kills
                process, moment = start(config, out, mark), rng.uniform(0.2, longest)
                try:
                    done = process.wait(None if last else moment) is not None
                except subprocess.TimeoutExpired:
                    main_only = len(lines) % 2 == 0
                    (os.kill if main_only else os.killpg)(process.pid, signal.SIGKILL)
                    process.wait()
                    waited, left = orphans_after(GRACE, mark)
                    finished = len(list((out / "records").rglob("*.json")))
                    what = "its main process" if main_only else "all of it"
                    lines.append(
                        f"killed {what} after {moment:.1f} s, all gone {waited:.2f} s later, {finished} records"
                    )
                    print(lines[-1], flush=True)
                    assert not left, f"outlived the kill by {GRACE} s: {left}"
            said = out.with_suffix(".txt").read_text()
            assert process.returncode == 0, said[-3000:]
            assert numbers(out) == expected, f"other numbers in {out}"
            if last:
                return lines
    finally:
        for process in alive(mark):
            process.kill()
    raise AssertionError("the study always ends before it is killed: give a smaller --longest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reference", type=Path, help="run folder of an undisturbed run; else one is made first")
    parser.add_argument("--longest", type=float, help="seconds; default: 0.8 of the undisturbed run's")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="icssl-kill"))  # stays where something is wrong
    reference = options.reference
    if reference is None:
        assert start(options.config, folder / "undisturbed", "").wait() == 0, "the undisturbed run failed"
        reference = folder / "undisturbed"
    longest = options.longest or 0.8 * json.loads((reference / "wall.json").read_text())["seconds"]
    kill_often(options.config, folder, reference, options.kills, options.seed, longest)
    print(f"{options.kills} kills; results.csv, seconds aside, and predictions are those of the undisturbed run")
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
