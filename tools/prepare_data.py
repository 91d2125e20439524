#!/usr/bin/env python3
"""Brings a dataset into place and writes its list files: python tools/prepare_data.py DATASET [--source DIR]."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "lib"))

from ovenet.data.catalog import CATALOG
from ovenet.data.prepare import prepare_dataset
from ovenet.utils.cli import run_main


def main() -> None:
    """Parses the command line and prepares one dataset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", choices=sorted(CATALOG))
    parser.add_argument("--root", type=Path, default=Path("data"), help="DATASET.ROOT (default: data)")
    parser.add_argument("--source", type=Path, help="folder to link to ROOT/DATASET")
    parser.add_argument("--copy", action="store_true", help="copy --source instead of linking it")
    args = parser.parse_args()
    counts = prepare_dataset(args.dataset, args.root, source=args.source, copy=args.copy)
    for split, count in counts.items():
        print(f"{args.root / 'list' / args.dataset / split}.lst: {count} lines")


if __name__ == "__main__":
    run_main(main)
