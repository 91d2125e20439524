"""Checks a dataset and writes its list files."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ovenet.data.catalog import CATALOG, DESCRIPTION, catalog_name, find_dataset
from ovenet.data.description import begun_description
from ovenet.data.files import why_unlisted
from ovenet.data.info import SPLITS
from ovenet.data.remote import local_folder
from ovenet.errors import UserError
from ovenet.preparation.annotations import FORMS, import_annotations
from ovenet.preparation.draft import read_draft, write_draft, write_experiment
from ovenet.preparation.mask_values import describe
from ovenet.preparation.pascal_context import ANNOTATIONS, find_devkit, write_labels
from ovenet.preparation.prepare import bring, prepare_dataset, require_two_images
from ovenet.preparation.recognition import recognize_layouts
from ovenet.synthetic.scenes import write_dataset
from ovenet.utils.progress import tell, track

EXPERIMENT = "experiment.yaml"  # beside the dataset.json of an own dataset


def main() -> None:
    """Prepares one dataset: draws, imports or drafts it if requested, and writes its lists."""
    args = parse_arguments()
    known = catalog_name(args.dataset)
    source, advice = args.source, ""
    missing: tuple[str, ...] = ()
    if args.form:
        missing, advice = import_split(args)
        source = None
    elif known == "synthetic" and source is None:
        draw_scenes(args)
    elif known == "pascal_context":
        source = write_context_labels(args)
    elif known not in CATALOG:
        begun = begun_description((source or args.root / args.dataset) / DESCRIPTION)
        advice = draft_own(args.dataset, args.root, source, begun) if begun is not None else ""
    if write_lists(args, source, missing) and advice:
        print(advice)


def parse_arguments() -> argparse.Namespace:
    """The command line, with the name of the dataset as in list files.

    Raises:
        UserError: an option is missing, or needs another.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", help=f"{', '.join(CATALOG)}, or the folder of your own below --root")
    parser.add_argument("--root", default="data", help="DATASET.ROOT (default: data)")
    parser.add_argument("--source", type=Path, help="folder to link to ROOT/DATASET")
    parser.add_argument("--copy", action="store_true", help="copy --source instead of linking it")
    parser.add_argument(
        "--from",
        dest="form",
        choices=FORMS,
        help="make masks from annotations in --source (labelme: a folder, coco: a file); a dataset that is there gets "
        "them as a further split, and keeps its ids",
    )
    parser.add_argument(
        "--background",
        default="",
        metavar="CLASS",
        help="with --from: class of pixels that no shape covers; ignored without it",
    )
    parser.add_argument(
        "--split",
        choices=SPLITS,
        help="with --from: split of the images; else as the file or folder is named (instances_val.json), or divided",
    )
    drawn = parser.add_argument_group("synthetic", "how many scenes are drawn, and how; scenes that exist are kept")
    for split, count in (("train", 200), ("val", 40), ("test", 10)):
        drawn.add_argument(f"--{split}", type=int, default=count, metavar="N", help=f"scenes (default: {count})")
    drawn.add_argument("--size", type=int, nargs=2, default=(512, 256), metavar=("WIDTH", "HEIGHT"))
    drawn.add_argument("--seed", type=int, default=0, help="random seed of the scenes (default: 0)")
    args = parser.parse_args()
    args.root = local_folder(args.root, "--root")
    args.dataset = folder_name(args.dataset, args.root)
    if args.form and args.source is None:
        raise UserError(f"--from {args.form}: name the annotations with --source")
    if args.form and catalog_name(args.dataset) in CATALOG:
        raise UserError(f"--from {args.form}: {args.dataset} is a known dataset; name one of your own")
    if not args.form and (args.background or args.split):
        raise UserError(f"--{'background' if args.background else 'split'} goes with --from")
    return args


def write_lists(args: argparse.Namespace, source: Path | None, missing: Sequence[str]) -> bool:
    """Writes the lists, and prints their lengths and remarks.

    Args:
        args: the command line.
        source: a folder to link or copy first; None if the data is there already.
        missing: splits that are still to be imported.

    Returns:
        Whether they were written; the data may be insufficient while a split is missing.

    Raises:
        UserError: see `prepare_dataset`.
    """
    if missing:
        names = " and no ".join(missing)
        print(
            f"note: there is no split {names} yet; until it is imported, lists divide the existing images",
            file=sys.stderr,
        )
    try:
        preparation = prepare_dataset(args.dataset, args.root, source=source, copy=args.copy)
    except UserError as error:
        if not missing:
            raise
        print(f"note: no list files before that: {error}", file=sys.stderr)
        return False
    for line in preparation.lines:
        print(line)
    for remark in preparation.remarks:
        print(f"note: {remark}", file=sys.stderr)
    return True


def write_context_labels(args: argparse.Namespace) -> Path | None:
    """Writes the label files of PASCAL-Context; returns the folder that remains to be linked or copied."""
    source = args.source
    # Labels are written into the copy, not into the user's folder.
    if source and args.copy and (devkit := find_devkit(source)) and (devkit / ANNOTATIONS).is_file():
        bring(source, args.root / "pascal_context", copy=True)
        source = None
    folders = [source] if source else [args.root / args.dataset, args.root / "pascal_context"]
    for folder in dict.fromkeys(folders):
        num_labels = write_labels(folder)
        if num_labels:
            print(f"{folder}: {num_labels} label files written from {ANNOTATIONS}")
    return source


