"""Temperatures of class probabilities, in a file beside the weights that they were fitted for."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovenet.errors import UserError
from ovenet.structures import SYMBOLS

NONE, FITTED = "none", "fitted"
KEY = "temperature"  # in a temperature file, and in the metadata of weights and of exported files
SUFFIX = ".temperature.json"


def temperature_path(weights: Path) -> Path:
    """Path of the temperature file of a file of weights."""
    return weights.with_name(f"{weights.name}{SUFFIX}")


def read_temperatures(weights: Path) -> dict[str, float]:
    """The temperatures by prediction name in the file beside some weights; empty without such a file.

    Raises:
        UserError: the file is damaged, or of other weights.
    """
    path = temperature_path(weights)
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        fitted_for, temperatures = content["sha256"], checked(content[KEY], path)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: damaged ({error!r}); fit it again: ovenet calibrate {weights}") from error
    if fitted_for != digest(weights):
        raise UserError(
            f"{path}: fitted for other weights than {weights.name} (its sha256 differs); fit it again: ovenet "
            f"calibrate {weights} --overwrite"
        )
    return temperatures


def other_settings(weights: Path, used: Mapping[str, Any]) -> list[str]:
    """Names of the settings in a temperature file that differ from those in use.

    Args:
        weights: whose temperature file is looked at, if there is one.
        used: values by the names in the file: ``scales``, ``flip``, ``score``, ``protocol``.
    """
    path = temperature_path(weights)
    fitted = json.loads(path.read_text(encoding="utf-8")).get("settings", {}) if path.exists() else {}
    return [name for name, value in used.items() if fitted.get(name, value) != value]


def checked(temperatures: Any, path: Path) -> dict[str, float]:
    """Temperatures by prediction name, as a file carries them.

    Raises:
        UserError: a name or a temperature cannot be.
    """
    if not isinstance(temperatures, Mapping) or not temperatures:
        raise UserError(f"{path}: {KEY} is {temperatures!r}; expected a number for each prediction")
    for name, value in temperatures.items():
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if name not in SYMBOLS or not is_number or not (0 < value < math.inf):
            raise UserError(f"{path}: {KEY} of {name} is {value!r}; expected a finite number above 0")
    return {name: float(value) for name, value in temperatures.items()}


def chosen_temperatures(value: str | float, weights: Path, carried: Any = None) -> dict[str, float]:
    """The temperatures that ``TEST.TEMPERATURE`` asks for, by prediction name; empty for none.

    Args:
        value: ``none``, ``fitted``, or one temperature for all predictions.
        weights: the file of weights, or exported file.
        carried: what its metadata has under `KEY`; a file beside it counts more.

    Raises:
        UserError: none were fitted, or those in the file cannot be used.
    """
    if value == NONE:
        return {}
    if value != FITTED:
        return dict.fromkeys(SYMBOLS, float(value))
    temperatures = read_temperatures(weights)
    if temperatures:
        return temperatures
    if carried:
        return checked(carried, weights)
    path = temperature_path(weights)
    raise UserError(f"{path}: missing, which TEST.TEMPERATURE fitted reads; write it: ovenet calibrate {weights}")


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
