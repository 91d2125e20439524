"""Writes the weights of a run, with all that prediction needs, to one small file that other programs read too."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovenet.errors import UserError
from ovenet.models.weight_files import SAFETENSORS
from ovenet.predictor.sharing import pack
from ovenet.predictor.sources import find_weights
from ovenet.utils.cli import require_free


def main() -> None:
    """Reads a checkpoint and writes a safetensors file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", metavar="WEIGHTS", help="a run's folder, or a file of weights written by training")
    parser.add_argument("output", type=Path, metavar="FILE", help=f"*{SAFETENSORS}")
    parser.add_argument("--half", action="store_true", help="write float16: half the size, and about 3 digits")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    args = parser.parse_args()
    if args.output.suffix != SAFETENSORS:
        raise UserError(f"{args.output}: expected a name that ends in {SAFETENSORS}")
    require_free(args.output, overwrite=args.overwrite)
    pack(find_weights(args.weights), args.output, half=args.half)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")
