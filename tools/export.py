#!/usr/bin/env python3
"""Writes a trained model for other programs: python tools/export.py WEIGHTS [FILE] --format onnx --size HxW."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.export import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
