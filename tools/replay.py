#!/usr/bin/env python3
"""Replays a training step whose loss or gradient was not finite: python tools/replay.py RUN/repro_*.pth."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.replay import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
