"""Warm starts: one process imports the heavy packages once, and each job and each kernel is a fork of it.

Importing torch and transformers takes about 10 s of CPU; a study of 70 notebooks would spend most of its time on it.
`serving` starts the server and names its socket in the environment; where that is set, `python -m icssl_lib.warm run
ARGS...` does what `python -m icssl_lib.runs ARGS...` does, in a fork. Without a server it runs there and then.
"""

import array
import contextlib
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

SOCKET = "ICSSL_WARM_SOCKET"
STUDY = "ICSSL_STUDY_PID"
HEAVY = [
    *("torch", "transformers", "timm", "accelerate", "pandas", "pyarrow.parquet", "scipy.stats", "sklearn.metrics"),
    *(
        "transformers.models.bert.modeling_bert",
        "transformers.models.auto.modeling_auto",
        "papermill",
        "ipykernel.kernelapp",
        "ipykernel.debugger",  # each kernel has one; it is compiled at each import, a third of a kernel's start
    ),
    *(
        "matplotlib.pyplot",
        "seaborn",
        "icssl_lib.finetune",
        "icssl_lib.figures",
        "icssl_lib.report",
        "icssl_lib.pretrain",
    ),
]


def exit_with(pid: int) -> None:
    """End this process when process ``pid`` ends: after kill -9 of the study, none of its jobs goes on writing."""

    def watch() -> None:
        while True:
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                os._exit(1)
            time.sleep(0.5)

    threading.Thread(target=watch, daemon=True).start()


def exit_with_study() -> None:
    """In a process that a study started: end when the study ends."""
    if STUDY in os.environ:
        exit_with(int(os.environ[STUDY]))


@contextlib.contextmanager
def serving(environment: dict[str, str]) -> Iterator[None]:
    """Run a server while the block runs, and name its socket in ``environment``."""
    with tempfile.TemporaryDirectory(prefix="icssl-warm") as folder:
        address = str(Path(folder) / "socket")
        command = [sys.executable, "-m", "icssl_lib.warm", "serve", address]
        server = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL)
        environment[SOCKET] = address
        try:
            yield
        finally:
            server.kill()
            server.wait()


def serve(address: str) -> None:
    """Import the heavy packages, then fork for every request, until the parent process ends."""
    parent = int(os.environ.get(STUDY, os.getppid()))  # already dead, it is no longer the parent
    signal.signal(signal.SIGALRM, lambda *_: os.getppid() == parent or os._exit(1))
    signal.setitimer(signal.ITIMER_REAL, 0.5, 0.5)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)  # clients connect at once, and wait
        listener.listen(128)
        os.environ.setdefault("PYDEVD_DISABLE_FILE_VALIDATION", "1")  # else the debugger says that it is of no use here
        for name in HEAVY:
            importlib.import_module(name)
        signal.setitimer(signal.ITIMER_REAL, 0)  # from here on the loop looks
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps
        listener.settimeout(0.5)
        while os.getppid() == parent:
            with contextlib.suppress(TimeoutError):
                connection, _ = listener.accept()
                with connection:
                    if os.fork() == 0:
                        listener.close()
                        _answer(connection)


def _answer(connection: socket.socket) -> None:
    """In a fork: run one request in a fork of its own, and send how that ended. Never returns."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    connection.settimeout(None)
    fds = array.array("i")
    message, control, _, _ = connection.recvmsg(1 << 20, socket.CMSG_SPACE(3 * fds.itemsize))
    for _, _, data in control:
        fds.frombytes(data)
    while more := connection.recv(1 << 20):  # a large environment comes in pieces
        message += more
    request = json.loads(message)
    worker = os.fork()
    if worker == 0:
        connection.close()
        _work(request, fds)
    _, status = os.waitpid(worker, 0)
    with contextlib.suppress(OSError):  # the client was killed: nobody wants to know
        connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())
    os._exit(0)


def _work(request: dict, fds: array.array) -> None:
    """In a fork: become the process that the client asked for. Never returns."""
    code = 1
    try:
        for target, fd in enumerate(fds):
            os.dup2(fd, target)
        os.chdir(request["cwd"])
        os.environ.clear()
        os.environ.update(request["environment"])
        exit_with(request["client"])
        exit_with_study()  # a kernel's client outlives a study that was killed
        code = _run(request["arguments"])
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(arguments: list[str]) -> int:
    what, *rest = arguments
    if what == "kernel":
        import matplotlib
        from ipykernel.kernelapp import IPKernelApp

        os.environ.pop("JPY_PARENT_PID", None)  # that parent is the client's; `exit_with` watches the client
        # Imported before the kernel was there, matplotlib has not seen the backend that shows figures in a notebook.
        matplotlib.rcParams["backend"] = os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"
        IPKernelApp.launch_instance(rest)
        return 0
    from icssl_lib.runs import main

    return main(rest)


def ask(address: str, arguments: list[str]) -> int:
    """Have the server run ``arguments`` with this process's streams, folder and environment; its exit code."""
    request = {"arguments": arguments, "cwd": os.getcwd(), "environment": dict(os.environ), "client": os.getpid()}
    if arguments[0] == "kernel":  # who shuts a kernel down interrupts it first: no business of this stand-in
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        streams = array.array("i", [0, 1, 2])
        message = json.dumps(request).encode()
        sent = connection.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, streams)])
        connection.sendall(message[sent:])
        connection.shutdown(socket.SHUT_WR)
        return int(connection.recv(16) or b"1")


def _interrupt(*_: object) -> None:
    """Interrupt once. The death of a study that has threads is signalled once for each; a second interrupt would keep
    Snakemake from cancelling its jobs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def install_kernel(folder: Path) -> None:
    """For this process, make the kernel "python3" one that the server forks."""
    spec = folder / "kernels" / "python3"
    spec.mkdir(parents=True)
    command = [sys.executable, "-m", "icssl_lib.warm", "kernel", "-f", "{connection_file}"]
    kernel = {"argv": command, "display_name": "Python 3, warm", "language": "python"}
    (spec / "kernel.json").write_text(json.dumps(kernel))
    os.environ["JUPYTER_PATH"] = str(folder)


def main(arguments: list[str]) -> int:
    if arguments[0] == "serve":
        serve(arguments[1])
        os._exit(0)  # at once: an interpreter with torch takes seconds to tidy up
    if arguments[0] == "dag":  # Snakemake is some seconds old when it reads a Snakefile, which could watch as well
        exit_with_study()
        signal.signal(signal.SIGINT, _interrupt)  # a shell's background job would ignore it
        from snakemake.cli import main as snakemake

        snakemake(arguments[1:])  # exits by itself
    if SOCKET in os.environ:
        return ask(os.environ[SOCKET], arguments)
    return _run(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
