"""Writes the weights of a run, with all that prediction needs, to one small file, and the model's card beside it."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovenet.errors import UserError
from ovenet.models.weight_files import SAFETENSORS
from ovenet.predictor.run_folder import find_test
from ovenet.predictor.sharing import CardTexts, pack, write_card
from ovenet.predictor.sources import MODELS, find_weights
from ovenet.report.runs import find_evaluation
from ovenet.utils.cli import require_free

_CARD = ".md"


def main() -> None:
    """Reads a checkpoint and its newest test; writes a safetensors file and a card, or the card alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", metavar="WEIGHTS", help="a run's folder, a file of weights, or a bundled model")
    parser.add_argument("output", type=Path, metavar="FILE", help=f"*{SAFETENSORS}, or *{_CARD} for the card alone")
    parser.add_argument("--half", action="store_true", help="write float16: half the size, and about 3 digits")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE and its card")
    parser.add_argument("--test", type=Path, metavar="FOLDER", help="test for the card (default: the newest one)")
    parser.add_argument(
        "--seeds", type=Path, nargs="+", default=[], metavar="TEST", help="tests of runs with other random seeds"
    )
    parser.add_argument("--data", default="", metavar="TEXT", help="what the training images show, for the card")
    parser.add_argument("--licence", default="", metavar="TEXT", help="licence of the weights, for the card")
    args = parser.parse_args()
    if args.output.suffix not in (SAFETENSORS, _CARD):
        raise UserError(f"{args.output}: expected a name that ends in {SAFETENSORS} or {_CARD}")
    card = args.output.with_suffix(_CARD)
    for path in {args.output, card}:
        require_free(path, overwrite=args.overwrite)
    weights = find_weights(args.weights)
    test = find_evaluation(args.test) if args.test else find_test(weights, _places(weights))
    if args.output != card:
        pack(weights, args.output, half=args.half)
        print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")
    write_card(weights, card, CardTexts(test, args.seeds, args.data, args.licence))
    print(f"{card}: " + (f"with the scores of {test}" if test else "no test of these weights was found for its scores"))


def _places(weights: Path) -> list[Path]:
    """Folders of runs whose tests may be of these weights; those of bundled models are in the default output folder."""
    return [weights.parent, *([Path("output") / weights.stem] if weights.parent == MODELS else [])]
