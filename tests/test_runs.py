"""The strict papermill, records, the lock, and processes that end with those they serve."""

import json
import os
import signal
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from unittest import mock

import nbformat
import pandas as pd
import pytest

from icssl_lib import runs, warm
from icssl_lib.config import AdaptConfig, FinetuneConfig, RuntimeConfig, Study
from icssl_lib.runs import (
    RunError,
    as_declared,
    collect,
    digest,
    execute,
    follow,
    locked,
    own_gpus,
    parameters_of,
    piece,
    written_by,
)

POSIX = pytest.mark.skipif(os.name != "posix", reason="forks and sockets")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """`execute` and `install_kernel` change the environment of their process."""
    for name in ("JUPYTER_RUNTIME_DIR", "JUPYTER_PATH"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.delenv(warm.SOCKET, raising=False)
    monkeypatch.delenv(warm.STUDY, raising=False)


def write_notebook(path: Path, *sources: str, tag: bool = True) -> Path:
    """A notebook of code cells; the first holds the parameters."""
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    cells[0].metadata["tags"] = ["parameters"] if tag else []
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), path)
    return path


def gone(pid: int, seconds: float = 10) -> bool:
    """Whether the process ends (or is a zombie) within the time."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
            os.kill(pid, 0)
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


def wait_for(path: Path, seconds: float = 30) -> str:
    """What is written to a file, once something is."""
    until = time.monotonic() + seconds
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < until, f"{path}: still nothing"
        time.sleep(0.05)
    return path.read_text()


# --- notebooks


def test_parameters_of_the_studys_notebooks(root):
    notebooks = sorted((root / "notebooks").glob("0*.ipynb"))
    assert len(notebooks) >= 6
    assert all({"config", "out"} <= set(parameters_of(notebook)) for notebook in notebooks)
    assert set(parameters_of(root / "notebooks/02_adapt.ipynb")) == {"config", "out", "dataset", "method", "seed"}


def test_missing_notebook_gives_the_nearest(root):
    with pytest.raises(RunError, match=r"no such notebook; did you mean '02_adapt\.ipynb'\?"):
        parameters_of(root / "notebooks/02_adopt.ipynb")


def test_notebook_without_the_tag_is_refused(tmp_path):
    notebook = write_notebook(tmp_path / "a.ipynb", "seed = 0", tag=False)
    with pytest.raises(RunError, match="0 cells are tagged `parameters`, expected 1"):
        execute(notebook, tmp_path / "out.ipynb", {"seed": 1})


def test_unknown_parameter_gives_the_nearest_and_nothing_runs(root, tmp_path, capsys):
    notebook, output = root / "notebooks/02_adapt.ipynb", tmp_path / "out.ipynb"
    with pytest.raises(RunError, match=r"02_adapt\.ipynb has no parameter 'sead'; did you mean 'seed'\?"):
        execute(notebook, output, {"sead": 1})
    assert runs.main(["execute", str(notebook), str(output), "sead=1"]) == 1
    assert "did you mean 'seed'?" in capsys.readouterr().err
    assert runs.main(["execute", str(notebook), str(output), "seed"]) == 1
    assert "expected name=value" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_parameter_is_what_its_default_is(root):
    """A path with " #" is no YAML comment, and Norway's shop is called "no"."""
    texts = {"config": "/home/ann/course #2/a: b.yaml", "dataset": "no", "seed": "7", "method": "convirt"}
    found = as_declared(texts, parameters_of(root / "notebooks/02_adapt.ipynb"))
    assert found == texts | {"seed": 7}
    assert as_declared({"sead": "1"}, {}) == {"sead": 1}  # refused by `execute`


def test_notebook_runs_with_its_parameters_and_shows_every_figure(tmp_path):
    """Also where this process draws to no screen (MPLBACKEND=Agg)."""
    plot = "import matplotlib.pyplot as plt\nplt.plot([0, seed]);"
    notebook = write_notebook(tmp_path / "a.ipynb", "seed = 0\nname = 'a'", "print(seed + 1, name)", plot, plot)
    execute(notebook, tmp_path / "deep/out.ipynb", {"seed": 41})
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out.ipynb"]
    cells = nbformat.read(tmp_path / "deep/out.ipynb", 4).cells
    assert cells[2].outputs[0].text == "42 a\n"
    assert all(any("image/png" in o.get("data", {}) for o in cell.outputs) for cell in cells[3:])


