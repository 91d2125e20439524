"""From a YAML file and ``KEY VALUE`` overrides to one checked, frozen configuration."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ovenet.config.checks import check_config
from ovenet.config.defaults import INERT_KEYS, LISTS_OF_TEXTS, default_config
from ovenet.utils.logging import get_logger

_BASE_KEY = "_BASE_"


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads an experiment file.

    Values come, later ones winning, from the schema's defaults, the files that ``_BASE_`` names (one path or a list,
    relative to the file), the file itself, and the overrides.

    Args:
        path: a YAML file.
        overrides: ``KEY VALUE KEY VALUE …``, as they stand on a command line.

    Returns:
        The frozen configuration, checked across keys.

    Raises:
        ValueError: a file is missing or not YAML, a key is unknown, or a value is of the wrong type or range.
    """
    known = dict(_leaves(default_config()))
    return _assemble(_file_settings(Path(path), known, ()), known, overrides)


def load_config_text(text: str, source: str, overrides: Sequence[str] = ()) -> CfgNode:
    """The configuration that a checkpoint carries.

    Args:
        text: YAML from ``cfg.dump()``.
        source: where it is from, for messages.
        overrides: as for `load_config`.

    Raises:
        ValueError: as `load_config`.
    """
    known = dict(_leaves(default_config()))
    content = [(key, value) for key, value in _flatten(yaml.safe_load(text)) if key not in INERT_KEYS]
    for key, _ in content:
        _require_known(key, known, source)
    return _assemble(((key, value, source) for key, value in content), known, overrides)


def _assemble(
    file_settings: Iterable[tuple[str, Any, str]], known: dict[str, Any], overrides: Sequence[str]
) -> CfgNode:
    cfg = default_config()
    settings = {key: (value, source) for key, value, source in file_settings}
    settings.update({key: (value, "the command line") for key, value in _parse_overrides(overrides, known)})
    for key, (value, source) in settings.items():
        _assign(cfg, key, _coerce(key, value, known[key], source))
    _adopt_misspelled_branches(cfg, settings)
    check_config(cfg)
    _warn_about_inert_keys(settings)
    cfg.freeze()
    return cfg


def flat_settings(cfg: CfgNode) -> dict[str, Any]:
    """Every value by its whole key, as YAML knows it."""
    return dict(_flatten(yaml.safe_load(cfg.dump())))


def changed_settings(before: str, cfg: CfgNode) -> list[str]:
    """What differs between a configuration saved earlier and the present one.

    Args:
        before: YAML from ``cfg.dump()``.
        cfg: the present configuration.

    Returns:
        ``KEY was OLD, is NEW`` for every key whose value differs or that only one of them has.
    """
    old, new = dict(_flatten(yaml.safe_load(before))), flat_settings(cfg)
    return [
        f"{key} was {old.get(key)}, is {new.get(key)}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)
    ]


def _file_settings(path: Path, known: dict[str, Any], children: tuple[Path, ...]) -> Iterator[tuple[str, Any, str]]:
    """Yields ``key, value, source`` of the file's bases, then of the file."""
    if path.resolve() in children:
        raise ValueError(f"{path}: {_BASE_KEY} leads back to the file itself")
    content = _read_yaml(path)
    bases = content.pop(_BASE_KEY, [])
    for base in [bases] if isinstance(bases, str) else bases:
        yield from _file_settings(path.parent / base, known, (*children, path.resolve()))
    for key, value in _flatten(content):
        _require_known(key, known, str(path))
        yield key, value, str(path)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot read the config file: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected `KEY: value` lines, got a {type(content).__name__}")
    return content


def _parse_overrides(overrides: Sequence[str], known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if len(overrides) % 2:
        raise ValueError(f"overrides come as KEY VALUE pairs; {overrides[-1]} has no value")
    for key, text in zip(overrides[::2], overrides[1::2], strict=True):
        _require_known(key, known, "the command line")
        yield key, text if isinstance(known[key], str) else _literal(text)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _leaves(node: CfgNode, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in node.items():
        if isinstance(value, CfgNode):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _flatten(content: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _require_known(key: str, known: dict[str, Any], source: str) -> None:
    if key in known:
        return
    nearest = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
    if any(name.startswith(f"{key}.") for name in known):
        raise ValueError(f"{source}: {key} is a section, not a key; its keys look like {nearest[0]}")
    raise ValueError(f"{source}: unknown key {key}; did you mean {nearest[0]}?")


def _coerce(key: str, value: Any, default: Any, source: str) -> Any:
    """Brings a value to the default's type where nothing is lost, else refuses it."""
    expected = type(default)
    if isinstance(value, str) and expected is not str and key not in LISTS_OF_TEXTS:
        try:  # "(0,1,2,3)" and "1e-2" are strings to YAML
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            raise _wrong_type(key, value, expected, source) from None
    if expected is str and value is None:
        return ""
    if expected in (list, tuple):
        items = value.split(",") if isinstance(value, str) else value
        items = list(items) if isinstance(items, (list, tuple)) else [items]
        wanted = (str,) if key in LISTS_OF_TEXTS else (int, float)
        fits = all(isinstance(item, wanted) and not isinstance(item, bool) for item in items)
        if fits or key in INERT_KEYS:
            return expected(items)
        raise _wrong_type(key, value, expected, source)
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if type(value) is not expected:
        raise _wrong_type(key, value, expected, source)
    return value


def _wrong_type(key: str, value: Any, expected: type, source: str) -> ValueError:
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text"}
    wanted = names.get(expected, "a list of texts" if key in LISTS_OF_TEXTS else "a list of numbers")
    return ValueError(f"{source}: {key} is {value!r}; expected {wanted}")


def _assign(cfg: CfgNode, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        cfg = cfg[section]
    cfg[name] = value


def _adopt_misspelled_branches(cfg: CfgNode, settings: dict[str, Any]) -> None:
    """NUM_RANCHES stands for NUM_BRANCHES where a file spells it so; afterwards both agree."""
    for name, node in cfg.MODEL.EXTRA.items():
        if not name.startswith("STAGE"):
            continue
        if f"MODEL.EXTRA.{name}.NUM_RANCHES" in settings and f"MODEL.EXTRA.{name}.NUM_BRANCHES" not in settings:
            node.NUM_BRANCHES = node.NUM_RANCHES
        node.NUM_RANCHES = node.NUM_BRANCHES


def _warn_about_inert_keys(settings: dict[str, Any]) -> None:
    inert = [f"{key} ({INERT_KEYS[key]})" for key in settings if key in INERT_KEYS]
    if inert:
        get_logger().warning("settings without effect here: %s", "; ".join(inert))
