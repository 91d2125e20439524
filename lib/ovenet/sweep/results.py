"""Results of finished runs: one JSON file each, with the counts per image that comparisons need."""

from __future__ import annotations

import base64
import json
import os
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ovenet.errors import UserError
from ovenet.predictor.run_folder import RESULTS
from ovenet.report.runs import RECORDS
from ovenet.sweep.claims import Claim
from ovenet.sweep.definition import Sweep, SweepRun
from ovenet.utils.environment import describe_environment
from ovenet.utils.writing import create_file


@dataclass(frozen=True)
class RunResult:
    """The counts of one run.

    Attributes:
        name: name of the variant.
        seed: seed of the run.
        class_names: ``K`` names.
        images: ``N`` names.
        labelled: ``(N, K)`` labelled pixels by image and class.
        right, predicted: ``(N, K)`` right and predicted pixels, by prediction name.
        scores: scores of the whole list by prediction name, as in ``results.json``.
        parameters: number of parameters.
        images_per_second: median throughput of the training.
        details: as in ``results.json``; None for tests without details.
        code: version of the code that made the run; "" where it is not known.
    """

    name: str
    seed: int
    class_names: tuple[str, ...]
    images: tuple[str, ...]
    labelled: np.ndarray
    right: Mapping[str, np.ndarray]
    predicted: Mapping[str, np.ndarray]
    scores: Mapping[str, Mapping[str, Any]]
    parameters: int
    images_per_second: float
    details: Mapping[str, Any] | None = None
    code: str = ""


def result_path(folder: Path, run: SweepRun) -> Path:
    """Path of a run's JSON file, which another sweep may have written under another name."""
    path = folder / f"{run.file_name}.json"
    known = sorted(folder.glob(f"*-{run.short_key}.json"))
    return known[0] if known and not path.exists() else path


def finished_runs(folder: Path) -> set[str]:
    """``short_key`` of the runs that have a JSON file in the folder."""
    return {"-".join(Path(name).stem.split("-")[-2:]) for name in os.listdir(folder) if name.endswith(".json")}


def write_result(path: Path, claim: Claim, sweep: Sweep, test_folder: Path, *, parameters: int, speed: float) -> None:
    """Writes the JSON file of a run from the files of its test, once: it may not be there yet.

    Args:
        path: path of the JSON file, in a folder that exists.
        claim: the claim on the run.
        sweep: its sweep.
        test_folder: folder with ``results.json`` and ``images.jsonl``.
        parameters: number of parameters.
        speed: images per second of the training.

    Raises:
        UserError: the test has no labelled images.
        FileExistsError: the run has a result already.
        OSError: a file cannot be read or written.
    """
    results = json.loads((test_folder / RESULTS).read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (test_folder / RECORDS).read_text(encoding="utf-8").splitlines()]
    class_names = results["classes"]["names"]
    names = list(results["results"])
    if not all("pixels" in record for record in records):
        raise UserError(f"{test_folder / RECORDS}: images without a label cannot be compared")

    def column(read: Any) -> np.ndarray:
        table = np.zeros((len(records), len(class_names)), np.int64)
        for row, record in zip(table, records, strict=True):
            for k, value in read(record["pixels"]).items():
                row[int(k)] = value
        return table

    right, predicted = (
        {name: column(lambda p, n=name, i=place: {k: v[i] for k, v in p[n].items()}) for name in names}
        for place in range(2)
    )
    counts = packed_counts(column(lambda p: p["label"]), right, predicted)
    environment, run = describe_environment(Path(__file__).parent), claim.run
    content = {
        "run": run.name,
        "seed": run.seed,
        "key": run.key,
        "date": time.strftime("%Y-%m-%d"),
        "settings": dict(run.settings),
        "test": list(sweep.test),
        "weights": sweep.weights,
        "parameters": parameters,
        "images_per_second": round(speed, 3),
        "made_by": {"attempt": claim.number, **{key: claim.content[key] for key in ("owner", "id", "code")}},
        "commit": (environment["git"] or {}).get("commit"),
        "environment": {key: environment[key] for key in ("python", "packages", "devices", "cpu_count")},
        "classes": class_names,
        "scores": results["results"],
        "details": results.get("details"),
        "images": [record["name"] for record in records],
        "counts": counts,
    }
    create_file(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_result(path: Path) -> RunResult:
    """Reads the JSON file of a run.

    Raises:
        UserError: the file is damaged, or not such a file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        shape = len(content["images"]), len(content["classes"])
        counts = {k: _unpacked(v, shape) for k, v in content["counts"].items() if k != "what"}
        names = list(content["scores"])
        return RunResult(
            name=content["run"],
            seed=content["seed"],
            class_names=tuple(content["classes"]),
            images=tuple(content["images"]),
            labelled=counts["label"],
            right={name: counts[f"{name}/right"] for name in names},
            predicted={name: counts[f"{name}/predicted"] for name in names},
            scores=content["scores"],
            parameters=content["parameters"],
            images_per_second=content["images_per_second"],
            details=content["details"],
            code=content.get("made_by", {}).get("code", ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError, zlib.error) as error:
        raise UserError(f"{path}: not the result of a run of a sweep ({error!r}); delete it to run it again") from error


def read_results(folder: Path, runs: Sequence[SweepRun]) -> list[RunResult]:
    """Results of the finished runs, in the order of `runs`."""
    paths = [(run, result_path(folder, run)) for run in runs]
    return [replace(read_result(path), name=run.name) for run, path in paths if path.is_file()]


def packed_counts(
    labelled: np.ndarray, right: Mapping[str, np.ndarray], predicted: Mapping[str, np.ndarray]
) -> dict[str, str]:
    """The counts of a `RunResult`, as its JSON file has them."""
    counts = {"what": "pixels by image and class: int32, little-endian, zlib, base64", "label": _packed(labelled)}
    for name in right:
        counts |= {f"{name}/right": _packed(right[name]), f"{name}/predicted": _packed(predicted[name])}
    return counts


def _packed(table: np.ndarray) -> str:
    return base64.b64encode(zlib.compress(table.astype("<i4").tobytes(), 9)).decode()


def _unpacked(text: str, shape: tuple[int, int]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i4").reshape(shape).astype(np.int64)
