"""Warm kernels: one process of a study imports torch and transformers, and each notebook's kernel is a fork of it.
A notebook with nothing in it takes ten seconds of CPU with a new kernel, most of them imports, and one with a fork."""

import ctypes
import importlib
import json
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from select import select
from socket import AF_UNIX, recv_fds, send_fds, socket
from subprocess import PIPE, Popen
from typing import Any

from jupyter_client.provisioning import LocalProvisioner

ADDRESS = "ICSSL_KERNELS"  # in the environment of a study's jobs: the socket of the process that forks
INLINE = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # as a kernel says before it imports matplotlib


@contextmanager
def forked(*imports: str) -> Iterator[None]:
    """While the block runs, the kernels of this process's jobs are forks of one that has imported these modules."""
    with tempfile.TemporaryDirectory(prefix="icssl") as folder, socket(AF_UNIX) as listener:
        os.environ |= {ADDRESS: f"{folder}/kernels", "JUPYTER_DEFAULT_PROVISIONER_NAME": "icssl-forked"}
        listener.bind(os.environ[ADDRESS])
        listener.listen(128)  # jobs connect at once, and wait
        command = [sys.executable, "-P", "-m", "icssl_lib.jupyter_kernels", str(listener.fileno()), *imports]
        server = Popen(command, env=os.environ | INLINE, stdin=PIPE, pass_fds=[listener.fileno()])
        listener.close()  # who asks a server that has died is refused
        try:
            yield
        finally:
            server.kill()
            server.wait()


class ForkedKernel(LocalProvisioner):
    """A kernel on this machine as a fork; all else is as with a new process. Raises: OSError: no server."""

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> dict[str, Any]:
        self.process = _Fork([cmd[cmd.index("-f") :], kwargs["env"], kwargs.get("cwd") or os.getcwd()])
        self.pid = self.pgid = self.process.pid
        return self.connection_info


class _Fork:
    """What a provisioner uses of a Popen. The connection ends with either process, and then the other ends too."""

    stdin = stdout = stderr = None

    def __init__(self, request: list) -> None:
        self.connection = socket(AF_UNIX)
        self.connection.connect(os.environ[ADDRESS])
        send_fds(self.connection, [b"\n"], [1, 2])
        self.connection.sendall(json.dumps(request).encode() + b"\n")
        self.pid = int(self.connection.recv(16))

    def poll(self) -> int | None:
        return 1 if select([self.connection], [], [], 0)[0] else None

    def send_signal(self, signum: int = signal.SIGKILL) -> None:
        os.kill(self.pid, signum)

    wait, kill, terminate = poll, send_signal, send_signal


def end_with_parent() -> None:
    """Linux: be killed when the parent ends, whatever this process does then."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def _become_kernel(connection: socket) -> None:
    """In a fork: be the kernel that a job asked for, as long as the job is there."""
    end_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for target, fd in enumerate(recv_fds(connection, 1, 2)[1], 1):
        os.dup2(fd, target)
    arguments, environment, folder = json.loads(connection.makefile().readline())
    os.environ.update(environment)
    os.chdir(folder)
    connection.sendall(str(os.getpid()).encode())
    threading.Thread(target=lambda: connection.recv(1) or os._exit(1), daemon=True).start()
    kernelapp.IPKernelApp.launch_instance([*arguments, f"--IPKernelApp.parent_handle={os.getppid()}"])


if __name__ == "__main__":  # the server
    end_with_parent()
    from ipykernel import debugger, kernelapp  # noqa: F401

    for name in sys.argv[2:]:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, lambda *_: os.waitpid(-1, 0))  # a kernel's memory then counts as the study's
    own = socket(fileno=int(sys.argv[1]))
    while sys.stdin not in select([sys.stdin, own], [], [])[0]:  # which ends with the study
        asked, _ = own.accept()
        if os.fork() == 0:
            _become_kernel(asked)
            break
        asked.close()
    os._exit(0)  # at once: an interpreter with torch takes seconds to tidy up
