"""Trains a model on a folder of photos and a folder of masks, within a time budget; the same command goes on."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovenet.engine.settings import DEVICES
from ovenet.fitting.fit import fit, next_commands
from ovenet.utils.logging import configure_logging


def main() -> None:
    """Reads the command line, fits, and says what can be done with the model."""
    args = build_parser().parse_args()
    configure_logging()
    predictor = fit(
        args.photos,
        args.masks,
        output=args.output,
        minutes=args.minutes,
        classes=args.classes,
        with_seed=args.with_seed,
        max_steps=args.max_steps,
        device=args.device,
    )
    print(next_commands(predictor.path.parent.parent))


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("photos", type=Path, metavar="PHOTOS", help="folder of photos, or of photos and masks")
    parser.add_argument("masks", type=Path, nargs="?", metavar="MASKS", help="folder of masks, named as the photos")
    parser.add_argument("--output", type=Path, metavar="DIR", help="a new folder (default: output/<folder of PHOTOS>)")
    parser.add_argument("--minutes", type=float, default=10.0, metavar="N", help="time it may take (default: 10)")
    parser.add_argument(
        "--classes",
        nargs="+",
        default=(),
        metavar="NAME",
        help="names of the classes, in the order of the ids in the masks, or of their shares for masks in colours",
    )
    parser.add_argument(
        "--with-seed", action="store_true", help="train a seed too, and keep it if it predicts validation photos better"
    )
    parser.add_argument("--max-steps", type=int, metavar="N", help="upper limit of the iterations")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    return parser
