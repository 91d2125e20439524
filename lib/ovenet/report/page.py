"""The report: one self-contained HTML file from the files of evaluations."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from ovenet.data.info import condition_of
from ovenet.errors import UserError
from ovenet.inference.pictures import OUTCOMES
from ovenet.report import plots, tables
from ovenet.report.corruptions import corruption_sections
from ovenet.report.gallery import MAX_BYTES, MAX_IMAGES, choose_images, picture_path, read_picture
from ovenet.report.runs import CORRUPTIONS, RESULTS, TestedRun, distinct_names, read_run
from ovenet.report.template import colours, in_script, page_template
from ovenet.structures import SYMBOLS
from ovenet.utils.writing import write_text

REPORT = "report.html"
_BYTES_AROUND = 200  # overhead of an image beside its pictures
_MAX_CONFUSIONS = 30
_LOSSES = {"loss": "all", "loss_initial": "S_i", "loss_seed": "S_s", "loss_fused": "S_f"}
_VALIDATION = {f"mean_iou_{name}": symbol for name, symbol in reversed(SYMBOLS.items())}


def write_report(folders: Sequence[Path], path: Path, *, command: str = "") -> str:
    """Writes the report of one or several evaluations of the same classes.

    Args:
        folders: see `find_evaluation`.
        path: path of the HTML file, written atomically.
        command: command line shown at the foot of the page.

    Returns:
        A sentence about the images in the gallery.

    Raises:
        UserError: an evaluation is missing or damaged, or the classes differ.
    """
    runs = [read_run(folder, name) for folder, name in zip(folders, distinct_names(folders), strict=True)]
    for run in runs[1:]:
        if run.results["classes"] != runs[0].results["classes"]:
            raise UserError(
                f"{run.folder}: has other classes than {runs[0].folder}; compare evaluations of one dataset"
            )
    try:
        html, note = _render(runs, command)
    except UserError:
        raise
    except (KeyError, TypeError, AttributeError, IndexError, ValueError, jinja2.UndefinedError) as error:
        names = " or ".join(str(run.folder / RESULTS) for run in runs)
        raise UserError(
            f"{names}: lacks a part, or has one of another form ({error!r}); run tools/test.py again"
        ) from error
    write_text(path, html)
    return note


def _render(runs: Sequence[TestedRun], command: str) -> tuple[str, str]:
    """The page, and a sentence about its gallery."""
    context = _context(runs, command)
    template = page_template()

    def render(images: list[dict[str, Any]], pictures: list[tuple[str, str]], note: str) -> str:
        page_data = in_script(_page_data(runs, images))
        return template.render(context, page_data=page_data, pictures=pictures, num_pictures=len(images), note=note)

    by_image = len(in_script(runs[0].records).encode()) + _BYTES_AROUND * len(runs[0].records)
    without = len(render([], [], "").encode()) + by_image * len(runs)
    images, pictures = _pictures(runs, MAX_BYTES - without)
    note = f"{len(images)} of {len(runs[0].records)} images are shown." if images else "No pictures were saved."
    return render(images, pictures, note), note


def _context(runs: Sequence[TestedRun], command: str) -> dict[str, Any]:
    """Variables of the page's template, without pictures."""
    return {
        "title": f"OVeNet: {' and '.join(run.name for run in runs)}",
        "runs": [_run_context(run) for run in runs],
        "sections": _sections(runs),
        "verdict": tables.verdict(runs),
        "headline": tables.headline(runs),
        "classes": tables.classes(runs),
        "conditions": tables.conditions(runs),
        "image_rows": tables.images(runs),
        "image_conditions": tables.image_conditions(runs),
        "image_classes": tables.image_classes(runs),
        "num_scored": runs[0].images["overall"]["num_images"],
        "edge_rows": tables.edges(runs),
        "seed_rows": tables.seeds(runs),
        "uncertainty_rows": tables.uncertainty(runs),
        "class_calibration": tables.class_calibration(runs),
        "has_seed": any(run.has_seed for run in runs),
        "has_label_errors": any(run.has_label_quality for run in runs),
        "plots": _plots(runs),
        "corruptions": corruption_sections(runs),
        "command": command,
        "app": None,
    }


