"""Reads evaluations from their folders."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ovenet.errors import UserError
from ovenet.evaluation.curves import read_log
from ovenet.evaluation.image_scores import image_wise_scores
from ovenet.evaluation.writers import images_as_dict
from ovenet.report.gallery import read_records
from ovenet.utils.run_names import run_title

RESULTS = "results.json"
RECORDS = "images.jsonl"
CORRUPTIONS = "corruptions.json"  # in the folder of the clean test


@dataclass(frozen=True)
class TestedRun:
    """One evaluation, read from its folder.

    Attributes:
        folder: folder with `RESULTS`.
        name: distinct name in the report.
        results: the content of `RESULTS`.
        records: the lines of `RECORDS`.
        log: the lines of the training run's ``log.jsonl``; empty without one.
    """

    folder: Path
    name: str
    results: dict[str, Any]
    records: list[dict[str, Any]]
    log: list[dict[str, Any]]

    @property
    def predictions(self) -> list[str]:
        """Names of the predictions."""
        return list(self.results["results"])

    @property
    def has_seed(self) -> bool:
        """Whether the model has a seed."""
        return "seed" in self.predictions

    @property
    def has_label_quality(self) -> bool:
        """Whether the records say how likely the labels are wrong; those of earlier versions do not."""
        return any(record.get("label_quality") for record in self.records)

    def worst_labels(self, number: int | None = None) -> list[dict[str, Any]]:
        """The records of the lowest label quality, lowest first."""
        found = [record for record in self.records if record.get("label_quality")]
        return sorted(found, key=lambda record: record["label_quality"]["score"])[:number]

    @property
    def conditions(self) -> list[str]:
        """Names of the conditions that have labelled pixels."""
        return list(self.results.get("conditions", {}))

    @cached_property
    def images(self) -> dict[str, Any]:
        """Image-wise scores, see `images_as_dict`; from the records, since results of earlier versions have none.

        Raises:
            UserError: a record has no scores of the predictions and classes.
        """
        names = self.results["classes"]["names"]
        try:
            scores = image_wise_scores(self.records, self.predictions, len(names), self.conditions)
        except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
            raise UserError(
                f"{self.folder / RECORDS}: scores of an image are missing or of another form ({error!r}); run "
                "tools/test.py again"
            ) from error
        return images_as_dict(scores, names)


def find_evaluation(folder: Path) -> Path:
    """The folder of an evaluation: the given one, or the newest below ``test/`` of a training run.

    Raises:
        UserError: there is no evaluation.
    """
    if (folder / RESULTS).is_file():
        return folder
    found = sorted(folder.glob(f"test/*/{RESULTS}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"{folder}: there is no {RESULTS} in it or in test/*/; run tools/test.py first")
    return found[-1].parent


def read_run(folder: Path, name: str) -> TestedRun:
    """Reads one evaluation.

    Raises:
        UserError: a file cannot be read, or was written without ``TEST.DETAILS``.
    """
    try:
        results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder / RESULTS}: not a JSON file ({error}); run tools/test.py again") from error
    if not isinstance(results, dict) or not isinstance(results.get("results"), dict):
        raise UserError(f"{folder / RESULTS}: not the results of a test; run tools/test.py again")
    if "details" not in results or not (folder / RECORDS).is_file():
        raise UserError(f"{folder}: was evaluated without TEST.DETAILS True; run tools/test.py again")
    log = folder.parents[1] / "log.jsonl"
    return TestedRun(folder, name, results, read_records(folder / RECORDS), read_log(log) if log.is_file() else [])


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """A short name for each folder: the training run's, with the test's where these are not distinct."""
    names = [run_title(folder.parents[1]) or folder.name for folder in map(Path.absolute, folders)]
    full = [f"{name}/{folder.name}" for name, folder in zip(names, folders, strict=True)]
    if len(set(names)) < len(names):
        names = full
    return [name if names.count(name) == 1 else f"{name} ({index + 1})" for index, name in enumerate(names)]
