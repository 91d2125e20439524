"""Sweep files: overrides of an experiment, each with several seeds."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from ovenet.config import check_parts, default_config, flat_settings, flatten, load_config, read_yaml
from ovenet.config.schema import affects_training
from ovenet.engine.checkpoint import BEST, FINAL
from ovenet.errors import UserError, nearest
from ovenet.predictor.run_folder import run_directory

WEIGHTS = ("best", "final")
KEY_LENGTH = 8  # characters of a key in file names
_KEYS = {"CFG", "SEEDS", "BY_SEED", "RUNS", "TEST", "WEIGHTS", "REFERENCE"}
_RUN_KEYS = {"CFG", "SEEDS", "GRID", "FROM"}


@dataclass(frozen=True)
class SweepRun:
    """One training and its test.

    Attributes:
        name: name of the variant, shared by runs that differ only in the seed.
        seed: ``SEED``.
        config_file: experiment file.
        overrides: ``KEY VALUE …`` of the training, without the seed.
        settings: settings that the result depends on and that differ from their defaults, by key.
        key: hash of these settings, the seed and the test; equal keys are the same run.
        group: name of the grid that the variant belongs to, "" for none.
        at: value in that grid; None where it is not a number.
        start: run whose weights this one starts from; None for the experiment's own.
    """

    name: str
    seed: int
    config_file: Path
    overrides: tuple[str, ...]
    settings: Mapping[str, Any]
    key: str
    group: str = ""
    at: float | None = None
    start: SweepRun | None = None

    @property
    def file_name(self) -> str:
        """Stem of this run's files: name, seed and key."""
        return f"{re.sub(r'[^A-Za-z0-9.=-]+', '_', self.name).strip('_')}-{self.short_key}"

    @property
    def short_key(self) -> str:
        """Seed and key, which tell runs of whatever name apart."""
        return f"seed{self.seed}-{self.key[:KEY_LENGTH]}"

    def folder(self, output_dir: Path, sweep: str, attempt: int = 0) -> Path:
        """``OUTPUT_DIR`` of this run; after it was taken over, of the newest `attempt` that has a folder of its own."""
        first = output_dir / "sweeps" / sweep / self.file_name
        if attempt:
            return first.with_name(f"{first.name}.{attempt}")
        later = [path for path in first.parent.glob(f"{first.name}.*") if path.suffix[1:].isdigit()]
        return max(later, key=lambda path: int(path.suffix[1:]), default=first)


@dataclass(frozen=True)
class Sweep:
    """The content of a sweep file.

    Attributes:
        name: stem of the file.
        runs: runs in the order of the file, seed by seed.
        reference: name of the variant that the others are compared with.
        test: overrides of the test.
        weights: ``best`` on the validation list, or ``final``.
        output_dir: ``OUTPUT_DIR``.
    """

    name: str
    runs: tuple[SweepRun, ...]
    reference: str
    test: tuple[str, ...]
    weights: str
    output_dir: Path


def read_sweep(path: Path, overrides: Sequence[str] = ()) -> Sweep:
    """Reads a sweep file and resolves the configuration of every run.

    Args:
        path: YAML with ``CFG`` (an experiment, relative to the file), ``SEEDS`` and ``RUNS``, a table of overrides by
            variant, each perhaps with a ``CFG``, ``SEEDS`` or a ``GRID`` (one key with the values that it takes) of its
            own, or with ``FROM``, a variant above it, from whose weights of the same seed it starts; perhaps with
            ``BY_SEED`` (overrides by seed, for all variants), ``TEST`` (overrides of the test), ``WEIGHTS`` and
            ``REFERENCE``.
        overrides: ``KEY VALUE …`` for all trainings.

    Raises:
        UserError: the file or a configuration is invalid.
    """
    content = read_yaml(path)
    _require_keys(content, _KEYS, str(path))
    variants = content.get("RUNS")
    if not isinstance(variants, dict) or not variants:
        raise UserError(f"{path}: RUNS is {variants!r}; expected a table of runs: NAME: {{KEY: VALUE, …}}")
    by_seed = content.get("BY_SEED", {})
    if not isinstance(by_seed, dict):
        raise UserError(f"{path}: BY_SEED is {by_seed!r}; expected a table: {{SEED: {{KEY: VALUE, …}}}}")
    weights = content.get("WEIGHTS", WEIGHTS[0])
    if weights not in WEIGHTS:
        raise UserError(f"{path}: WEIGHTS is {weights!r}; expected {' or '.join(WEIGHTS)}")
    test = _as_overrides(content.get("TEST", {}), f"{path}: TEST")
    runs: list[SweepRun] = []
    for name, variant in variants.items():
        runs += _runs_of(path, content, str(name), variant, overrides, [*test, "WEIGHTS", weights], runs)
    for seed in by_seed:
        if all(run.seed != seed for run in runs):
            raise UserError(f"{path}: BY_SEED has the seed {seed}, which no run has")
    # Runs that others start from come first, so that none waits for long; a sweep that is cut short has all variants of
    # the first seeds.
    runs.sort(key=lambda run: (run.start is not None, run.seed))
    names = list(dict.fromkeys(run.name for run in runs))
    reference = str(content.get("REFERENCE", names[0]))
    if reference not in names:
        raise UserError(
            f"{path}: REFERENCE is {reference!r}; there is no such run, did you mean {nearest(reference, names)}?"
        )
    twice = {run.key: run for run in runs}
    for run in runs:  # grids may share a run: the default is a point of each grid
        if twice[run.key].name != run.name and not (run.group and twice[run.key].group):
            raise UserError(f"{path}: the runs {run.name!r} and {twice[run.key].name!r} have the same settings")
    output_dir = Path(load_config(runs[0].config_file, runs[0].overrides).OUTPUT_DIR)
    return Sweep(path.stem, tuple(runs), reference, tuple(test), weights, output_dir)


