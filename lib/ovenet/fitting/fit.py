"""Prepares and audits photos, plans, trains, tests and reports: the parts that the other commands have, in one call."""

from __future__ import annotations

import json
import math
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from ovenet.commands.test import evaluate
from ovenet.commands.train import train
from ovenet.config import load_config
from ovenet.data.catalog import CATALOG, catalog_name
from ovenet.data.files import why_unlisted
from ovenet.engine.checkpoint import FINAL
from ovenet.engine.interruption import Interruption
from ovenet.errors import UserError
from ovenet.fitting.photos import Paths, PhotoSet, read_photos, require_folders
from ovenet.fitting.timing import measure, plan_training, total_seconds
from ovenet.predictor.predictor import Predictor, load
from ovenet.preparation.backbones import FoundBackbone, find_backbone
from ovenet.preparation.draft import list_settings
from ovenet.preparation.prepare import prepare_dataset
from ovenet.preparation.recipe import Photos, Schedule, recipe, write_experiment
from ovenet.report.page import REPORT
from ovenet.report.runs import find_evaluation, read_run
from ovenet.utils.distributed import choose_device
from ovenet.utils.run_lock import run_lock
from ovenet.utils.run_names import FIT
from ovenet.utils.writing import write_text

_REQUEST = "fit.json"
_ROOM_MB = 400  # of checkpoints, weights and report


@dataclass(frozen=True)
class Request:
    """What was asked for; the same request goes on where it was interrupted.

    Attributes:
        photos, masks: absolute paths.
        classes: names.
        with_seed: see `fit`.
    """

    photos: Any
    masks: Any
    classes: tuple[str, ...]
    with_seed: bool


@dataclass(frozen=True)
class Place:
    """The files of a fit.

    Attributes:
        folder: of all of them, whose name is that of the dataset.
    """

    folder: Path

    @property
    def root(self) -> Path:
        """``DATASET.ROOT``."""
        return self.folder / "data"

    @property
    def experiment(self) -> Path:
        """The experiment, an ordinary one."""
        return self.folder / f"{FIT}.yaml"

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.folder / FIT


def fit(
    images: Paths,
    masks: Paths | None = None,
    *,
    output: str | Path | None = None,
    minutes: float = 10.0,
    classes: Sequence[str] = (),
    with_seed: bool = False,
    max_steps: int | None = None,
    device: str = "auto",
) -> Predictor:
    """Trains a model on photos and masks, and returns it.

        predictor = ovenet.fit("photos", "masks", minutes=10)
        predictor("new.jpg").overlay().show()

    The same call goes on with an interrupted one. What it writes is an experiment, ``OUTPUT/fit.yaml``, and a run,
    ``OUTPUT/fit``, as all commands take them.

    Args:
        images: a folder of photos, or files.
        masks: a folder of masks with the names of the photos, or as many files in the same order; None if `images` is a
            folder that has both.
        output: a new folder; None is ``output/<name of the folder above the photos>``.
        minutes: time that training may take, from here to the report.
        classes: names of the classes, in the order of the ids in the masks, or of their shares for masks in colours.
        with_seed: train a seed too, and keep it if it predicts the validation photos better.
        max_steps: upper limit of the iterations.
        device: see `ovenet.utils.distributed.choose_device`.

    Raises:
        UserError: training on these files would be wrong, or the folder has something else in it.
    """
    started = time.monotonic()
    if not 0 < minutes < math.inf:
        raise UserError(f"minutes are {minutes}; expected a number above 0")
    if max_steps is not None and max_steps < 1:
        raise UserError(f"the limit of steps is {max_steps}; expected at least 1")
    request = Request(_absolute(images), _absolute(masks), tuple(classes), with_seed)
    place = Place(Path(output) if output is not None else Path("output") / _default_name(images))
    _require_own(place, request)
    if not place.experiment.exists():
        photos = read_photos(images, masks, request.classes)
        _require_room(place.folder)
        with run_lock(place.folder):
            write_text(place.folder / _REQUEST, json.dumps(asdict(request), indent=2) + "\n")
            _prepare(place, photos)
            left_s = 60 * minutes - (time.monotonic() - started)
            _write_experiment(place, photos, choose_device(device), left_s, max_steps, with_seed=with_seed)
    overrides = ["DEVICE", device]
    if not (place.run / FINAL).exists():
        with Interruption(at_once=True) as interruption:
            train(str(place.experiment), [*overrides, "TRAIN.RESUME", "True"], interruption)
    if not any(place.run.glob(f"test/*/{REPORT}")):
        evaluate(str(place.experiment), [*overrides, "TEST.REPORT", "True", *_resumed_test(place)])
    predictor = load(place.run, device=device)
    if with_seed:
        left_out = "left out, since S_i predicts the validation photos as well without it"
        print(f"seed:        {left_out if predictor.max_offset is None else 'kept, since S_f is better than S_i'}")
    return predictor


def in_words(results: Mapping[str, Any]) -> str:
    """What a test found, in a sentence.

    Args:
        results: of one prediction, from ``results.json``.
    """
    ious = {name: iou for name, iou in results["iou"].items() if iou is not None}  # absent classes have none
    missed = [name for name, iou in ious.items() if iou == 0]
    never = f"; never found: {', '.join(missed)}" if missed else ""
    return (
        f"{100 * results['pixel_accuracy']:.0f} % of the pixels of the validation photos are right, and "
        f"{len(ious) - len(missed)} of their {len(ious)} classes are found{never}"
    )


