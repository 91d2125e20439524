"""Imports point down only, and settings are read at the door."""

import ast
from pathlib import Path

import pytest

LIB = Path(__file__).parents[1] / "lib" / "ovenet"
# What each part may import of the package, itself always included; from the lowest part to the highest.
ALLOWED = {
    "errors": set(),
    "conversion": set(),
    "lazy": set(),
    "version": set(),
    "structures": set(),
    "fields": set(),
    "registry": {"conversion", "errors"},
    "utils": {"errors", "version"},
    "geometry": {"structures"},
    "models": {"errors", "fields", "geometry", "lazy", "registry", "structures", "utils"},
    "losses": {"errors", "fields", "geometry", "lazy", "registry", "structures", "utils"},
    "data": {"errors", "fields", "structures", "utils"},
    "engine": {"data", "errors", "fields", "geometry", "losses", "models", "structures", "utils"},
    "inference": {"data", "errors", "fields", "geometry", "models", "structures", "utils"},
    "evaluation": {"data", "errors", "fields", "geometry", "inference", "structures", "utils"},
    "deployment": {"errors", "evaluation", "geometry", "inference", "models", "structures", "utils"},
    "report": {"data", "errors", "evaluation", "inference", "structures", "utils"},
    "preparation": {"data", "errors", "structures", "utils"},
    "audit": {"data", "errors", "structures", "utils"},
    "synthetic": {"structures", "utils"},
    "app": {"data", "errors"},
    # the settings of each part, and the names of a network's parts; no torch
    "config": {
        "conversion", "data", "engine", "errors", "evaluation", "fields", "inference", "losses", "models", "registry",
        "utils",
    },
}  # fmt: skip


def imported_parts(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("ovenet.")}


@pytest.mark.parametrize("part", ALLOWED)
def test_imports_point_down(part):
    files = [LIB / f"{part}.py"] if (LIB / f"{part}.py").exists() else sorted((LIB / part).rglob("*.py"))
    assert files
    for path in files:
        assert imported_parts(path) <= ALLOWED[part] | {part}, path


def test_the_parts_are_in_order():
    order = list(ALLOWED)
    for part, imports in ALLOWED.items():
        assert all(order.index(one) < order.index(part) for one in imports), part


def test_every_part_is_listed():
    parts = {path.stem for path in LIB.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts == set(ALLOWED) | {"__init__", "__main__", "builders", "commands", "fitting", "predictor", "sweep"}


def test_nothing_below_reads_what_is_beside_the_core():
    beside = {"app", "audit", "preparation", "report", "synthetic"}
    for part in set(ALLOWED) - beside:
        assert not ALLOWED[part] & beside
    for path in (LIB / "builders").glob("*.py"):
        assert not imported_parts(path) & {"app", "commands", "predictor", "sweep", "synthetic"}, path


@pytest.mark.parametrize("part", [part for part in ALLOWED if (LIB / part).is_dir() and part != "config"])
def test_settings_stop_at_the_builders(part):
    for path in (LIB / part).rglob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"cfg", "CfgNode"}, path
