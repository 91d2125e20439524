"""From a YAML file and ``KEY VALUE`` overrides to one checked, frozen configuration."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin

from yacs.config import CfgNode

from ovenet.config import compat
from ovenet.config.checks import check_config
from ovenet.config.compat import INERT_KEYS, REMOVED_KEYS, RENAMED_KEYS, TRANSLATED_TYPES, Setting
from ovenet.config.merging import PART_SECTIONS, SettingsMerger, is_argument
from ovenet.config.schema import KEYS, VERSION, default_config
from ovenet.config.yaml_file import parse_yaml, read_yaml
from ovenet.conversion import convert, described
from ovenet.errors import UserError, nearest
from ovenet.fields import flatten
from ovenet.models.settings import NO_SEED
from ovenet.utils.bundled import bundled_folder
from ovenet.utils.logging import get_logger

EXPERIMENTS = bundled_folder("experiments")
COMMAND_LINE = "the command line"
TYPES: dict[str, Any] = {"VERSION": int, **{name: key.hint for name, key in KEYS.items()}, **TRANSLATED_TYPES}
_BASE_KEY = "_BASE_"
_WORDS_OF_YAML = {"null": None, "true": True, "false": False}

Source = tuple[str, dict[str, Any]]  # name, and values by key


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
        The frozen configuration, checked across keys. `ovenet.config.check_parts` checks the parts that it names.

    Raises:
        UserError: a file is missing or not YAML, a key is unknown, or a value is of the wrong type or range.
    """
    files = list(_file_sources(find_experiment(path), ()))
    for source, content in files:
        if compat.shortens_validation(content):
            get_logger().warning(
                "%s: TEST.NUM_SAMPLES %s shortens validation in training, as in its code; tests take the whole list",
                source,
                content["TEST.NUM_SAMPLES"],
            )
    return _assemble(files, overrides)


