"""Imports point down only, and settings are read at the door."""

import ast
from pathlib import Path

import pytest

LIB = Path(__file__).parents[1] / "lib" / "ovenet"
# What each part may import of the package, itself always included.
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
    "config": {
        "conversion",
        "data",
        "engine",
        "errors",
        "evaluation",
        "fields",
        "losses",
        "models",
        "registry",
        "utils",
    },  # the settings of each, and the names of parts; no torch
    "models": {"fields", "errors", "geometry", "lazy", "registry", "structures", "utils"},
    "losses": {"fields", "errors", "geometry", "lazy", "registry", "structures", "utils"},
    "data": {"fields", "errors", "structures", "utils"},
    "engine": {"fields", "data", "errors", "losses", "models", "geometry", "structures", "utils"},
    "app": {"errors"},
    "dataset_tools": {"data", "errors", "structures", "utils"},
    "report": {"data", "errors", "evaluation", "structures", "utils"},
    "deployment": {"errors", "evaluation", "geometry", "models", "structures", "utils"},
    "evaluation": {"fields", "data", "errors", "models", "geometry", "structures", "utils"},
}


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


def test_every_part_is_listed():
    parts = {path.stem for path in LIB.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert parts == set(ALLOWED) | {"__init__", "__main__", "builders", "commands", "sweep", "trained"}


def test_nothing_below_reads_what_is_beside_the_core():
    beside = {"app", "commands", "dataset_tools", "report", "sweep"}
    for part in set(ALLOWED) - beside:
        assert not ALLOWED[part] & (beside | {"builders", "trained"})
    for path in (LIB / "builders").glob("*.py"):
        assert not imported_parts(path) & {"app", "commands", "sweep", "trained"}, path


@pytest.mark.parametrize(
    "part", ["models", "losses", "data", "dataset_tools", "engine", "evaluation", "report", "geometry", "deployment"]
)
def test_settings_stop_at_the_builders(part):
    for path in (LIB / part).rglob("*.py"):
        names = {node.id for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Name)}
        assert not names & {"cfg", "CfgNode"}, path
