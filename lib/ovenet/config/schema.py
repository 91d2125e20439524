"""Composes the settings of all components into the tree that users edit; `KEYS` has the metadata of each key.

Sizes are ``[width, height]`` in pixels, as in public HRNet files, whose model keys `ovenet.config.compat` translates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar, get_type_hints

from yacs.config import CfgNode

from ovenet.data.settings import CropSettings, DatasetSettings, LoaderSettings, WorkerSettings
from ovenet.engine.settings import (
    CheckpointSettings,
    CudnnSettings,
    LearningRateMultipliers,
    OptimizerSettings,
    RunSettings,
    ScheduleSettings,
    StepSettings,
)
from ovenet.evaluation.settings import TestSettings
from ovenet.fields import Role, Setting, settings_of
from ovenet.inference.settings import InferenceKeys
from ovenet.losses.settings import ContrastSettings, LossSettings
from ovenet.models.settings import (
    BackboneSettings,
    HeadSettings,
    ModelSettings,
    NeckSettings,
    SeedSettings,
)

VERSION = 2  # of the schema; 1 described the model as the public HRNet and OVeNet files do
SECTIONS: tuple[tuple[str, type], ...] = (
    ("", RunSettings),
    ("", WorkerSettings),
    ("CUDNN", CudnnSettings),
    ("MODEL.BACKBONE", BackboneSettings),
    ("MODEL.NECK", NeckSettings),
    ("MODEL.HEAD", HeadSettings),
    ("MODEL.SEED", SeedSettings),
    ("MODEL", ModelSettings),
    ("LOSS", LossSettings),
    ("LOSS.CONTRAST", ContrastSettings),
    ("DATASET", DatasetSettings),
    ("TRAIN", CropSettings),
    ("TRAIN", LoaderSettings),
    ("TRAIN", OptimizerSettings),
    ("TRAIN", ScheduleSettings),
    ("TRAIN", StepSettings),
    ("TRAIN", CheckpointSettings),
    ("TRAIN.LR_MULT", LearningRateMultipliers),
    ("TEST", InferenceKeys),
    ("TEST", TestSettings),
)
T = TypeVar("T")


@dataclass(frozen=True)
class Key:
    """One key of the tree.

    Attributes:
        name: whole key, with its sections: ``TRAIN.LR``.
        default: in the tree, which has lists for tuples.
        hint: type of the component's field, which has tuples for lists.
        setting: meaning, range and role.
    """

    name: str
    default: Any
    hint: Any
    setting: Setting


def _keys() -> Iterator[Key]:
    for prefix, component in SECTIONS:
        hints = get_type_hints(component)
        for name, (field, setting) in settings_of(component).items():
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            yield Key(f"{prefix}.{name}" if prefix else name, default, hints[field.name], setting)


KEYS: dict[str, Key] = {key.name: key for key in _keys()}


def default_config() -> CfgNode:
    """A fresh, mutable configuration with every key at its default: HRNet-W48 on Cityscapes."""
    root = CfgNode({"VERSION": VERSION})  # checkpoints carry it
    for key in KEYS.values():
        *sections, name = key.name.split(".")
        node = root
        for part in sections:
            if part not in node:
                node[part] = CfgNode()
            node = node[part]
        node[name] = list(key.default) if isinstance(key.default, list) else key.default
    return root


def section(cfg: CfgNode, component: type[T]) -> T:
    """The settings of a component, from a configuration."""
    prefix = next(prefix for prefix, one in SECTIONS if one is component)
    node = cfg
    for part in filter(None, prefix.split(".")):
        node = node[part]
    values = {field.name: node[name] for name, (field, _) in settings_of(component).items()}
    return component(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def keys_of_role(*roles: Role) -> frozenset[str]:
    """The keys with one of the roles, see `ovenet.fields.Setting`."""
    return frozenset(name for name, key in KEYS.items() if key.setting.role in roles)


def affects_training(key: str) -> bool:
    """Whether a key changes what a training computes, as all arguments of parts do; ``SEED`` does not count."""
    return key not in _WITHOUT_EFFECT_ON_TRAINING


def affects_test(key: str) -> bool:
    """Whether a key changes the counts of a test of given weights, as all arguments of parts do."""
    return KEYS[key].setting.in_test if key in KEYS else key.startswith("MODEL.")


_WITHOUT_EFFECT_ON_TRAINING = keys_of_role("place", "speed") | {"SEED", "VERSION"}
