#!/usr/bin/env python3
"""Runs an experiment with many settings and seeds: python tools/sweep.py SWEEP.yaml [KEY VALUE ...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.sweep import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
