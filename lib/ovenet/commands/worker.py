"""Runs the commands of a sweep one after another in one process; `ovenet.sweep.worker` starts it."""

from __future__ import annotations

import gc
import json
import os
import select
import sys
import threading
from collections.abc import Sequence

import torch

from ovenet.commands import main


def serve() -> int:
    """Runs the commands that standard input names, a line each, and writes their exit codes to standard output.

    It ends with the first one that fails or is asked to stop, since that may leave the process in any state, and at
    once when the process that names them has ended: another takes the run over then.

    Returns:
        The exit code of the last one.
    """
    code = 0
    busy = threading.Event()
    threading.Thread(target=_end_with_sender, args=(busy,), daemon=True).start()
    with os.fdopen(os.dup(1), "w") as replies:
        for line in sys.stdin:
            command, *arguments, console = json.loads(line)
            sys.stdout.flush()
            with open(console, "ab") as output:
                for stream in (1, 2):
                    os.dup2(output.fileno(), stream)
            busy.set()
            code = _run(command, arguments)
            busy.clear()
            try:
                print(code, file=replies, flush=True)
            except BrokenPipeError:  # the sweep was killed; what it began has ended well
                os._exit(code)
            if code:
                break
    return code


def _end_with_sender(busy: threading.Event) -> None:
    """Ends this process when nobody can write to standard input any more; an idle one reads its end and ends itself."""
    if not hasattr(select, "poll"):  # Windows
        return
    hung_up = select.poll()
    hung_up.register(0, 0)  # a hangup is reported in any case
    hung_up.poll()
    busy.wait()
    os._exit(1)


def _run(command: str, arguments: Sequence[str]) -> int:
    """Runs a command as a fresh process would, and returns its exit code."""
    sys.argv = ["ovenet", command, *arguments]
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        sys.stdout.flush()
        cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cudnn.allow_tf32, matmul.allow_tf32 = before
        gc.collect()
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    return code


if __name__ == "__main__":
    sys.exit(serve())
