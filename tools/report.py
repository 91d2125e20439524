#!/usr/bin/env python3
"""One HTML page that compares evaluations: python tools/report.py RUN [RUN ...] [--output FILE]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.report import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
