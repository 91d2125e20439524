"""An experiment for a user's own photos: backbone, crops, batch and schedule, from the data and the machine."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ovenet.preparation.backbones import FoundBackbone
from ovenet.structures import Size
from ovenet.utils.environment import num_cores
from ovenet.utils.writing import write_text

_USUAL_STEPS = 1000  # iterations where nobody has measured how long one takes
_NUM_VALIDATIONS = 10
_BATCH = 8
_CROP = {True: 512, False: 320}  # largest side, on a GPU and on a processor
_LONG_SIDE = {True: 2048, False: 1024}
_LARGEST_EMA = 0.999
_MAX_WORKERS = 4
# A seed that begins as the baseline, with offsets near zero and hardly trusted, and whose confidence learns where its
# scores are the better ones: whether it has the pixel's class is learned for the common classes first, and for pixels
# of rare ones the confidence is then far too high (docs/data.md).
SEED = {"NAME": "neck", "MAX_OFFSET": 0.2, "INITIAL_CONFIDENCE": 0.02}
SEED_LOSS = {"CONFIDENCE_TARGET": "better_scores"}


@dataclass(frozen=True)
class Photos:
    """What the recipe depends on.

    Attributes:
        size: width and height of most photos.
        num_train: photos to train on.
        num_classes: ``K``.
    """

    size: Size
    num_train: int
    num_classes: int


@dataclass(frozen=True)
class Schedule:
    """Length of a training.

    Attributes:
        num_epochs: epochs, with a validation after each.
        repeats: passes over the list in an epoch.
        num_steps: iterations in all, where an epoch is longer than the whole training; else 0.
        batch_size: crops of an iteration.
        total: iterations in all.
    """

    num_epochs: int
    repeats: int
    num_steps: int
    batch_size: int
    total: int

    @classmethod
    def of_steps(cls, num_steps: int, num_train: int, num_validations: int = _NUM_VALIDATIONS) -> Schedule:
        """About so many iterations, with so many validations.

        Args:
            num_steps: iterations, >= 1.
            num_train: photos to train on.
            num_validations: epochs, >= 1.
        """
        num_crops = _BATCH * num_steps
        if num_crops < num_train:  # not even one pass
            return cls(1, 1, num_steps, _BATCH, num_steps)
        num_epochs = min(num_validations, num_steps, num_crops // num_train)
        repeats = max(round(num_crops / (num_epochs * num_train)), math.ceil(_BATCH / num_train))
        return cls(num_epochs, repeats, 0, _BATCH, num_epochs * (repeats * num_train // _BATCH))


def usual_schedule(num_train: int) -> Schedule:
    """The schedule of a drafted experiment: a thousand iterations, or ten epochs where these are more."""
    return Schedule.of_steps(max(_USUAL_STEPS, _NUM_VALIDATIONS * math.ceil(num_train / _BATCH)), num_train)


def recipe(
    photos: Photos, backbone: FoundBackbone, schedule: Schedule, *, on_gpu: bool, with_seed: bool = False
) -> dict[str, Any]:
    """The sections ``MODEL``, ``TRAIN`` and ``TEST`` of an experiment, and ``LOSS`` with a seed.

    Args:
        photos: the data.
        backbone: from `find_backbone`.
        schedule: length of the training.
        on_gpu: whether it will run on a GPU; a processor gets smaller crops.
        with_seed: train a seed too; ``TRAIN.BEST any`` leaves it out of ``best.pth`` where it does not help.
    """
    long_side = min(_LONG_SIDE[on_gpu], max(photos.size))
    scale = long_side / max(photos.size)
    crop = [min(_CROP[on_gpu], max(32, int(side * scale) // 32 * 32)) for side in photos.size]
    pretrained = {"PRETRAINED": backbone.pretrained} if backbone.pretrained else {}
    length = {"ITERATIONS": schedule.num_steps} if schedule.num_steps else {"END_EPOCH": schedule.num_epochs}
    return {
        "MODEL": {
            "BACKBONE": {"NAME": backbone.name, **pretrained},
            "NECK": {"NAME": "concat", "PROJECTION": 64},
            "HEAD": {"NAME": "fcn"},
            **({"SEED": dict(SEED)} if with_seed else {}),
        },
        **({"LOSS": dict(SEED_LOSS)} if with_seed else {}),
        "TRAIN": {
            "IMAGE_SIZE": crop,
            "BASE_SIZE": long_side,
            "SCALE_FACTOR": 10,
            "RARE_CLASS_CROPS": 0.5,
            "PHOTOMETRIC_DISTORTION": True,
            "BATCH_SIZE_PER_GPU": schedule.batch_size,
            "REPEATS": schedule.repeats,
            **length,
            "OPTIMIZER": "adamw",
            "LR": 0.002,
            "WD": 0.01,
            "WARMUP": min(50, schedule.total // 10),
            "EMA": round(min(_LARGEST_EMA, max(0.5, 1 - 10 / schedule.total)), 4),
            "BEST": "any",
        },
        "TEST": {"IMAGE_SIZE": [1024, 1024], "BASE_SIZE": long_side},
    }


def write_experiment(
    path: Path,
    dataset: Mapping[str, Any],
    sections: Mapping[str, Any],
    *,
    comments: tuple[str, ...] = (),
    **settings: Any,
) -> None:
    """Writes an experiment file.

    Args:
        path: of the file.
        dataset: the section ``DATASET``.
        sections: from `recipe`.
        comments: lines at its beginning.
        settings: further keys of the top level.
    """
    content = {"WORKERS": num_workers(), **settings, "DATASET": dict(dataset), **sections}
    head = "".join(f"# {line}\n" for line in comments)
    text = yaml.safe_dump(content, sort_keys=False, default_flow_style=None, allow_unicode=True, width=math.inf)
    write_text(path, head + text)


def num_workers() -> int:
    """Loading processes that leave most cores to the network."""
    return min(_MAX_WORKERS, max(1, num_cores() // 2))
