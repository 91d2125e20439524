"""The report's section on corrupted images: a table, a plot and example pictures for each run that has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2

from ovenet.data.corruption_kinds import GROUPS, smallest_side
from ovenet.data.corruptions import Corruption
from ovenet.data.dataset import ListDataset
from ovenet.data.transforms import scaled_size
from ovenet.errors import UserError
from ovenet.report import plots
from ovenet.report.gallery import encode_webp
from ovenet.report.runs import CORRUPTIONS, TestedRun

EXAMPLES = "corruption_examples.json"
EXAMPLE_SEVERITY = 3
_EXAMPLE_SIDE = 240  # long side in pixels


def example_pictures(dataset: ListDataset, kinds: Sequence[str]) -> dict[str, str]:
    """The first image of a list under each kind at severity 3, and as it is under "clean", as small base64 WebP.

    Kinds that the image is too small for are left out.
    """
    sample = dataset[0]
    height, width = sample.image.shape[:2]
    size = scaled_size((height, width), min(_EXAMPLE_SIDE, max(height, width)))
    images = {"clean": sample.image}
    for kind in kinds:
        if min(height, width) >= smallest_side(kind):
            images[kind] = Corruption(kind, EXAMPLE_SEVERITY)(sample.image, sample.name)
    return {
        kind: encode_webp(cv2.resize(image, size[::-1], interpolation=cv2.INTER_AREA), lossless=False)
        for kind, image in images.items()
    }


def corruption_sections(runs: Sequence[TestedRun]) -> list[dict[str, Any]]:
    """Variables of the page's template, for each run that was tested with corruptions.

    Raises:
        UserError: a file is damaged.
    """
    return [section for run in runs if (section := _section(run))]


def _section(run: TestedRun) -> dict[str, Any] | None:
    content = _read(run.folder / CORRUPTIONS)
    if content is None:
        return None
    try:
        severities, has_seed = content["severities"], "initial" in content["clean"]
        return {
            "name": run.name,
            "severities": severities,
            "has_seed": has_seed,
            "clean": content["clean"],
            "rows": [_row(content, kind) for kinds in GROUPS.values() for kind in kinds if kind in content["scores"]],
            "mean": content["mean"],
            "by_severity": [content["by_severity"].get(str(severity), {}).get("fused") for severity in severities],
            "mPC": content["mPC"],
            "rPC": content["rPC"],
            "is_complete": content["is_complete"],
            "is_trained_with": any(kind in content["scores"] for kind in content["trained_with"]),
            "plot": plots.corruption_plot(content),
            "examples": list((_read(run.folder / EXAMPLES) or {}).items()),
            "example_severity": EXAMPLE_SEVERITY,
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{run.folder / CORRUPTIONS}: lacks a part, or has one of another form ({error!r}); run tools/test.py "
            "--corruptions again"
        ) from error


def _row(content: dict[str, Any], kind: str) -> dict[str, Any]:
    own, means = content["scores"][kind], content["by_kind"][kind] or {}
    by_prediction = means.get("mean_iou", {})
    return {
        "title": kind.replace("_", " ") + (" *" if kind in content["trained_with"] else ""),
        "by_severity": [own.get(str(severity), {}).get("fused") for severity in content["severities"]],
        "mean": by_prediction.get("fused"),
        "degradation": means.get("degradation"),
        "initial": by_prediction.get("initial"),
        "gain": means.get("gain"),
    }


def _read(path: Path) -> dict[str, Any] | None:
    """The content of a JSON file; None without the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error}); run tools/test.py --corruptions again") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: not what tools/test.py --corruptions writes; run it again")
    return content
