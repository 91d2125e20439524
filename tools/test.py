#!/usr/bin/env python3
"""Scores a model: python tools/test.py --cfg FILE | RUN | WEIGHTS [KEY VALUE ...], alone or under torchrun."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.test import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