def next_commands(folder: Path) -> str:
    """What came of a finished fit, and what to do with it, for the terminal."""
    place = Place(folder)
    run = shlex.quote(str(place.run))
    test = find_evaluation(place.run)
    return "\n".join(
        (
            f"result:      {in_words(read_run(test, FIT).results['results']['fused'])}",
            f"report:      {test / REPORT}",
            "",
            "next:",
            f"  ovenet infer {run} photo.jpg       # masks, overlays and shares of new photos",
            f"  ovenet app {run}                   # a page where photos can be dropped",
            f"  ovenet test --cfg {shlex.quote(str(place.experiment))} TEST.FLIP_TEST True TEST.REPORT True"
            "   # scores with mirrored views, a little better and twice as slow",
        )
    )


def _absolute(files: Paths | None) -> Any:
    if files is None or isinstance(files, (str, Path)):
        return None if files is None else str(Path(files).resolve())
    return [str(Path(file).resolve()) for file in files]


def _default_name(images: Paths) -> str:
    if not isinstance(images, (str, Path)):
        raise UserError("name a folder for the results (output) where photos are given as files")
    name = Path(images).resolve().parent.name or "photos"
    if why_unlisted(name):
        return "photos"
    return f"{name}-photos" if catalog_name(name) in CATALOG else name


def _require_own(place: Place, request: Request) -> None:
    """Refuses a folder with anything else in it than an earlier part of the same fit."""
    folder = place.folder
    if catalog_name(folder.name) in CATALOG or why_unlisted(folder.name) or folder.name in ("", ".", ".."):
        raise UserError(f"--output {folder}: {folder.name!r} cannot be the name of a new dataset; choose another name")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"--output {folder}: a file; name a new folder")
    try:
        saved = json.loads((folder / _REQUEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        if any(folder.iterdir()):
            raise UserError(f"{folder}: has files in it already; name a new folder with --output") from None
        return
    wanted = json.loads(json.dumps(asdict(request)))
    changed = [key for key in wanted if saved.get(key) != wanted[key]]
    if changed:
        require_folders(request.photos, request.masks)
        raise UserError(
            f"{folder}: holds a model of other {' and '.join(changed)}; name a new folder with --output, or repeat the "
            "call that made it"
        )


def _require_room(folder: Path) -> None:
    there = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.exists())
    free = shutil.disk_usage(there).free / 1e6
    if free < _ROOM_MB:
        raise UserError(
            f"{folder}: {free:.0f} MB are free there, and checkpoints need {_ROOM_MB}; choose another --output"
        )


def _prepare(place: Place, photos: PhotoSet) -> None:
    for line in photos.lines:
        print(line)
    for note in photos.notes:
        print(f"note: {note}", file=sys.stderr)
    name = place.folder.name
    photos.write(place.root / name)
    prepare_dataset(name, place.root)


def _write_experiment(
    place: Place, photos: PhotoSet, device: torch.device, seconds: float, max_steps: int | None, *, with_seed: bool
) -> None:
    """Writes the experiment: first a provisional one, whose steps are timed."""
    num_train, num_val = (len(photos.pairs[split]) for split in ("train", "val"))
    about = Photos(photos.size, num_train, photos.num_classes)
    backbone = find_backbone()
    print(f"backbone: {backbone.about}")
    provisional = place.folder / f".{FIT}.yaml"
    schedule = Schedule.of_steps(100, num_train)
    _write(place, provisional, about, backbone, schedule, device, with_seed=with_seed)
    times = measure(load_config(provisional, ["WORKERS", "0"]), device)
    plan = plan_training(times, seconds, num_train=num_train, num_val=num_val, batch_size=schedule.batch_size)
    num_steps = min(plan.num_steps, max_steps or plan.num_steps)
    schedule = Schedule.of_steps(num_steps, num_train, plan.num_validations)
    _write(place, provisional, about, backbone, schedule, device, with_seed=with_seed)
    provisional.replace(place.experiment)
    spent = total_seconds(times, schedule.total, schedule.num_epochs, num_val=num_val)
    print(
        f"{place.experiment}: {num_train} photos to train on, {num_val} to validate; {schedule.total} steps of "
        f"{schedule.batch_size} crops at {times.step_s:.2f} s, {schedule.num_epochs} validations; "
        f"about {timedelta(seconds=round(spent))}"
    )
    if schedule.total < 100 and max_steps is None:
        print(f"note: {schedule.total} steps are few; more --minutes, or a GPU, give a better model", file=sys.stderr)


def _write(
    place: Place,
    path: Path,
    about: Photos,
    backbone: FoundBackbone,
    schedule: Schedule,
    device: torch.device,
    *,
    with_seed: bool,
) -> None:
    name = place.folder.name
    sections = recipe(about, backbone, schedule, on_gpu=device.type == "cuda", with_seed=with_seed)
    dataset = {
        "DATASET": name,
        "ROOT": str(place.root.resolve()),
        "NUM_CLASSES": about.num_classes,
        **list_settings(name),
    }
    write_experiment(
        path,
        dataset,
        sections,
        comments=(f"Written by ovenet fit for {about.num_train} photos of {about.size[0]}x{about.size[1]} pixels.",),
        OUTPUT_DIR=str(place.folder.resolve().parent),
        PRINT_FREQ=max(1, schedule.total // schedule.num_epochs),
    )


def _resumed_test(place: Place) -> list[str]:
    """The setting that goes on with an interrupted test, if there is one."""
    return ["TEST.RESUME", "True"] if any(place.run.glob("test/*/unfinished")) else []