def _sections(runs: Sequence[TestedRun]) -> list[tuple[str, str]]:
    sections = [
        ("summary", "Summary"),
        ("images", "Images"),
        ("scores", "Scores"),
        ("by-image", "Image by image"),
    ]
    if any(run.has_label_quality for run in runs):
        sections.append(("label-errors", "Likely label errors"))
    sections.append(("edges", "Near edges"))
    if any(run.has_seed for run in runs):
        sections.append(("seeds", "Seeds and confidence"))
    if tables.class_calibration(runs):
        sections.append(("probabilities", "Probabilities"))
    if any("uncertainty" in run.results for run in runs):
        sections.append(("uncertainty", "Uncertainty"))
    if any((run.folder / CORRUPTIONS).is_file() for run in runs):
        sections.append(("corruptions", "Corruptions"))
    sections.append(("confusion", "Confusion"))
    if any(run.log for run in runs):
        sections.append(("training", "Training"))
    return sections


def _run_context(run: TestedRun) -> dict[str, Any]:
    counts = np.array(run.results["confusion"]["fused"], dtype=np.int64)
    names = run.results["classes"]["names"]
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None)[::-1][:_MAX_CONFUSIONS]
    pairs = [(int(i) // len(names), int(i) % len(names)) for i in order]
    return {
        "name": run.name,
        "columns": tables.columns(run),
        "facts": _facts(run),
        "cards": tables.cards(run),
        "has_seed": run.has_seed,
        "label_errors": tables.label_errors(run),
        "confusion_share": plots.confusion_plot(counts, names, normalised=True),
        "confusion_pixels": plots.confusion_plot(counts, names, normalised=False),
        "confusions": [
            {
                "label": names[a],
                "predicted": names[b],
                "pixels": int(counts[a, b]),
                "share": float(counts[a, b] / counts[a].sum()),
            }
            for a, b in pairs
            if counts[a, b]
        ],
    }


def _facts(run: TestedRun) -> str:
    settings = run.results["settings"]
    views = ", flipped views" if settings["flip"] else ""
    scales = ", ".join(map(str, settings["scales"]))
    protocol = settings.get("protocol", "default")
    views += "" if protocol == "default" else f", as {protocol} tests"
    if "corruption" in settings:
        views += f", corrupted by {settings['corruption']}, severity {settings['severity']}"
    if temperatures := settings.get("temperatures"):
        values = ", ".join(f"{SYMBOLS[name]} {value:.3f}" for name, value in temperatures.items())
        views += f", temperatures {values}"
    return (
        f"{run.results['dataset']}, {len(run.records)} images of {settings['list']}; weights "
        f"{settings['model_file']}; scales {scales}{views}; {run.results['date']}"
    )


def _plots(runs: Sequence[TestedRun]) -> dict[str, list[tuple[str, str]]]:
    named = [{"name": run.name, "details": run.results["details"], "images": _image_ious(run)} for run in runs]
    with_seeds = [run for run in named if run["details"]["seeds"]]
    result = {
        "images": [(plots.image_plot(named), "mIoU of each image, sorted")],
        "edges": [
            (plots.edge_plot(named, "trimap_iou", "mIoU of all pixels up to a distance (trimap)"), "Trimap curve"),
            (plots.edge_plot(named, "mean_iou", "mIoU of the pixels in each band"), "mIoU by distance"),
            (plots.boundary_plot(named, "mean_iou", "Boundary IoU"), "Boundary IoU by width"),
            (plots.boundary_plot(named, "mean_f_score", "Boundary F-score"), "Boundary F-score by width"),
        ],
        "seeds": [],
        "uncertainty": [],
        "probabilities": [],
        "training": [],
    }
    if any("uncertainty" in run.results for run in runs):
        scores = [{"name": run.name, "uncertainty": run.results.get("uncertainty")} for run in runs]
        result["uncertainty"] = [(plots.uncertainty_plot(scores), "Uncertainty-aware IoU by threshold")]
    if tables.class_calibration(runs):
        result["probabilities"] = [
            (plots.class_reliability_plot(named), "Reliability of the class probabilities"),
            (plots.class_risk_plot(named), "Risk over coverage of the class probabilities"),
        ]
    if with_seeds:
        result["images"].append((plots.image_gain_plot(with_seeds), "Gain of each image by the seeds, sorted"))
        result["seeds"] = [
            (plots.seed_plot(with_seeds), "Shares of right seeds, corrected and broken pixels by distance"),
            (plots.length_plot(with_seeds), "Histogram of offset lengths"),
            (plots.reliability_plot(with_seeds), "Reliability curve of the confidence"),
            (plots.risk_plot(with_seeds), "Risk over coverage of the confidence"),
        ]
    if any(run.log for run in runs):
        logs = [run.log for run in runs]
        result["training"] = [
            (plots.training_plot(named, logs, "train", _LOSSES), "Training loss by iteration"),
            (plots.training_plot(named, logs, "val", _VALIDATION), "Validation mIoU by iteration"),
        ]
    return result


def _image_ious(run: TestedRun) -> dict[str, list[float]]:
    """The mIoU of the images with labelled pixels, in the order of the list, of S_i and S_f."""
    names = [name for name in ("initial", "fused") if name in run.predictions]
    scored = [r["scores"] for r in run.records if r.get("scores") and r["scores"]["fused"]["mean_iou"] is not None]
    return {name: [scores[name]["mean_iou"] for scores in scored] for name in names}


def _pictures(runs: Sequence[TestedRun], max_bytes: int) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Records of the images with pictures in every run, and the pictures as JSON with their id in the page.

    As many as fit into `max_bytes`, see `choose_images`.
    """
    first = runs[0]
    by_name = [{record["name"]: record for record in run.records} for run in runs]
    common = [
        record
        for record in first.records
        if "scores" in record
        and all(
            record["name"] in own and picture_path(run.folder, own[record["name"]]["index"]).is_file()
            for run, own in zip(runs, by_name, strict=True)
        )
    ]
    paths = {
        record["index"]: [
            picture_path(run.folder, own[record["name"]]["index"]) for run, own in zip(runs, by_name, strict=True)
        ]
        for record in common
    }
    total = sum(path.stat().st_size for chosen in paths.values() for path in chosen)
    room = len(common) if total <= max_bytes else math.floor(len(common) * max_bytes / total * 0.95)
    chosen = choose_images(common, min(room, MAX_IMAGES))
    while sum(path.stat().st_size for record in chosen for path in paths[record["index"]]) > max_bytes:
        chosen = choose_images(common, int(len(chosen) * 0.9))
    images = []
    for record in chosen:
        scores = [own[record["name"]]["scores"] for own in by_name]
        image = {"index": record["index"], "name": record["name"], "changed": record.get("changed"), "scores": scores}
        image["condition"] = condition_of(record["name"], first.conditions)
        if quality := by_name[-1][record["name"]].get("label_quality"):
            image["label_quality"] = quality["score"]
        images.append(image)
    texts = [
        (f"picture-{run}-{record['index']}", in_script(read_picture(path)))
        for record in chosen
        for run, path in enumerate(paths[record["index"]])
    ]
    return images, texts


def _page_data(runs: Sequence[TestedRun], images: list[dict[str, Any]]) -> dict[str, Any]:
    classes = runs[0].results["classes"]
    longest = max((run.results["max_offset"] for run in runs if run.has_seed), default=1.0)
    shown = [
        {
            "name": run.name,
            "predictions": run.predictions,
            "has_seed": run.has_seed,
            "max_offset": longest,
            "fields": _fields(run, images),
        }
        for run in runs
    ]
    return {
        **colours(classes["names"], classes["palette"], longest),
        "is_labelled": True,
        "conditions": runs[0].conditions,
        "outcomes": list(OUTCOMES.items()),
        "runs": shown,
        "images": images,
    }


def _fields(run: TestedRun, images: Sequence[Mapping[str, Any]]) -> list[str]:
    """Titles of the other displacement fields in the pictures, which are the same for all images of a run."""
    for image in images[:1]:
        index = next(record["index"] for record in run.records if record["name"] == image["name"])
        return list(read_picture(picture_path(run.folder, index)).get("fields", {}))
    return []