def import_split(args: argparse.Namespace) -> tuple[tuple[str, ...], str]:
    """Makes masks from annotations, and an experiment, and prints remarks about them.

    Returns:
        The splits that are still missing, and the next step for the user.
    """
    folder = args.root / args.dataset
    is_new = not (folder / DESCRIPTION).exists()
    done = import_annotations(
        args.form,
        args.source,
        folder,
        background=args.background,
        split=args.split,
        copy=args.copy,
    )
    where = f" in the split {done.split}" if done.split else ""
    print(f"{folder}: masks of {done.num_images} images{where}{', and dataset.json' if is_new else ''}")
    if done.added and not is_new:
        print(f"{folder / DESCRIPTION}: {len(done.added)} more classes at its end: {', '.join(done.added)}")
    num_classes = find_dataset(args.dataset, folder).num_classes
    experiment = begin_experiment(args.dataset, args.root, done.size, num_classes, done.num_images)
    for remark in done.remarks:
        print(f"note: {remark}", file=sys.stderr)
    return done.missing_splits, f"now look: {_audit_of(experiment)}"


def folder_name(text: str, root: Path) -> str:
    """The name of a dataset from the command line.

    Raises:
        UserError: it is a path that leads out of the root, or cannot stand in list files.
    """
    path = Path(text)
    if reason := why_unlisted(path.as_posix()):
        raise UserError(f"{path!s:.100}: {reason} are no names of datasets; rename the folder".replace("\n", " "))
    leads_away = path.is_absolute() or path.name in ("", "..") or ".." in path.parts
    if leads_away or (len(path.parts) > 1 and path.is_dir() and not (root / path).is_dir()):
        there = path.resolve() if leads_away else path
        command = shlex.join(["ovenet", "prepare", there.name, "--root", str(there.parent)])
        raise UserError(f"{text}: give the folder's name, and --root where it lies: {command}")
    return path.as_posix()


def draft_own(name: str, root: Path, source: Path | None, begun: Mapping[str, Any]) -> str:
    """Drafts ``dataset.json`` and an experiment from the masks of a user's folder, and prints the masks' values.

    Args:
        name: of the folder below the root.
        root: ``DATASET.ROOT``.
        source: a folder elsewhere, which is refused.
        begun: keys that ``dataset.json`` has already.

    Returns:
        The next step for the user.

    Raises:
        UserError: there is no such folder, or its masks cannot be interpreted.
    """
    folder = root / name
    if source is not None:
        if not source.is_dir():
            raise UserError(f"--source {source}: no such folder")
        raise UserError(f"{source}: has no {DESCRIPTION}; put the data into {folder}, where one can be drafted")
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such folder; expected one of {', '.join(CATALOG)}, or a folder of your own with images/ and "
            "labels/ (docs/data.md)"
        )
    layouts = begun.get("layouts")
    if not layouts:
        recognized = recognize_layouts(folder)
        layouts = recognized.layouts
        print(f"{folder}: {recognized}")
    draft = read_draft(folder, layouts, ignored=begun.get("ignore", ()))
    require_two_images(draft.num_labels, folder)
    experiment = begin_experiment(name, root, draft.size, len(draft.classes), draft.num_labels)
    write_draft(draft, folder, begun)
    some = "" if draft.num_masks == draft.num_labels else f"the pixels of {draft.num_masks} of "
    print(f"{folder / DESCRIPTION}: drafted from {some}{draft.num_labels} masks")
    for value, share in draft.shares.items():
        role = "ignored" if draft.is_ignored(value) else "a class"
        print(f"  {describe(value)}: {100 * share:.2f} % of the pixels, {role}")
    for remark in draft.remarks:
        print(f"note: {remark}", file=sys.stderr)
    return f"now edit the names in {folder / DESCRIPTION}, remove what is no class, and look: {_audit_of(experiment)}"


def begin_experiment(name: str, root: Path, size: tuple[int, int], num_classes: int, num_images: int) -> Path:
    """Drafts an experiment of a user's dataset, unless there is one; arguments as of `write_experiment`."""
    experiment = root / name / EXPERIMENT
    if experiment.exists():
        print(f"{experiment}: is there already, and stays as it is; DATASET.NUM_CLASSES has to be {num_classes}")
    else:
        backbone = write_experiment(
            name,
            experiment,
            root,
            size=size,
            num_classes=num_classes,
            num_images=num_images,
            on_gpu=torch.cuda.is_available(),
        )
        print(f"{experiment}: crops and sizes chosen for {size[0]}x{size[1]} pixels; {backbone.about}")
    return experiment


def _audit_of(experiment: Path) -> str:
    return f"ovenet audit --cfg {shlex.quote(str(experiment))}"


def draw_scenes(args: argparse.Namespace) -> None:
    """Draws the scenes that are missing.

    Raises:
        UserError: a count, the size or the seed is too small.
    """
    counts = {split: getattr(args, split) for split in SPLITS}
    for option, value, least in (
        *((f"--{split}", count, 1) for split, count in counts.items()),
        ("--size", min(args.size), 64),
        ("--seed", args.seed, 0),
    ):
        if value < least:
            raise UserError(f"{option} is {value}; expected at least {least}")
    size = (args.size[1], args.size[0])
    scenes = write_dataset(args.root / args.dataset, counts, size=size, seed=args.seed)
    for _ in track(scenes, "scenes", sum(counts.values()), tell=tell):
        pass
