#!/usr/bin/env python3
"""Fits the temperature of class probabilities: python tools/calibrate.py RUN | WEIGHTS [KEY VALUE ...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.calibrate import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
