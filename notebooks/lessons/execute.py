"""Execute every lesson and every solution, as `make lessons` does.

    .venv/bin/python notebooks/lessons/execute.py [03 07] [--limit 120] [--jobs 2]

Fails when a notebook fails or takes longer than the limit, or when a self-check says anything but "Not yet" to a
lesson's stub and "Right" to its solution. Executed notebooks go to runs/lessons/executed; runs/lessons/times.csv has
seconds and memory. What is newer than its notebook and all code is not executed again.
"""

import argparse
import json
import os
import re
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path

import pandas as pd
import papermill
import psutil
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from tqdm import tqdm
from traitlets.config import Config

from icssl_lib.files import written_whole

LESSONS = Path(__file__).parent


def execute(notebook: Path, output: Path, limit: float) -> tuple[float, float, str]:
    """Run a notebook to its end, or for ``limit`` seconds; what failed is left as ``*.failed.ipynb``.

    Returns: seconds, the most memory in GB of all kernels of this process, and what went wrong (empty: nothing).
    """
    failed = output.with_suffix(".failed.ipynb")
    failed.parent.mkdir(parents=True, exist_ok=True)
    output.unlink(missing_ok=True)
    problem, late, started = "", f"took longer than {limit:.0f} s", time.monotonic()
    stop, memory = threading.Event(), [0.0]
    threading.Thread(target=watch, args=(stop, memory), daemon=True).start()
    try:
        papermill.execute_notebook(
            str(notebook), str(failed), kernel_name="python3", progress_bar=False,
            resources={"metadata": {"path": str(notebook.parent)}},  # not cwd=, which moves the other jobs too
            timeout_func=lambda _: max(1, started + limit - time.monotonic()),
            config=Config({"NotebookClient": {"store_widget_state": False}}),  # of no use without its kernel
        )  # fmt: skip
    except CellTimeoutError:
        problem = late
    except papermill.PapermillExecutionError as error:
        problem = f"{error.ename}: {error.evalue}"
    except DeadKernelError:
        problem = "the kernel died; out of memory?"
    stop.set()
    seconds = time.monotonic() - started
    problem = problem or wrong_checks(failed, solved=notebook.parent.name == "solutions") or late * (seconds > limit)
    if not problem:
        os.replace(failed, output)
    return seconds, max(memory), " ".join(problem.split())


def watch(stop: threading.Event, memory: list[float]) -> None:
    """Append, each second, the GB that this process's descendants hold; on Linux, pages that they share count once."""
    while not stop.wait(1):
        with suppress(psutil.Error):  # one has just ended
            held = [child.memory_full_info() for child in psutil.Process().children(recursive=True)]
            memory.append(sum(getattr(process, "pss", process.rss) for process in held) / 1e9)


def wrong_checks(executed: Path, solved: bool) -> str:
    """The exercises to which the self-check did not say what it must; empty: none."""
    expected, wrong = ("Right" if solved else "Not yet"), []
    for cell in json.loads(executed.read_text(encoding="utf-8"))["cells"]:
        exercises = re.findall(r"""\bcheck\(["'](\d+\.\d+)["']""", "".join(cell["source"]))
        if cell["cell_type"] == "code" and exercises:
            said = "".join("".join(output.get("text", "")) for output in cell["outputs"])
            if re.findall(r"^(Right|Not yet): ", said, re.MULTILINE) != [expected] * len(exercises):
                wrong += exercises
    return f"exercise {', '.join(wrong)}: the check does not say “{expected}”" if wrong else ""


def run(lessons: Path, out: Path, only: list[str], limit: float, jobs: int = 1, code: Sequence = ()) -> pd.DataFrame:
    """Execute the lessons, then their solutions.

    Args:
        only: beginnings of file names ("03"); empty: all.
        jobs: at a time; with more than one, memory is that of all of them.
        code: files after whose change all is executed again.

    Returns: notebook, seconds, peak_gb, problem: what times.csv holds, those of earlier calls among them.
    """
    found = [*sorted(lessons.glob("[0-9]*.ipynb")), *sorted(lessons.glob("solutions/[0-9]*.ipynb"))]
    names = {path: path.relative_to(lessons).with_suffix("").as_posix() for path in found}
    outputs = {path: out / "executed" / f"{name}.ipynb" for path, name in names.items()}
    chosen = [path for path in found if not only or path.name.startswith(tuple(only))]
    if not chosen:
        raise SystemExit(f"{lessons}: no lesson {' '.join(only)}")
    times = out / "times.csv"
    out.mkdir(parents=True, exist_ok=True)
    rows = pd.read_csv(times, index_col="notebook", keep_default_na=False).to_dict("index") if times.is_file() else {}

    def is_done(path: Path) -> bool:
        newest = max(file.stat().st_mtime for file in [path, *code])
        return names[path] in rows and outputs[path].is_file() and outputs[path].stat().st_mtime > newest

    with ThreadPoolExecutor(jobs) as pool:
        begun = {pool.submit(execute, p, outputs[p], limit): names[p] for p in chosen if not is_done(p)}
        for future in tqdm(as_completed(begun), total=len(begun), unit="notebook"):
            name, (seconds, peak, problem) = begun[future], future.result()
            rows[name] = {"seconds": round(seconds, 1), "peak_gb": round(peak, 2), "problem": problem}
            tqdm.write(f"{name:30} {seconds:6.1f} s  {peak:4.1f} GB  {problem or 'ok'}")
            table = pd.DataFrame({name: rows[name] for name in names.values() if name in rows}).T
            with written_whole(times) as partial:
                table.to_csv(partial, index_label="notebook")
    return pd.read_csv(times, keep_default_na=False)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("only", nargs="*", help="beginnings of file names; default: all")
    parser.add_argument("--limit", type=float, default=120, help="seconds for each (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="notebooks at a time (default: %(default)s)")
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # a lesson that asks a hub for anything is wrong
    os.environ.pop("MPLBACKEND", None)  # with "Agg" a kernel would show no figure
    from lesson_tools import ROOT, workshop  # here, since transformers reads HF_HUB_OFFLINE when it is imported

    started = time.monotonic()
    _, out = workshop()
    print(f"the workshop's catalogue and encoders: {time.monotonic() - started:.1f} s")
    code = [*(ROOT / "icssl_lib").rglob("*.py"), *LESSONS.glob("*.py"), ROOT / "config" / "lessons.yaml"]
    times = run(LESSONS, out, options.only, options.limit, options.jobs, code)
    print(times.to_string(index=False))
    return int((times["problem"] != "").any())


if __name__ == "__main__":
    raise SystemExit(main())
