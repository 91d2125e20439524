"""Shows training crops as the network sees them."""

from __future__ import annotations

from pathlib import Path

from ovenet import builders, load_config
from ovenet.config import check_parts
from ovenet.data.augmentation import apply_changes
from ovenet.data.samplers import spread
from ovenet.data.sheets import contact_sheet
from ovenet.errors import UserError
from ovenet.inference.pictures import save_png
from ovenet.utils.cli import config_parser, require_free
from ovenet.utils.logging import configure_logging

MAX_SHOWN = 100  # in each direction


def main() -> None:
    """Writes a contact sheet of augmented crops."""
    parser = config_parser(__doc__)
    parser.add_argument("--samples", type=int, default=12, metavar="N", help="samples to show (default: 12)")
    parser.add_argument(
        "--variants", type=int, default=2, metavar="N", help="crops of different epochs for each sample (default: 2)"
    )
    parser.add_argument("--output", type=Path, help="PNG to write (default: OUTPUT_DIR/<dataset>/browse/<config>.png)")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that --output names")
    args = parser.parse_intermixed_args()
    if args.output:
        require_free(args.output, overwrite=args.overwrite)
    for option in ("samples", "variants"):
        if not 1 <= getattr(args, option) <= MAX_SHOWN:
            raise UserError(f"--{option} is {getattr(args, option)}; expected 1 to {MAX_SHOWN}")
    configure_logging()
    cfg = load_config(args.cfg, args.overrides)
    check_parts(cfg)
    dataset = builders.train_dataset(cfg)
    first = cfg.TRAIN.BEGIN_EPOCH
    keys = [(first + i, index) for index in spread(len(dataset), args.samples) for i in range(args.variants)]
    sheet = contact_sheet([apply_changes(dataset[key]) for key in keys], dataset.dataset.info)
    path = args.output or Path(cfg.OUTPUT_DIR) / cfg.DATASET.DATASET / "browse" / f"{Path(args.cfg).stem}.png"
    save_png(sheet, path)
    print(f"{len(keys)} crops of {cfg.TRAIN.IMAGE_SIZE[0]}x{cfg.TRAIN.IMAGE_SIZE[1]} pixels: {path}")