def test_failing_notebook_stays_as_failed_and_leaves_no_output(tmp_path, capsys):
    notebook = write_notebook(tmp_path / "a.ipynb", "seed = 0", "raise ValueError('the picture is gone')")
    output = tmp_path / "out.ipynb"
    assert runs.main(["execute", str(notebook), str(output), "seed=1"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: a.ipynb: ValueError: the picture is gone")
    assert str(tmp_path / "out.failed.ipynb") in error
    assert not output.exists()
    failed = nbformat.read(tmp_path / "out.failed.ipynb", 4)
    assert any(o.output_type == "error" for cell in failed.cells for o in cell.get("outputs", []))


@POSIX
def test_dead_kernel_is_tried_once_more(tmp_path):
    source = "import os, pathlib\nn = len(list(pathlib.Path(folder).glob('try*')))\n"
    source += "pathlib.Path(folder, f'try{n}').touch()\nif n < deaths: os._exit(9)"
    notebook = write_notebook(tmp_path / "a.ipynb", "folder = ''\ndeaths = 0", source)
    for deaths in (1, 2):
        folder = tmp_path / str(deaths)
        folder.mkdir()
        parameters = {"folder": str(folder), "deaths": deaths}
        if deaths == 1:
            execute(notebook, folder / "out.ipynb", parameters)
        else:
            with pytest.raises(RunError, match="died twice"):
                execute(notebook, folder / "out.ipynb", parameters)
        assert len(list(folder.glob("try*"))) == 2
        assert (folder / "out.ipynb").exists() == (deaths == 1)


# --- records


@pytest.fixture
def study():
    genre = {"source": "synthetic", "genre": "beauty"}
    settings = {"datasets": {"zeta": genre, "alpha": genre}, "methods": ["origin", "convirt"], "seeds": [1, 0]}
    return Study.model_validate({"study": "made-up", "pretrain": {}} | settings)


def write_records(study, out):
    for dataset in study.datasets:
        for method in study.methods:
            for seed in study.seeds:
                keys = {"dataset": dataset, "method": method, "seed": seed}
                scores = dict.fromkeys(["accuracy", "macro_f1", "head_macro_f1", "tail_macro_f1"], 1 / 3)
                rows = [keys | scores | {"fraction": f, "n_train": 9, "seconds": 1.5} for f in (0.1, 1.0)]
                path = piece(out, "records", dataset, method, seed).with_suffix(".json")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(keys | {"split_hash": f"of {dataset}", "fractions": rows}))


def test_collect_orders_rows_as_the_configuration_does(study, tmp_path):
    write_records(study, tmp_path)
    collect(study, tmp_path)
    results = pd.read_csv(tmp_path / "results.csv")
    assert list(results.columns) == runs.RESULTS
    keys = results[["dataset", "method", "seed", "fraction"]].itertuples(index=False, name=None)
    assert list(keys) == [
        (d, m, k, f) for d in ("zeta", "alpha") for m in ("origin", "convirt") for k in (1, 0) for f in (0.1, 1.0)
    ]
    assert set(results.split_hash[results.dataset == "zeta"]) == {"of zeta"}
    assert "0.333333," in (tmp_path / "results.csv").read_text()


def test_collect_refuses_a_missing_record(study, tmp_path):
    write_records(study, tmp_path)
    path = piece(tmp_path, "records", "alpha", "convirt", 0).with_suffix(".json")
    path.unlink()
    with pytest.raises(RunError, match=r"alpha/convirt/seed0\.json: no such record; run notebook 03"):
        collect(study, tmp_path)
    assert not (tmp_path / "results.csv").exists()


def test_digest_sees_each_setting_and_nothing_else():
    assert digest(AdaptConfig()) == digest(AdaptConfig(epochs=50))
    assert digest(AdaptConfig()) != digest(AdaptConfig(epochs=49))
    assert digest(AdaptConfig(), FinetuneConfig()) != digest(FinetuneConfig(), AdaptConfig())
    assert digest(1, None, "a") == digest(1, None, "a")
    assert len(digest()) == 12
    assert digest(RuntimeConfig(checkpoint_minutes=1)) == digest(RuntimeConfig())  # changes no result
    assert digest(RuntimeConfig(precision="bf16")) != digest(RuntimeConfig())


# --- one study at a time, and none after its end


@POSIX
def test_second_study_in_a_folder_is_refused(tmp_path):
    with locked(tmp_path / "run"):
        with pytest.raises(RunError, match="a study runs in this folder already"), locked(tmp_path / "run"):
            pytest.fail("two studies in one folder")
        with locked(tmp_path / "other"):
            pass
    with locked(tmp_path / "run") as lock:
        heir = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=[lock])
    with pytest.raises(RunError), locked(tmp_path / "run"):
        pytest.fail("a process that was given the lock still lives")
    heir.communicate(b"\n")
    with locked(tmp_path / "run"):
        pass


