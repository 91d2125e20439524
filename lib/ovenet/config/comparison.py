"""Configurations and saved settings compared key by key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from yacs.config import CfgNode

from ovenet.config.compat import REMOVED_KEYS, RENAMED_KEYS
from ovenet.config.loading import load_config_text
from ovenet.config.schema import default_config
from ovenet.fields import flatten


def flat_settings(cfg: CfgNode) -> dict[str, Any]:
    """Every value as plain data, by its whole key."""
    return dict(flatten(yaml.safe_load(cfg.dump())))


def present_settings(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings saved by an earlier version, in the present version's form.

    Args:
        saved: values by key.
        settings: the present settings of the same kind, by key.

    Returns:
        `saved` under present names, with defaults for keys that did not exist then, and without keys that have left
        this kind.
    """
    usual = flat_settings(default_config())
    renamed = {RENAMED_KEYS.get(key, key): value for key, value in saved.items()}
    there = {key: value for key, value in renamed.items() if (key, value) not in REMOVED_KEYS.items()}
    kept = {key: value for key, value in there.items() if key in settings or key not in usual}
    return {key: usual[key] for key in settings if key in usual} | kept


def changed_settings(before: str, cfg: CfgNode) -> dict[str, str]:
    """The differences between a configuration saved earlier and the present one.

    Args:
        before: YAML from ``cfg.dump()``, of this version or an earlier one.
        cfg: the present configuration.

    Returns:
        ``KEY was OLD, is NEW`` by key, for every value that differs or is in only one of them.
    """
    old, new = flat_settings(load_config_text(before, "the checkpoint")), flat_settings(cfg)
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return {key: f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed}
