"""Python programs as processes of their own that need not import torch again: each is a fork of one that has.

A fresh interpreter imports torch for seconds. Where a test is about what a program does, not about how it begins, it
may start here: a server, of which every process of pytest has one, has imported torch and ovenet, knows the network of
four convolutions, has done nothing else, has a single thread, and forks for every program. The fork is a process like
any other, with its own id, group, pipes, exit code and interpreter that ends as usual. What is read while modules are
imported, environment variables of torch among it, is the server's: programs that are given others need an interpreter
of their own.
"""

from __future__ import annotations

import array
import atexit
import functools
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = ("ovenet.commands.train", "ovenet.commands.test", "ovenet.commands.infer")
IMPORTED = ("torch._dynamo", "torchvision", *COMMANDS, "ovenet.models.seeds", "tests.four_convolutions")
_MAX_REQUEST = 1 << 18  # bytes, of which the environment has most


class Forked:
    """A Python program that runs in a fork of the server; as much of `subprocess.Popen` as the tests need.

    Args:
        command: after the interpreter's name: ``script.py``, or ``-m module``, and the arguments.
        cwd: the folder it runs in.
        env: all of its environment; this process's by default.
        stdin: a file that it reads; by default there is nothing to read.
        stdout: a file that it writes to, instead of a pipe.
        stderr: `subprocess.STDOUT` for one place of both, `subprocess.PIPE` for a pipe of its own.
        start_new_session: whether it leads a session and group of its own.
    """

    def __init__(
        self, command, *, cwd=ROOT, env=None, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        start_new_session=False,
    ) -> None:  # fmt: skip
        environment = {**(os.environ if env is None else env)}
        request = {"command": [str(c) for c in command], "cwd": str(cwd), "environment": environment}
        request["session"] = start_new_session
        read = os.open(os.devnull, os.O_RDONLY) if stdin == subprocess.DEVNULL else os.dup(stdin.fileno())
        out = os.pipe() if stdout == subprocess.PIPE else (None, os.dup(stdout.fileno()))
        self._status, err = os.pipe(), os.pipe() if stderr == subprocess.PIPE else None
        ends = [read, out[1], err[1] if err else out[1], self._status[1]]
        socket.send_fds(_server(), [json.dumps(request).encode()], ends)
        for end in {*ends}:
            os.close(end)
        self._status = os.fdopen(self._status[0], "rb", buffering=0)
        self.stdout = None if out[0] is None else os.fdopen(out[0], encoding="utf-8")
        self.stderr = os.fdopen(err[0], encoding="utf-8") if err else None
        self.args, self.returncode = command, None
        self.pid = self._read()

    def _read(self) -> int:
        value = array.array("i", self._status.read(4))
        assert value, "the server that forks has died"
        return value[0]

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self.returncode = self._read()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for its end."""
        if self.returncode is None and not select.select([self._status], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.poll()

    def send_signal(self, number: int) -> None:
        """Sends a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Asks it to end."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends it."""
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Waits for its end; gives all that it wrote and that was not read."""
        said = {}
        streams = {name: stream for name in ("stdout", "stderr") if (stream := getattr(self, name))}
        readers = [
            threading.Thread(target=lambda n=name, s=stream: said.update({n: s.read()}), daemon=True)
            for name, stream in streams.items()
        ]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            raise
        for reader in readers:
            reader.join(timeout)
        return said.get("stdout"), said.get("stderr")


def run(command, *, timeout: float = 150, **options) -> subprocess.CompletedProcess:
    """Runs a Python program to its end in a fork, see `Forked`; gives it with what it wrote."""
    process = Forked(command, **options)
    out, err = process.communicate(timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run_ranks(command, number: int, *, env, timeout: float = 150) -> list[subprocess.CompletedProcess]:
    """Runs a script as several processes of one training, with what `torch.distributed.launch` gives each."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]  # free now, and most likely still in a moment
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(number)}
    shared |= {"LOCAL_WORLD_SIZE": str(number), "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in map(str, range(number)):
        arguments = [command[0], f"--local-rank={rank}", *command[1:]]
        processes.append(Forked(arguments, env={**env, **shared, "RANK": rank, "LOCAL_RANK": rank}))
    with ThreadPoolExecutor(number) as pool:
        said = list(pool.map(lambda process: process.communicate(timeout), processes))
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(processes, said, strict=True)
    ]


@functools.cache
def _server() -> socket.socket:
    """The socket of this process's server, which ends when this process does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MAX_REQUEST)
    paths = os.pathsep.join(filter(None, [str(ROOT / "lib"), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment.pop("TRITON_INTERPRET", None)  # kernels can be compiled, and none is run
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).resolve()), str(theirs.fileno())],
        cwd=ROOT, env=environment, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    theirs.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


def _serve(connection: socket.socket) -> dict:
    """Takes requests until there are no more; returns, in a fork, the one that it is for."""
    for name in IMPORTED:
        importlib.import_module(name)
    sys.modules["tests.four_convolutions"].registered().start()
    gc.freeze()  # else each fork copies what its collections look at
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would have only one of these threads"
    num_watched = 0
    while True:
        message, descriptors, *_ = socket.recv_fds(connection, _MAX_REQUEST, 4)
        while num_watched and os.waitpid(-1, os.WNOHANG if message else 0)[0]:
            num_watched -= 1
        if not message:
            os._exit(0)
        if os.fork():
            num_watched += 1
            for descriptor in descriptors:
                os.close(descriptor)
            continue
        *streams, status = descriptors
        connection.close()
        request = json.loads(message)
        if pid := os.fork():
            _watch(pid, streams, status)
        os.close(status)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        sys.stdin = sys.__stdin__ = os.fdopen(0, encoding="utf-8", closefd=False)
        sys.stdout = sys.__stdout__ = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = sys.__stderr__ = os.fdopen(2, "w", 1, "utf-8", "backslashreplace", closefd=False)
        if request["session"]:
            os.setsid()
        return request


def _watch(pid: int, streams: list[int], status: int) -> None:
    """Says which id a program has, waits for it, and says how it ended."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # sent to the group of pytest, or of the program without its own
    for stream in streams:
        os.close(stream)
    os.write(status, array.array("i", [pid]))
    _, code = os.waitpid(pid, 0)
    os.write(status, array.array("i", [os.waitstatus_to_exitcode(code)]))
    os._exit(0)


def _become(command: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Runs a program as the interpreter would that had been started with its command line."""
    import multiprocessing.process
    import runpy

    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.process.ORIGINAL_DIR = cwd
    if command[0] == "-m":
        sys.path[0], sys.argv[:] = cwd, command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        script = Path(cwd, command[0])
        sys.path[0], sys.argv[:] = str(script.parent), command
        runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    request = _serve(socket.socket(fileno=int(sys.argv[1])))
    _become(request["command"], request["cwd"], request["environment"])
