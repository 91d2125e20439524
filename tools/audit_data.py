#!/usr/bin/env python3
"""Checks the data of an experiment before it is trained on: python tools/audit_data.py --cfg FILE [KEY VALUE ...]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.commands.audit_data import main
from ovenet.utils.cli import run_main

if __name__ == "__main__":
    run_main(main)
