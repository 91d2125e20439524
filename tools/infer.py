#!/usr/bin/env python3
"""Predicts images, folders, videos and cameras: python tools/infer.py WEIGHTS INPUT [INPUT ...] --output DIR."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.infer import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
