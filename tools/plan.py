#!/usr/bin/env python3
"""Estimates time and memory of a training: python tools/plan.py --cfg FILE [KEY VALUE ...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.plan import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