def setting_sources(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, str]:
    """The file, or the command line, that each setting of `load_config` comes from, by key; defaults are left out.

    Raises:
        UserError: as `load_config`.
    """
    sources = _all_sources(list(_file_sources(find_experiment(path), ())), overrides)
    return {key: source for key, (_, source) in _merge(sources)[0].items() if source}


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
        source: name of the checkpoint, for messages.
        overrides: as for `load_config`.

    Raises:
        UserError: as `load_config`.
    """
    content = {key: value for key, value in flatten(parse_yaml(text, source)) if key not in INERT_KEYS}
    if not content:
        raise UserError(f"{source}: its configuration is empty; name the experiment file (--cfg FILE)")
    return _assemble([(source, content)], overrides, dump=source)


def _assemble(files: list[Source], overrides: Sequence[str], dump: str = "") -> CfgNode:
    """The configuration of files, or of the one `dump`, and overrides."""
    cfg = default_config()
    sources = _all_sources(files, overrides, is_dump=bool(dump))
    settings, ignored, published = _merge(sources)
    for key, (value, _) in settings.items():
        _assign(cfg, key, value)
    cfg.VERSION = VERSION
    check_config(cfg)
    inert = {key: INERT_KEYS[key] for _, content in sources for key in content if key in INERT_KEYS}
    if cfg.TRAIN.FREEZE_LAYERS and cfg.TRAIN.FREEZE_EPOCHS <= cfg.TRAIN.BEGIN_EPOCH and not dump:
        inert["TRAIN.FREEZE_LAYERS"] = f"TRAIN.FREEZE_EPOCHS is {cfg.TRAIN.FREEZE_EPOCHS}"
    # a dump has every key, whether it has an effect or not
    _warn_about_ignored_keys(inert | {key: why for key, (why, source) in ignored.items() if source != dump})
    if published.get("MODEL.NAME", ("", ""))[0] == "branched_seg_hrnet" and cfg.MODEL.SEED.NAME == NO_SEED:
        get_logger().warning(
            "MODEL.NAME is branched_seg_hrnet, but MODEL.EXTRA.OFFSET_BRANCH is 0: this is the baseline; set it to 2, "
            "3 or 4 for an OVeNet"
        )
    cfg.freeze()
    return cfg


def _all_sources(files: list[Source], overrides: Sequence[str], *, is_dump: bool = False) -> list[Source]:
    """Files and overrides, under the present names of the keys, without those of settings that are gone."""
    sources = []
    for source, content in files:
        if not is_dump and compat.shortens_validation(content):
            content = {"TRAIN.EVAL_NUM_SAMPLES" if k == "TEST.NUM_SAMPLES" else k: v for k, v in content.items()}
        sources.append((source, _as_present_keys(content, source)))
    for source, content in sources:
        for key in content:
            _require_known(key, source)
    return [*sources, (COMMAND_LINE, _as_present_keys(dict(_parse_overrides(overrides)), COMMAND_LINE))]


def _as_present_keys(content: dict[str, Any], source: str) -> dict[str, Any]:
    for old, new in RENAMED_KEYS.items():
        if old in content and content.get(new, content[old]) != content[old]:
            raise UserError(
                f"{source}: {old} is {content[old]!r}, but {new}, its name now, is {content[new]!r}; leave one away"
            )
    return compat.without_removed({RENAMED_KEYS.get(key, key): value for key, value in content.items()}, source)


def _merge(sources: list[Source]) -> tuple[dict[str, Setting], dict[str, Setting], Mapping[str, Setting]]:
    """The results of `SettingsMerger.finish`, and the published keys that are in force."""
    merger = SettingsMerger({f"{part}.NAME": KEYS[f"{part}.NAME"].default for part in PART_SECTIONS})
    for source, content in sources:
        typed = {key: (_typed(key, v, source), source) for key, v in content.items() if key not in INERT_KEYS}
        version = typed.get("VERSION", (VERSION, ""))[0]
        if version > VERSION:
            raise UserError(f"{source}: a config of version {version}; this program knows {VERSION}: update it")
        merger.add(typed)
    settings, ignored = merger.finish()
    keys_of_files = {key for source, content in sources if source != COMMAND_LINE for key in content}
    return {**compat.conventions(merger.published, keys_of_files, settings), **settings}, ignored, merger.published


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


def _parse_overrides(overrides: Sequence[str]) -> Iterator[tuple[str, Any]]:
    if len(overrides) % 2:
        raise UserError(f"overrides come as KEY VALUE pairs; {overrides[-1]} has no value")
    for name, text in zip(overrides[::2], overrides[1::2], strict=True):
        key = RENAMED_KEYS.get(name, name)
        _require_known(key, COMMAND_LINE)
        yield name, text if TYPES.get(key) is str else _literal(text)


def _literal(text: str) -> Any:
    """The number, list or word of YAML that a text says, or the text itself."""
    if text in _WORDS_OF_YAML:
        return _WORDS_OF_YAML[text]
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text


def _require_known(key: str, source: str) -> None:
    if key in TYPES or key in INERT_KEYS or key in REMOVED_KEYS or is_argument(key):
        return
    names = {*TYPES, *INERT_KEYS}
    guess = nearest(key, names)
    if any(name.startswith(f"{key}.") for name in names):
        raise UserError(f"{source}: {key} is a section, not a key; its keys look like {guess}")
    raise UserError(f"{source}: unknown key {key}; did you mean {guess}?")


def _typed(key: str, value: Any, source: str) -> Any:
    """The value as the type of its key; arguments of parts are left to the part's signature."""
    if key not in TYPES:
        return value
    hint = TYPES[key]
    item = get_args(hint)[0] if get_origin(hint) is tuple else None
    if isinstance(value, str) and str not in (hint, item):
        value = _literal(value)  # "(0,1,2,3)" and "1e-2" are strings to YAML
    written = value
    if hint is str and value is None:
        value = ""
    elif isinstance(value, bool) and key in KEYS and KEYS[key].default == "auto":
        value = "on" if value else "off"  # words that YAML takes for booleans
    elif item is str and isinstance(value, str):  # `a, b`, `[a, b]` as YAML has it, and `a,b`
        value = [text.strip() for text in value.strip().removeprefix("[").removesuffix("]").split(",")]
    elif item is not None and not isinstance(value, (list, tuple)):
        value = [value]
    try:
        converted = convert(value, hint)
    except TypeError:
        raise UserError(f"{source}: {key} is {written!r}; expected {described(hint)}") from None
    return converted if item is None else list(value)  # numbers in lists stay as they are written


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
