#!/usr/bin/env python3
"""Lists parts with their size and cost: python tools/list_models.py ["PATTERN" ...] [--head ocr] [--latency]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.list_models import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