def run_config(run: SweepRun, sweep: Sweep) -> tuple[CfgNode, Path]:
    """The configuration of a run's training, and the folder that it goes to."""
    overrides = training_overrides(run, sweep)
    cfg = load_config(run.config_file, overrides)
    return cfg, run_directory(cfg, run.config_file)


def training_overrides(run: SweepRun, sweep: Sweep) -> list[str]:
    """``KEY VALUE …`` for ``tools/train.py``."""
    folder = run.folder(sweep.output_dir, sweep.name)
    start = [] if run.start is None else ["MODEL.BACKBONE.PRETRAINED", str(weights_path(run.start, sweep))]
    return [*run.overrides, *start, "SEED", str(run.seed), "OUTPUT_DIR", str(folder), "TRAIN.RESUME", "True"]


def training_folder(run: SweepRun, sweep: Sweep) -> Path:
    """Folder of the weights and logs of a run."""
    folder = run.folder(sweep.output_dir, sweep.name)
    return folder / _dataset_name(run.config_file, run.overrides) / run.config_file.stem


def weights_path(run: SweepRun, sweep: Sweep) -> Path:
    """File of the weights that a run is tested with."""
    return training_folder(run, sweep) / (BEST if sweep.weights == "best" else FINAL)


@cache
def _dataset_name(config_file: Path, overrides: tuple[str, ...]) -> str:
    return str(load_config(config_file, overrides).DATASET.DATASET)


def _runs_of(
    path: Path,
    content: Mapping[str, Any],
    name: str,
    variant: Any,
    overrides: Sequence[str],
    test: Sequence[str],
    above: Sequence[SweepRun],
) -> list[SweepRun]:
    where = f"{path}: RUNS.{name}"
    variant = {} if variant is None else variant
    if not isinstance(variant, dict):
        raise UserError(
            f"{where} is {variant!r}; expected a table: {{KEY: VALUE, …}}, {{}} for the experiment as it is"
        )
    chosen = {**{key: content[key] for key in ("CFG", "SEEDS") if key in content}, **variant}
    seeds, cfg = chosen.get("SEEDS", [0]), chosen.get("CFG")
    if not isinstance(cfg, str):
        raise UserError(f"{where}: CFG is {cfg!r}; expected the path of an experiment file")
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"{where}: SEEDS is {seeds!r}; expected a list of integers of at least 0")
    config_file = path.parent / cfg
    own = _as_overrides({key: value for key, value in variant.items() if key not in _RUN_KEYS}, where)
    runs, resolved = [], {}
    for label, at, extra in _grid(chosen.get("GRID"), name, where):
        for seed in dict.fromkeys(seeds):
            of_seed = _as_overrides(content.get("BY_SEED", {}).get(seed, {}), f"{path}: BY_SEED.{seed}")
            settings = (*of_seed, *own, *extra, *overrides)
            if settings not in resolved:  # mostly the same for all seeds
                loaded = load_config(config_file, settings)
                check_parts(loaded)
                resolved[settings] = _settings_of_the_result(loaded)
            start = _start(chosen.get("FROM"), seed, above, where)
            result = resolved[settings] if start is None else {**resolved[settings], "FROM": start.key}
            identity = json.dumps([result, seed, list(test)], sort_keys=True)
            key = hashlib.sha256(identity.encode()).hexdigest()
            group = name if extra else ""
            runs.append(SweepRun(label, seed, config_file, settings, result, key, group, at, start))
    return runs


def _start(name: Any, seed: int, above: Sequence[SweepRun], where: str) -> SweepRun | None:
    """The run of the same seed that ``FROM`` names."""
    if name is None:
        return None
    if not any(run.name == name for run in above):
        raise UserError(f"{where}: FROM is {name!r}; expected the name of a run above it")
    found = [run for run in above if (run.name, run.seed) == (name, seed)]
    if not found:
        raise UserError(f"{where}: FROM is {name!r}, which has no run with seed {seed}; add the seed to its SEEDS")
    return found[0]


def _grid(grid: Any, name: str, where: str) -> list[tuple[str, float | None, list[str]]]:
    """Name, value (if a number) and overrides of each grid point."""
    if grid is None:
        return [(name, None, [])]
    if not isinstance(grid, dict) or len(grid) != 1 or not isinstance(next(iter(grid.values())), list):
        raise UserError(f"{where}: GRID is {grid!r}; expected one key and its values: {{KEY: [VALUE, …]}}")
    ((key, values),) = grid.items()
    return [
        (
            f"{name}={value}",
            float(value) if isinstance(value, (int, float)) else None,
            _as_overrides({key: value}, where),
        )
        for value in values
    ]


def _settings_of_the_result(cfg: CfgNode) -> dict[str, Any]:
    usual = flat_settings(default_config())
    return {
        key: value
        for key, value in flat_settings(cfg).items()
        if affects_training(key) and (key not in usual or usual[key] != value)
    }


def _as_overrides(table: Any, where: str) -> list[str]:
    if not isinstance(table, dict):
        raise UserError(f"{where} is {table!r}; expected a table: {{KEY: VALUE, …}}")
    return [text for key, value in flatten(table) for text in (key, str(value))]


def _require_keys(content: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise UserError(f"{where}: unknown key {key}; did you mean {nearest(str(key), known)}?")
