#!/usr/bin/env python3
"""Compares runs by their log.jsonl: python tools/compare.py RUN RUN ... [--metric val/mean_iou_fused]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.compare import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
