"""From a YAML file and ``KEY VALUE`` overrides to one checked, frozen configuration."""

from __future__ import annotations

import ast
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from ovenet.config import compat
from ovenet.config.checks import check_config
from ovenet.config.compat import INERT_KEYS, RENAMED_KEYS, TRANSLATED, Setting
from ovenet.config.merging import PART_SECTIONS, SettingsMerger, is_argument
from ovenet.config.schema import KEYS, VERSION, default_config
from ovenet.errors import UserError, nearest
from ovenet.fields import flatten
from ovenet.models.settings import NO_SEED
from ovenet.utils.bundled import bundled_folder
from ovenet.utils.logging import get_logger

EXPERIMENTS = bundled_folder("experiments")
_BASE_KEY = "_BASE_"
COMMAND_LINE = "the command line"
MAX_NODES = 100_000
LISTS_OF_TEXTS = (*(name for name, key in KEYS.items() if key.item is str), *compat.LISTS_OF_TEXTS)
LISTS_OF_TABLES = tuple(name for name, key in KEYS.items() if key.item is dict)  # all other lists hold numbers


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> CfgNode:
    """Reads an experiment file.

    Values come, later ones winning, from the schema's defaults, the files that ``_BASE_`` names (one or a list: paths
    relative to the file, or experiments that come along), the file itself, and the overrides. Where one of them names
    another part of the model, the arguments that an earlier one set for the part before it are dropped.

    Args:
        path: a YAML file; published ones of HRNet and OVeNet are translated, see `ovenet.config.compat`. Or the name of
            an experiment that comes along, such as ``camvid/ovenet_lite0_fcn``, see `find_experiment`.
        overrides: ``KEY VALUE KEY VALUE …``, as they stand on a command line.

    Returns:
        The frozen configuration, checked across keys.

    Raises:
        UserError: a file is missing or not YAML, a key is unknown, or a value is of the wrong type or range.
    """
    sources = list(_file_sources(find_experiment(path), ()))
    for source, content in sources:
        if compat.shortens_validation(content):
            get_logger().warning(
                "%s: TEST.NUM_SAMPLES %s shortens validation in training, as in its code; tests take the whole list",
                source,
                content["TEST.NUM_SAMPLES"],
            )
    return _assemble(_as_meant(sources), overrides)


