#!/usr/bin/env python3
"""Checks a dataset and writes its list files: python tools/prepare_data.py DATASET [--source DIR]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.prepare_data import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
