"""Writes the weights of a run, with all that prediction needs, to one small file that other programs read too."""

from __future__ import annotations

import argparse
from pathlib import Path

from ovenet.builders.predictor import find_weights
from ovenet.config import default_config, flat_settings, load_config_text
from ovenet.engine.checkpoint import SAFETENSORS, read_checkpoint, weights_of, write_safetensors
from ovenet.errors import UserError
from ovenet.utils.cli import require_free

PLACES = (  # settings that say where files lie on the machine that trained, which nobody else needs
    "DATASET.ROOT", "DATASET.CACHE_DIR", "OUTPUT_DIR", "LOG_DIR", "TEST.MODEL_FILE", "MODEL.BACKBONE.PRETRAINED",
    "MODEL.SEED.PRETRAINED", "LOSS.CLASS_WEIGHTS", "WANDB",
)  # fmt: skip
CARRIED = ("config", "dataset", "class_names", "palette", "dataset_info", "normalization")


def main() -> None:
    """Reads a checkpoint and writes a safetensors file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", metavar="WEIGHTS", help="a run's folder, or a file of weights that training wrote")
    parser.add_argument("output", type=Path, metavar="FILE", help=f"*{SAFETENSORS}")
    parser.add_argument("--half", action="store_true", help="write float16: half the size, and about 3 digits")
    parser.add_argument("--overwrite", action="store_true", help="replace FILE")
    args = parser.parse_args()
    if args.output.suffix != SAFETENSORS:
        raise UserError(f"{args.output}: expected a name that ends in {SAFETENSORS}")
    require_free(args.output, overwrite=args.overwrite)
    path = find_weights(args.weights)
    content = read_checkpoint(path)
    missing = [key for key in CARRIED if key not in content]
    if missing:
        raise UserError(f"{path}: carries no {missing[0]}; only weights that training wrote here can be packed")
    about = {key: content[key] for key in CARRIED}
    usual = flat_settings(default_config())
    overrides = [text for key in PLACES for text in (key, str(usual[key]))]
    about["config"] = load_config_text(content["config"], str(path), overrides).dump()
    write_safetensors(args.output, weights_of(content, path), about, half=args.half)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB")
