#!/usr/bin/env python3
"""Prints the settings of an experiment, and where each comes from: python tools/print_config.py --cfg FILE [...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.print_config import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