@POSIX
def test_lock_falls_with_a_killed_process(tmp_path):
    code = "import sys, time; from pathlib import Path; from icssl_lib.runs import locked\n"
    code += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(RunError), locked(tmp_path):
            pytest.fail("locked twice")
    finally:
        holder.kill()
        holder.communicate()
    with locked(tmp_path):
        pass


@POSIX
def test_a_log_is_followed_to_its_last_line(tmp_path):
    path = tmp_path / "log"
    path.write_text("of an earlier call\n")
    code = "import sys, time\nfor i in range(3): print(f'{i + 1} of 3 steps (x%) done', flush=True); time.sleep(0.3)\n"
    code += "print('Error in rule a:'); print('    log: logs/a.log (check it)', end='')"
    with path.open("a") as log, path.open() as reader:
        reader.seek(0, os.SEEK_END)
        process = subprocess.Popen([sys.executable, "-c", code], stdout=log)
        lines = list(written_by(process, reader))
    assert lines[:3] == [f"{i} of 3 steps (x%) done" for i in (1, 2, 3)]
    assert lines[3:] == ["Error in rule a:", "    log: logs/a.log (check it)"]
    assert follow(lines, "toy") == (3, [Path("logs/a.log")])


@POSIX
def test_jobs_have_gpus_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-b,7")  # names are passed on as they are
    visible = lambda: os.environ["CUDA_VISIBLE_DEVICES"]  # noqa: E731
    code = "import os, sys, time; from pathlib import Path; from icssl_lib.runs import own_gpus\n"
    code += "with own_gpus(1, Path(sys.argv[1])): print(os.environ['CUDA_VISIBLE_DEVICES'], flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "4\n"
        with pytest.raises(RunError, match="3 GPUs are needed, 2 of 3 are free"), own_gpus(3, tmp_path):
            pytest.fail("a GPU was given twice")
    finally:
        other.kill()  # which sets its GPU free
        other.communicate()
    with own_gpus(2, tmp_path):
        assert visible() == "4,GPU-b"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with own_gpus(1, tmp_path):
        assert visible() == "0"
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with own_gpus(1, tmp_path):  # no GPU at all: nothing to share out
        assert visible() == ""


@POSIX
def test_exit_with_ends_a_process_soon_after_the_other():
    served = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    code = (
        f"import time; from icssl_lib.warm import exit_with; exit_with({served.pid}); print(flush=True); time.sleep(60)"
    )
    watcher = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        watcher.stdout.readline()
        time.sleep(0.6)
        assert watcher.poll() is None
        served.kill()
        served.wait()
        assert watcher.wait(timeout=2) == 1
    finally:
        for process in (served, watcher):
            process.kill()
            process.communicate()


# --- warm starts

SERVER = """
import os, sys, time
from icssl_lib import runs, warm

def main(arguments):
    if arguments[0] == "exit":
        print("out of", os.getcwd(), os.environ["WHO"])
        print("err", file=sys.stderr)
        sys.exit(int(arguments[1]))
    if arguments[0] == "raise":
        raise ZeroDivisionError
    print(os.getpid(), flush=True)
    time.sleep(60)

runs.main, warm.HEAVY = main, []
warm.serve(sys.argv[1])
"""