def _as_meant(sources: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Files, published ones with ``TEST.NUM_SAMPLES`` as what it does in their code."""
    renamed = {"TEST.NUM_SAMPLES": "TRAIN.EVAL_NUM_SAMPLES"}
    return [
        (source, {renamed.get(k, k): v for k, v in content.items()} if compat.shortens_validation(content) else content)
        for source, content in sources
    ]


def setting_sources(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """Where the settings of `load_config` come from: a file or the command line, by key; defaults are left out.

    Raises:
        UserError: as `load_config`.
    """
    known = dict(_leaves(default_config())) | TRANSLATED
    sources = _all_sources(_as_meant(list(_file_sources(find_experiment(path), ()))), overrides, known)
    return {key: source for key, (_, source) in _merge(sources, known)[0].items() if source}


def find_experiment(path: str | Path) -> Path:
    """The file of that path or, where there is none, the experiment of that name that comes along.

    Args:
        path: of a file, or ``<dataset>/<experiment>``, with or without ``experiments/`` before it and ``.yaml`` after.
            An experiment in a folder ``published`` is found without that folder too.
    """
    path = Path(path)
    if path.exists():
        return path
    bundled = EXPERIMENTS.joinpath(*(path.parts[1:] if path.parts[:1] == ("experiments",) else path.parts))
    candidates = [path] if path.is_absolute() else [path, bundled, bundled.with_name(bundled.name + ".yaml")]
    return next(filter(None, map(_present, candidates)), path)


def _present(path: Path) -> Path | None:
    """The file or, where there is none, the one of its name in the folder ``published`` beside it."""
    return next((file for file in (path, path.parent / "published" / path.name) if file.is_file()), None)


def load_config_text(text: str, source: str, overrides: Sequence[str] = ()) -> CfgNode:
    """The configuration that a checkpoint carries.

    Args:
        text: YAML from ``cfg.dump()``, of this version or an earlier one.
        source: where it is from, for messages.
        overrides: as for `load_config`.

    Raises:
        UserError: as `load_config`.
    """
    content = {key: value for key, value in flatten(_parse_yaml(text, source)) if key not in INERT_KEYS}
    if not content:
        raise UserError(f"{source}: its configuration is empty; name the experiment file (--cfg FILE)")
    return _assemble([(source, content)], overrides, dump=source)


def _assemble(sources: list[tuple[str, dict[str, Any]]], overrides: Sequence[str], dump: str = "") -> CfgNode:
    cfg = default_config()
    known = dict(_leaves(cfg)) | TRANSLATED
    sources = _all_sources(sources, overrides, known)
    settings, ignored, published = _merge(sources, known)
    for key, (value, _) in settings.items():
        _assign(cfg, key, value)
    cfg.VERSION = VERSION
    check_config(cfg)
    inert = {key: INERT_KEYS[key] for _, content in sources for key in content if key in INERT_KEYS}
    if cfg.TRAIN.FREEZE_LAYERS and cfg.TRAIN.FREEZE_EPOCHS <= cfg.TRAIN.BEGIN_EPOCH and not dump:
        inert["TRAIN.FREEZE_LAYERS"] = f"TRAIN.FREEZE_EPOCHS is {cfg.TRAIN.FREEZE_EPOCHS}"
    # a dump says every key, whether it has an effect or not
    _warn_about_ignored_keys(inert | {key: why for key, (why, source) in ignored.items() if source != dump})
    if published.get("MODEL.NAME", ("", ""))[0] == "branched_seg_hrnet" and cfg.MODEL.SEED.NAME == NO_SEED:
        get_logger().warning(
            "MODEL.NAME is branched_seg_hrnet, but MODEL.EXTRA.OFFSET_BRANCH is 0: this is the baseline; set it to 2, "
            "3 or 4 for an OVeNet"
        )
    cfg.freeze()
    return cfg


def _all_sources(
    sources: list[tuple[str, dict[str, Any]]], overrides: Sequence[str], known: dict[str, Any]
) -> list[tuple[str, dict[str, Any]]]:
    """Files and overrides, under the present names of the keys."""
    sources = [(source, _under_present_names(content, source)) for source, content in sources]
    for source, content in sources:
        for key in content:
            _require_known(key, known, source)
    return [*sources, (COMMAND_LINE, _under_present_names(dict(_parse_overrides(overrides, known)), COMMAND_LINE))]


def _under_present_names(content: dict[str, Any], source: str) -> dict[str, Any]:
    for old, new in RENAMED_KEYS.items():
        if old in content and content.get(new, content[old]) != content[old]:
            raise UserError(
                f"{source}: {old} is {content[old]!r}, but {new}, its name now, is {content[new]!r}; leave one away"
            )
    return {RENAMED_KEYS.get(key, key): value for key, value in content.items()}


def _merge(
    sources: list[tuple[str, dict[str, Any]]], known: dict[str, Any]
) -> tuple[dict[str, Setting], dict[str, Setting], Mapping[str, Setting]]:
    """See `SettingsMerger.finish`; and the published keys that are in force."""
    merger = SettingsMerger({f"{part}.NAME": known[f"{part}.NAME"] for part in PART_SECTIONS})
    for source, content in sources:
        coerced = {k: (_coerce(k, v, known, source), source) for k, v in content.items() if k not in INERT_KEYS}
        version = coerced.get("VERSION", (VERSION, ""))[0]
        if version > VERSION:
            raise UserError(f"{source}: a config of version {version}; this program knows {VERSION}: update it")
        merger.add(coerced)
    settings, ignored = merger.finish()
    keys_of_files = {key for source, content in sources if source != COMMAND_LINE for key in content}
    return {**compat.conventions(merger.published, keys_of_files, settings), **settings}, ignored, merger.published


def flat_settings(cfg: CfgNode) -> dict[str, Any]:
    """Every value by its whole key, as YAML knows it."""
    return dict(flatten(yaml.safe_load(cfg.dump())))


def present_settings(saved: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version saved, as the present one would have.

    Args:
        saved: values by key.
        settings: the present ones of that kind.

    Returns:
        `saved` under present names, with the defaults of keys that did not exist then, without those that are not of
        that kind any more.
    """
    usual = flat_settings(default_config())
    renamed = {RENAMED_KEYS.get(key, key): value for key, value in saved.items()}
    kept = {key: value for key, value in renamed.items() if key in settings or key not in usual}
    return {key: usual[key] for key in settings if key in usual} | kept


def changed_settings(before: str, cfg: CfgNode) -> dict[str, str]:
    """What differs between a configuration saved earlier and the present one.

    Args:
        before: YAML from ``cfg.dump()``, of this version or an earlier one.
        cfg: the present configuration.

    Returns:
        ``KEY was OLD, is NEW`` by key, for every one whose value differs or that only one of them has.
    """
    old, new = flat_settings(load_config_text(before, "the checkpoint")), flat_settings(cfg)
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return {key: f"{key} was {old.get(key)}, is {new.get(key)}" for key in changed}


def _file_sources(path: Path, children: tuple[Path, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields the settings of the file's bases, then of the file, each with its name."""
    if path.resolve() in children:
        raise UserError(f"{path}: {_BASE_KEY} leads back to the file itself")
    content = read_yaml(path)
    bases = content.pop(_BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UserError(f"{path}: {_BASE_KEY} is {bases!r}; expected a file, or a list of files")
    for base in bases:
        beside = path.parent / base
        # a name of an experiment that comes along, from wherever the file lies
        found = _present(beside) or find_experiment(base)
        yield from _file_sources(found if found.exists() else beside, (*children, path.resolve()))
    yield str(path), dict(flatten(content))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a table.

    Raises:
        UserError: it cannot be read, or holds something else.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the config file: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not in UTF-8 (byte {error.start}); save the file as UTF-8") from error
    except ValueError as error:  # a NUL in the name
        raise UserError(f"{str(path)!r}: no name of a file: {error}") from error
    return _parse_yaml(text, str(path))


def _parse_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        content = yaml.load(text, _UniqueKeyLoader)
        if _num_nodes(content, {}) > MAX_NODES:
            raise UserError(
                f"{source}: more than {MAX_NODES} values, counting what aliases repeat; no config is so large"
            )
    except _RepeatedKeyError as error:
        raise UserError(f"{source}, {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not a YAML file: {' '.join(str(error).split())[:300]}") from error
    except RecursionError:
        raise UserError(f"{source}: nested too deeply for a config file") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{source}: expected `KEY: value` lines, got a {type(content).__name__}")
    return content


class _RepeatedKeyError(Exception):
    """A key that stands twice in one table."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses tables with a key that stands twice, of which YAML would take the last."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        """A table, before aliases are merged into it."""
        node = super().compose_mapping_node(anchor)
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise _RepeatedKeyError(
                        f"line {line}: {key.value} stands there a second time, after line {lines[key.value]}; join them"
                    )
                lines[key.value] = line
        return node


def _num_nodes(content: Any, known: dict[int, int]) -> int:
    """Values in a YAML document, those behind aliases counted wherever they are repeated."""
    if not isinstance(content, (dict, list)):
        return 1
    if id(content) not in known:
        known[id(content)] = MAX_NODES  # of one that holds itself
        children = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_num_nodes(child, known) for child in children)
    return known[id(content)]


_WORDS_OF_YAML = {"null": None, "true": True, "false": False}


def _parse_overrides(overrides: Sequence[str], known: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    if len(overrides) % 2:
        raise UserError(f"overrides come as KEY VALUE pairs; {overrides[-1]} has no value")
    for name, text in zip(overrides[::2], overrides[1::2], strict=True):
        key = RENAMED_KEYS.get(name, name)
        _require_known(key, known, COMMAND_LINE)
        yield name, text if isinstance(known.get(key), str) else _literal(text)


def _texts(value: str) -> list[str]:
    """``a, b``, ``[a, b]`` as YAML has it, and ``a,b``."""
    return [text.strip() for text in value.strip().removeprefix("[").removesuffix("]").split(",")]


def _literal(text: str) -> Any:
    if text in _WORDS_OF_YAML:
        return _WORDS_OF_YAML[text]
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


def _require_known(key: str, known: dict[str, Any], source: str) -> None:
    if key in known or key in INERT_KEYS or is_argument(key):
        return
    names = {*known, *INERT_KEYS}
    guess = nearest(key, names)
    if any(name.startswith(f"{key}.") for name in names):
        raise UserError(f"{source}: {key} is a section, not a key; its keys look like {guess}")
    raise UserError(f"{source}: unknown key {key}; did you mean {guess}?")


def _coerce(key: str, value: Any, known: dict[str, Any], source: str) -> Any:
    """Converts a value to the default's type where that loses nothing, else refuses it."""
    if key not in known:  # an argument of a part, which is checked against the part's signature
        return value
    default = known[key]
    expected = type(default)
    if isinstance(value, str) and expected is not str and key not in LISTS_OF_TEXTS:
        value = _literal(value)  # "(0,1,2,3)" and "1e-2" are strings to YAML
    if expected is str and value is None:
        return ""
    if default == "auto" and isinstance(value, bool):
        return "on" if value else "off"  # which YAML takes for truth values
    if expected is list:
        items = _texts(value) if isinstance(value, str) and key in LISTS_OF_TEXTS else value
        items = list(items) if isinstance(items, (list, tuple)) else [items]
        if not all(_is_item(item, key) for item in items):
            raise _wrong_type(key, value, expected, source)
        return items
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not expected or (expected is float and not math.isfinite(value)):
        raise _wrong_type(key, value, expected, source)
    return value


def _is_item(item: Any, key: str) -> bool:
    if key in LISTS_OF_TABLES:
        return isinstance(item, dict)
    if key in LISTS_OF_TEXTS:
        return isinstance(item, str)
    return isinstance(item, (int, float)) and not isinstance(item, bool) and math.isfinite(item)


def _wrong_type(key: str, value: Any, expected: type, source: str) -> UserError:
    kind = "texts" if key in LISTS_OF_TEXTS else "tables, {NAME: …}" if key in LISTS_OF_TABLES else "numbers"
    names = {bool: "True or False", int: "a whole number", float: "a number", str: "a text", list: f"a list of {kind}"}
    return UserError(f"{source}: {key} is {value!r}; expected {names[expected]}")


def _assign(cfg: CfgNode, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    for section in sections:
        cfg = cfg[section]
    cfg[name] = value


def _warn_about_ignored_keys(reasons: Mapping[str, str]) -> None:
    """Names each key once, the keys of a section that has one reason together."""
    groups: dict[str, str] = {}
    for key, reason in reasons.items():
        section, _, _ = key.rpartition(".")
        groups[f"{section}.*" if section.startswith("MODEL.EXTRA.STAGE") else key] = reason
    if groups:
        listed = "; ".join(f"{key} ({reason})" for key, reason in groups.items())
        get_logger().warning("settings without effect here: %s", listed)
