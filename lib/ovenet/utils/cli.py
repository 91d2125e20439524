"""Command line parsing and error handling shared by all commands."""

from __future__ import annotations

import argparse
import io
import os
import platform
import re
import select
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch

from ovenet.errors import UserError
from ovenet.utils.distributed import PeersLostError
from ovenet.utils.streams import end_unread
from ovenet.version import version

OUT_OF_MEMORY = "out of memory"  # start of the message
EXIT_FAULT = 1
EXIT_USER_ERROR = 2
PLOT_SUFFIXES = (".png", ".svg", ".pdf")
_MAX_MESSAGE = 1000
_DEATH_KNOWN_S = 1.0
_DEBUG_VARIABLE = "OVENET_DEBUG"
_NO_COMPILER = re.compile("InvalidCxxCompiler|No working C\\+\\+ compiler")
_LOADER_KILLED = re.compile(r"DataLoader worker \(pid[^)]*\)[^.]*")


def config_parser(description: str, *, required: bool = True) -> argparse.ArgumentParser:
    """A parser of ``--cfg FILE [KEY VALUE …]``; the file may be left out where it is not `required`."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cfg", required=required, metavar="FILE", help="experiment file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE", help="settings that win over the file's")
    # Older versions of torch.distributed.launch pass it; the environment has the same number.
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)
    return parser


def require_free(path: Path, *, overwrite: bool) -> None:
    """Refuses to overwrite a file without --overwrite.

    Raises:
        UserError: the path exists.
    """
    if path.is_dir():
        raise UserError(f"{path}: a folder; name a file with --output")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists; name another file with --output, or add --overwrite")


def require_plot_file(path: Path, *, overwrite: bool) -> None:
    """Refuses a file name for a plot.

    Raises:
        UserError: unsupported plot format, or `require_free` refuses it.
    """
    if path.suffix.lower() not in PLOT_SUFFIXES:
        raise UserError(f"--output {path}: expected a name that ends in {', '.join(PLOT_SUFFIXES)}")
    require_free(path, overwrite=overwrite)


def typed_command() -> str:
    """The command line of this process, as it can be typed again."""
    program, *arguments = sys.argv
    start = program if program.startswith("ovenet ") else f"python {shlex.quote(program)}"  # the entry point joins both
    return " ".join([start, *map(shlex.quote, arguments)])


def ovenet_command(name: str) -> list[str]:
    """Command line of a command in another process, without arguments; see `command_environment`."""
    return [sys.executable, "-m", "ovenet", name]


def command_environment() -> dict[str, str]:
    """Environment of such a process, in which it imports this package, installed or not."""
    paths = [str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_main(main: Callable[[], None]) -> None:
    """Runs a command: user errors end it with one line on stderr and exit code 2.

    A fault of the program shows its traceback and a line for the bug report, and ends with exit code 1.

    Args:
        main: raises UserError for bad input and OSError for errors of the system. With OVENET_DEBUG=1 in the
            environment they show their traceback.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # File names need not be Unicode; lines to a file or a pipe keep their order.
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        _run(main)
        sys.stdout.flush()
    except (UserError, OSError) as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            end_unread()
        if os.environ.get(_DEBUG_VARIABLE):
            raise
        print(f"error: {_message(error)}", file=sys.stderr)
        if isinstance(error, PeersLostError):  # a normal exit would wait for the peers, or be aborted by gloo
            sys.stderr.flush()
            os._exit(EXIT_USER_ERROR)
        sys.exit(EXIT_USER_ERROR)
    except RuntimeError as error:
        message = _known_failure(error)
        if message is None:
            _report_fault(error)
        if os.environ.get(_DEBUG_VARIABLE):
            raise
        print(f"error: {message}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:  # any other is a fault of the program
        _report_fault(error)


def _run(main: Callable[[], None]) -> None:
    """Runs a command. While it waits, torch raises the death of a data loading process, from the system's signal."""
    try:
        main()
    except (
        ConnectionAbortedError,
        ConnectionRefusedError,
        ConnectionResetError,
        EOFError,
    ):  # also of a process that dies, and whose signal comes later
        time.sleep(_DEATH_KNOWN_S)
        raise


def _has_no_reader() -> bool:
    """Whether the reader of standard output is gone, as after ``| head``."""
    if not hasattr(select, "poll"):  # Windows
        return False
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)  # errors are reported in any case
    except OSError:  # not a file
        return False
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _report_fault(error: Exception) -> NoReturn:
    """Shows the traceback of a fault of the program, and a line for the bug report."""
    traceback.print_exception(error)
    place = traceback.extract_tb(error.__traceback__)[-1]
    print(
        f"this is a fault of the program, not of your input; please report it with the traceback above: ovenet "
        f"{version()}, torch {torch.__version__}, Python {platform.python_version()}, {type(error).__name__} in "
        f"{place.filename}:{place.lineno}, command: {shlex.join(sys.argv)}",
        file=sys.stderr,
    )
    sys.exit(EXIT_FAULT)


def _known_failure(error: RuntimeError) -> str | None:
    """Advice about failures of the machine that torch reports as RuntimeError; None for all others."""
    killed = _LOADER_KILLED.search(str(error))
    if killed:
        return (
            f"a data loading process was killed ({killed[0]}); if memory ran out, lower WORKERS, "
            "else look into the system's log; TRAIN.RESUME True goes on"
        )
    if _NO_COMPILER.search(f"{type(error).__name__} {error}"):
        return "torch.compile finds no working C++ compiler; install g++, or set TRAIN.COMPILE and TEST.COMPILE none"
    if isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error):
        return (
            f"{OUT_OF_MEMORY} ({_message(error)[:120]}); halve TRAIN.BATCH_SIZE_PER_GPU and double "
            "TRAIN.ACCUMULATE (the same effective batch), or set TRAIN.CHECKPOINT_ACTIVATIONS True; "
            "tools/plan.py --cfg FILE finds the smallest change that fits; a test takes least with "
            "TEST.BATCH_SIZE_PER_GPU 1"
        )
    return None


def _message(error: Exception) -> str:
    """Last line of an error; errors of a data loading process carry its traceback before it."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    kind = type(error)
    text = lines[-1].removeprefix(f"{kind.__module__}.").removeprefix(f"{kind.__name__}: ").strip()
    return text if len(text) <= _MAX_MESSAGE else f"{text[: _MAX_MESSAGE // 2]} … {text[-_MAX_MESSAGE // 2 :]}"
