"""Checks the data of an experiment before it is trained on."""

from __future__ import annotations

from pathlib import Path

from ovenet import builders, load_config
from ovenet.audit import audit_as_dict, findings_about_both, format_audit, format_finding
from ovenet.config import check_parts
from ovenet.data.dataset import ListDataset
from ovenet.data.samplers import spread
from ovenet.data.sheets import contact_sheet
from ovenet.errors import UserError
from ovenet.evaluation.writers import write_json
from ovenet.inference.pictures import save_png
from ovenet.structures import Sample
from ovenet.utils.cli import config_parser
from ovenet.utils.logging import configure_logging


def main() -> None:
    """Audits the training and the validation list, writes a table, a JSON file and contact sheets."""
    parser = config_parser(__doc__)
    parser.add_argument("--pairs", type=int, default=0, metavar="N", help="check N pairs, evenly spread (default: all)")
    parser.add_argument("--decode-images", action="store_true", help="read the images' pixels too (slower)")
    parser.add_argument("--pictures", type=int, default=24, metavar="N", help="samples per contact sheet (default: 24)")
    args = parser.parse_intermixed_args()
    for option in ("pairs", "pictures"):
        if getattr(args, option) < 0:
            raise UserError(f"--{option} is {getattr(args, option)}; expected at least 0")
    configure_logging()
    cfg = load_config(args.cfg, args.overrides)
    check_parts(cfg)
    folder = Path(cfg.OUTPUT_DIR) / cfg.DATASET.DATASET / "audit"
    lists = [builders.list_dataset(cfg, name) for name in (cfg.DATASET.TRAIN_SET, cfg.DATASET.TEST_SET)]
    reports = [
        builders.audit(cfg, dataset, num_pairs=args.pairs, decode_images=args.decode_images) for dataset in lists
    ]
    info = builders.dataset_info(cfg)
    print(format_audit(reports, info))
    both = findings_about_both(lists[0].folder, [dataset.pairs for dataset in lists], reports, lists[0].decoder.info)
    for finding in both:
        print(format_finding(finding, " and ".join(report.name for report in reports)))
    write_json(audit_as_dict(reports, info, both), folder / "audit.json")
    print(f"counts, findings and suggested weights: {folder / 'audit.json'} (LOSS.CLASS_WEIGHTS takes it)")
    for report, dataset in zip(reports, lists, strict=True):
        samples = readable_samples(dataset, args.pictures)
        if samples:
            save_png(contact_sheet(samples, info), folder / f"{report.name}.png")
            print(f"pictures: {folder / report.name}.png")
    findings = [*both, *(finding for report in reports for finding in report.findings)]
    errors = sum(finding.is_error for finding in findings)
    if errors:
        raise UserError(f"training would be wrong: {errors} kind(s) of error above; mend them and run this again")


def readable_samples(dataset: ListDataset, num_samples: int) -> list[Sample]:
    """Samples evenly spread over the list, without unreadable ones, which the table lists already."""
    samples = []
    for index in spread(len(dataset), num_samples):
        try:
            samples.append(dataset[index])
        except UserError:
            continue
    return samples