@pytest.fixture
def server(tmp_path):
    """A warm server whose jobs are made up; its socket's path."""
    address = tmp_path / "socket"
    process = subprocess.Popen([sys.executable, "-c", SERVER, str(address)])
    until = time.monotonic() + 30
    while not address.exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.1)
    yield address
    process.kill()
    process.wait()


def client(server: Path, *arguments: str, **options) -> subprocess.Popen:
    command = [sys.executable, "-m", "icssl_lib.warm", "run", *arguments]
    return subprocess.Popen(command, env=os.environ | {warm.SOCKET: str(server), "WHO": "client"}, **options)


@POSIX
def test_warm_job_has_the_streams_folder_environment_and_exit_code_of_its_client(server, tmp_path):
    folder = tmp_path / "a folder"
    folder.mkdir()
    for code in (0, 3):
        with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
            assert client(server, "exit", str(code), cwd=folder, stdout=out, stderr=err).wait(timeout=30) == code
        assert (folder / "out").read_text() == f"out of {folder} client\n"
        assert (folder / "err").read_text() == "err\n"
    with (folder / "err").open("w") as err:
        assert client(server, "raise", stderr=err).wait(timeout=30) == 1
    assert "ZeroDivisionError" in (folder / "err").read_text()


@pytest.mark.parametrize("device", ["nvidia0", "kfd", "dxg", "null"])
def test_jobs_are_no_forks_where_there_is_a_gpu(monkeypatch, device):
    monkeypatch.setattr(sys, "platform", "linux")  # by the names of its devices
    monkeypatch.setattr(Path, "glob", lambda self, kind: [self / device] if fnmatch(device, kind) else [])
    assert runs.may_fork("auto") == (device == "null")
    assert runs.may_fork("cpu")


@POSIX
def test_warm_job_of_a_large_environment(server, tmp_path):
    """Larger than one message of a socket: on a machine with many modules or a Nix shell."""
    with mock.patch.dict(os.environ, {f"ICSSL_TEST_{i}": "x" * 100_000 for i in range(8)}):
        with (tmp_path / "out").open("w") as out:
            assert client(server, "exit", "3", cwd=tmp_path, stdout=out).wait(timeout=30) == 3
    assert (tmp_path / "out").read_text() == f"out of {tmp_path} client\n"


@POSIX
def test_jobs_run_side_by_side_and_end_with_their_clients(server, tmp_path):
    outputs = [tmp_path / "one", tmp_path / "other"]
    clients = []
    for path in outputs:
        with path.open("w") as out:
            clients.append(client(server, "sleep", stdout=out))
    try:
        one, other = (int(wait_for(path)) for path in outputs)
        assert one != other
        clients[0].kill()
        clients[0].wait()
        assert gone(one, seconds=3)
        os.kill(other, 0)  # goes on
        os.kill(other, signal.SIGKILL)
        assert clients[1].wait(timeout=10) != 0
    finally:
        for process in clients:
            process.kill()
            process.wait()


@POSIX
def test_server_ends_with_its_parent_even_while_it_imports(tmp_path):
    (tmp_path / "slow_to_import.py").write_text("import time\nprint('importing', flush=True)\ntime.sleep(60)\n")
    code = "import sys; from icssl_lib import warm; warm.HEAVY = ['slow_to_import']; warm.serve(sys.argv[1])"
    parent = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', sys.argv[1], sys.argv[2]]); "
    parent += "print(p.pid, flush=True); time.sleep(60)"
    command = [sys.executable, "-c", parent, code, str(tmp_path / "socket")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(runs.ROOT)])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        server = int(process.stdout.readline())
        assert process.stdout.readline() == "importing\n"
    finally:
        process.kill()
        process.wait()
    assert gone(server, seconds=3)
    process.stdout.close()


def test_without_a_server_a_job_runs_there_and_then(tmp_path, capsys):
    assert warm.main(["run", "collect", str(tmp_path / "absent.yaml"), str(tmp_path)]) == 1
    assert "no such configuration file" in capsys.readouterr().err
