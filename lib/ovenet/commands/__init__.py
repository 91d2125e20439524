"""The commands of ``ovenet COMMAND …``, and of the scripts in tools/, which are the same.

Each is a module with a function `main` that reads ``sys.argv``.
"""

from __future__ import annotations

import sys
from importlib import import_module

from ovenet.errors import nearest
from ovenet.utils.streams import end_unread
from ovenet.version import version

COMMANDS = {  # module and help text by name
    "fit": ("fit", "train a model on a folder of photos and a folder of masks"),
    "train": ("train", "train a model"),
    "test": ("test", "score a model on a list of images"),
    "calibrate": ("calibrate", "fit the temperature of a model's class probabilities"),
    "infer": ("infer", "predict images, folders, videos and cameras"),
    "export": ("export", "write a model for ONNX Runtime, OpenVINO or torch.export"),
    "app": ("app", "open a local page to try models on photographs"),
    "latency": ("latency", "time one image in each runtime of this machine"),
    "report": ("report", "write one HTML page that compares evaluations"),
    "review": ("review", "correct likely label errors of a test on a local page"),
    "compare": ("compare", "compare runs by their logs"),
    "sweep": ("sweep", "run an experiment with many settings and seeds"),
    "config": ("print_config", "show the settings of an experiment, and where each comes from"),
    "plan": ("plan", "estimate memory, time and throughput of a training"),
    "prepare": ("prepare_data", "check a dataset and write its list files"),
    "audit": ("audit_data", "check the data of an experiment"),
    "browse": ("browse_data", "show training crops as the network sees them"),
    "models": ("list_models", "list parts of models with their cost, and trained models (--pretrained)"),
    "submission": ("make_submission", "predict a test split in the format of its server"),
    "refine": ("refine", "refine saved predictions with a SegFix model"),
    "pack": ("pack", "write weights, and all that prediction needs, to one small file"),
    "replay": ("replay", "replay a step whose loss or gradient was not finite"),
}

OTHER_NAMES = {  # commands of other programs that do the same
    "predict": "infer", "inference": "infer", "demo": "infer",
    "val": "test", "eval": "test", "evaluate": "test", "validate": "test",
    "resume": "train",
    "benchmark": "latency", "profile": "latency",
    "convert": "export", "serve": "app", "list": "models",
    "doctor": "audit", "check": "audit", "estimate": "plan", "init": "prepare",
    "annotate": "review", "correct": "review",
}  # fmt: skip


def main() -> None:
    """Runs the command that ``sys.argv`` names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name == "--version":
        _show(f"ovenet {version()}")
    elif name in ("--help", "-h"):
        _show(_help())
    elif name not in COMMANDS:
        meant = OTHER_NAMES.get(name) or nearest(name, COMMANDS)
        print(f"error: there is no command {name!r}; did you mean {meant}? (ovenet --help)", file=sys.stderr)
        sys.exit(2)
    else:
        from ovenet.utils.cli import run_main  # waits for torch

        run_main(lambda: _run(name))


def _show(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        end_unread()


def _run(name: str) -> None:
    sys.argv[:2] = [f"ovenet {name}"]
    import_module(f"ovenet.commands.{COMMANDS[name][0]}").main()


def _help() -> str:
    rows = [f"  {name:<12} {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(("usage: ovenet COMMAND …, ovenet COMMAND --help, ovenet --version", "", "commands:", *rows))
