#!/usr/bin/env python3
"""Predicts the test split in the format of its server: python tools/make_submission.py --cfg FILE [KEY VALUE ...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.make_submission import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
