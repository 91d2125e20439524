"""The report's numbers: its verdict, and tables. A table's row has a title, and for each run a value per prediction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from operator import getitem
from typing import Any

from ovenet.evaluation.image_scores import TENTH
from ovenet.report.runs import TestedRun
from ovenet.structures import SYMBOLS

_NUM_LABEL_ERRORS = 10
_Rows = dict[str, list[dict[str, Any]]]  # by title: for each run the values by prediction


def percent(share: float | None) -> str:
    """A share in percent, and a dash for None."""
    return "–" if share is None else f"{100 * share:.2f}"


def signed(share: float | None) -> str:
    """A gain in points, and a dash for None."""
    return "–" if share is None else f"{100 * share:+.2f}".replace("-", "−")


def direction(share: float | None) -> str:
    """CSS class of a gain, after rounding to two decimals."""
    rounded = 0.0 if share is None else round(100 * share, 2)
    return "up" if rounded > 0 else "down" if rounded < 0 else ""


def verdict(runs: Sequence[TestedRun]) -> list[str]:
    """A sentence for each run, and one comparing each with the first."""
    sentences = []
    first = runs[0].results["results"]["fused"]["mean_iou"]
    for index, run in enumerate(runs):
        scores, name = run.results["results"], f"{run.name}: " if len(runs) > 1 else ""
        fused = scores["fused"]["mean_iou"]
        ahead = _difference(fused, first) if index else None
        than = ""
        if ahead is not None:
            side = "above" if ahead >= 0 else "below"
            than = f" {100 * abs(ahead):.2f} points of mIoU {side} {runs[0].name}."
        if not run.has_seed:
            sentences.append(f"{name}{percent(fused)} % mIoU, without seeds.{than}")
            continue
        gain = _difference(fused, scores["initial"]["mean_iou"])
        seeds = run.results["details"]["seeds"]
        start = {"up": "The seeds help", "down": "The seeds hurt", "": "The seeds change nothing that shows"}
        sentences.append(
            f"{name}{start[direction(gain)]}: {percent(fused)} % mIoU with them (S_f), "
            f"{percent(scores['initial']['mean_iou'])} % without (S_i), {signed(gain)}. They correct "
            f"{percent(seeds['corrected']['fused'])} % of the pixels that S_i has wrong and break "
            f"{percent(seeds['broken']['fused'])} % of those that it has right.{than}"
        )
    return sentences


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def cards(run: TestedRun) -> list[dict[str, str]]:
    """The headline numbers."""
    scores, details = run.results["results"], run.results["details"]
    fused = scores["fused"]
    of_fused = " of S_f" if run.has_seed else ""
    shown = [{"title": f"mIoU{of_fused}, %", "value": percent(fused["mean_iou"]), "hue": "fused"}]
    if run.has_seed:
        gain = _difference(fused["mean_iou"], scores["initial"]["mean_iou"])
        shown.append({"title": "gain: mIoU of S_f less S_i", "value": signed(gain), "hue": direction(gain)})
        shown.append({"title": "mIoU of S_i, %", "value": percent(scores["initial"]["mean_iou"]), "hue": "initial"})
    boundary = details["boundaries"]["mean_iou"]["fused"][-1]
    shown.append({"title": f"Boundary IoU{of_fused}, %", "value": percent(boundary), "hue": ""})
    shown.append({"title": "pixels right, %", "value": percent(fused["pixel_accuracy"]), "hue": ""})
    ious = {name: iou for name, iou in fused["iou"].items() if iou is not None}
    if ious:
        weakest = min(ious, key=ious.__getitem__)
        shown.append({"title": f"weakest class: {weakest}, IoU in %", "value": percent(ious[weakest]), "hue": ""})
    return shown


def columns(run: TestedRun) -> list[dict[str, str]]:
    """Titles of a run's columns in these tables."""
    titles = [{"title": SYMBOLS[name], "hue": name} for name in run.predictions]
    return titles + ([{"title": "gain", "hue": ""}] if run.has_seed else [])


def headline(runs: Sequence[TestedRun]) -> list[dict[str, Any]]:
    """Scores over all classes."""
    titles = {
        "mean_iou": "mIoU",
        "frequency_weighted_iou": "frequency-weighted IoU",
        "pixel_accuracy": "pixel accuracy",
        "mean_accuracy": "mean accuracy",
        "mean_dice": "mean Dice",
    }
    return _table(runs, {title: _scores(runs, key) for key, title in titles.items()})


def classes(runs: Sequence[TestedRun]) -> list[dict[str, Any]]:
    """IoU of each class."""
    names = runs[0].results["classes"]["names"]
    return _table(runs, {name: _scores(runs, "iou", name) for name in names})


def conditions(runs: Sequence[TestedRun]) -> list[dict[str, Any]]:
    """mIoU of each condition; no rows for datasets without conditions."""
    by_run = [run.results.get("conditions", {}) for run in runs]
    names = dict.fromkeys(name for scores in by_run for name in scores)
    return _table(
        runs,
        {
            condition: [{name: s["mean_iou"] for name, s in scores.get(condition, {}).items()} for scores in by_run]
            for condition in names
        },
    )


def images(runs: Sequence[TestedRun]) -> list[dict[str, Any]]:
    """Image-wise scores beside the mIoU of the whole split, of all images and of each condition."""
    group = runs[0].images["overall"]
    rows: _Rows = {
        "mIoU^D: all pixels together": _scores(runs, "mean_iou"),
        f"mIoU^I: mean over {_images(group['num_images'])}": _by_image(runs, ["overall"], "mean_iou_i"),
    }
    for q, number in reversed(group["num_worst"].items()):
        rows[f"mIoU^I, worst {q} %: {_images(number)}"] = _by_image(runs, ["overall"], "worst_i", q)
    rows["mIoU^I, mean of the worst 10, 20 … 100 %"] = _by_image(runs, ["overall"], "worst_i_mean")
    rows["mIoU^C: mean over the classes of their mean over images"] = _by_image(runs, ["overall"], "mean_iou_c")
    rows[f"mIoU^C, worst {TENTH} % of each class's images"] = _by_image(runs, ["overall"], "worst_c", TENTH)
    return _table(runs, rows)


def image_conditions(runs: Sequence[TestedRun]) -> list[dict[str, Any]]:
    """Image-wise scores of each condition; no rows for datasets without conditions."""
    rows: _Rows = {}
    for name, group in runs[0].images["conditions"].items():
        path = ["conditions", name]
        worst = _images(group["num_worst"][TENTH])
        rows[f"{name}: mIoU^I, mean over {_images(group['num_images'])}"] = _by_image(runs, path, "mean_iou_i")
        rows[f"{name}: mIoU^I, worst {TENTH} %: {worst}"] = _by_image(runs, path, "worst_i", TENTH)
        rows[f"{name}: mIoU^C"] = _by_image(runs, path, "mean_iou_c")
    return _table(runs, rows)


def image_classes(runs: Sequence[TestedRun]) -> list[dict[str, Any]]:
    """Mean IoU of each class over the images that have it."""
    counts = runs[0].images["overall"]["images_by_class"]
    return _table(runs, {f"{k} ({n:,})": _by_image(runs, ["overall"], "iou_c", k) for k, n in counts.items()})


def _images(number: int) -> str:
    return f"{number:,} image{'' if number == 1 else 's'}"


def _by_image(runs: Sequence[TestedRun], group: Sequence[str], *keys: Any) -> list[dict[str, float | None]]:
    """For each run an image-wise score of a group of images by prediction; none where a run has not the group."""
    found: list[dict[str, Any]] = [reduce(lambda part, key: part.get(key, {}), group, run.images) for run in runs]
    return [{name: reduce(getitem, keys, own) for name, own in part.get("scores", {}).items()} for part in found]


def label_errors(run: TestedRun) -> list[dict[str, Any]]:
    """The images of the lowest label quality, with the pair of classes that disagrees most; shares of their pixels."""
    names = run.results["classes"]["names"]
    rows = []
    for record in run.worst_labels(_NUM_LABEL_ERRORS):
        quality, number = record["label_quality"], sum(record["pixels"]["label"].values())
        label, predicted, pixels = (quality["pairs"] or [[None, None, 0]])[0]
        rows.append(
            {
                "name": record["name"],
                "score": quality["score"],
                "disagree": quality["disagree"] / number,
                "seeds": None if quality["seeds"] is None else quality["seeds"] / number,
                "label": "–" if label is None else names[label],
                "predicted": "" if predicted is None else names[predicted],
                "pair": pixels / number,
            }
        )
    return rows


def edges(runs: Sequence[TestedRun]) -> list[dict[str, Any]]:
    """Scores of boundaries, of the pixels near edges and of segments by size."""
    details = [run.results["details"] for run in runs]
    rows: _Rows = {}
    for key, title in (("mean_iou", "Boundary IoU"), ("mean_f_score", "boundary F-score")):
        for index, width in enumerate(details[0]["boundaries"]["ratios"]):
            values = [{name: v[index] for name, v in d["boundaries"][key].items()} for d in details]
            rows[f"{title}, width {100 * width:g} %"] = values
    for index, distance in enumerate(details[0]["edges"]["distances_px"][:-1]):
        values = [{name: v[index] for name, v in d["edges"]["trimap_iou"].items()} for d in details]
        rows[f"mIoU of the pixels up to {distance} px"] = values
    for index, size in enumerate(details[0]["segments"]["sizes"]):
        count = details[0]["segments"]["num_segments"][index]
        for key, title in (("mean_recall", "mean class recall"), ("found", "more than half right")):
            values = [{name: v[index] for name, v in d["segments"][key].items()} for d in details]
            rows[f"{size} segments ({count:,}): {title}"] = values
    return _table(runs, rows)


def seeds(runs: Sequence[TestedRun]) -> list[dict[str, Any]]:
    """Effect of seeds and confidence, for the runs that have them."""
    details = [run.results["details"] for run in runs if run.has_seed]
    rows = {
        "seeds on their pixel's class": [d["seeds"]["right_class"] for d in details],
        "the same, where S_i is wrong": [d["seeds"]["right_class_where_wrong"] for d in details],
    }
    for name in ("seed", "fused"):
        wrong, right = (f"of the pixels that S_i has {how}, {SYMBOLS[name]}" for how in ("wrong", "right"))
        rows[f"{wrong} corrects"] = [d["seeds"]["corrected"][name] for d in details]
        rows[f"{right} breaks"] = [d["seeds"]["broken"][name] for d in details]
    rows["expected calibration error of the confidence"] = [d["calibration"]["expected_error"] for d in details]
    rows["area under risk over coverage"] = [d["calibration"]["area_under_risk"] for d in details]
    return [{"title": title, "shares": values} for title, values in rows.items()]


def uncertainty(runs: Sequence[TestedRun]) -> list[dict[str, Any]]:
    """AUIoU of all images and of each condition; no rows where no run has it."""
    by_run = [run.results.get("uncertainty", {"by_condition": {}}) for run in runs]
    names = dict.fromkeys(name for scores in by_run for name in scores["by_condition"])
    parts: dict[str, list[dict[str, Any]]] = {
        "all images": [scores.get("overall", {}) for scores in by_run],
        **{name: [scores["by_condition"].get(name, {}) for scores in by_run] for name in names},
    }
    if not any(parts["all images"]):
        return []
    rows: _Rows = {
        title: [{name: curve["average"] for name, curve in curves.items()} for curves in values]
        for title, values in parts.items()
    }
    return _table(runs, rows)


def class_calibration(runs: Sequence[TestedRun]) -> list[dict[str, str]]:
    """Calibration of the class probabilities: a row for each run that counted it, and prediction; or no row."""
    rows = []
    for run in runs:
        for name, scores in (run.results["details"].get("class_calibration") or {}).items():
            title = f"{run.name}: {SYMBOLS[name]}" if len(runs) > 1 else SYMBOLS[name]
            error, by_class = percent(scores["expected_error"]), percent(scores["classwise_expected_error"])
            brier, nll = f"{scores['brier']:.4f}", f"{scores['nll']:.4f}"
            rows.append({"title": title, "error": error, "by_class": by_class, "brier": brier, "nll": nll})
    return rows


def _scores(runs: Sequence[TestedRun], *keys: str) -> list[dict[str, float | None]]:
    """For each run the score under these keys, by prediction."""
    return [{name: reduce(getitem, keys, scores) for name, scores in run.results["results"].items()} for run in runs]


def _table(runs: Sequence[TestedRun], rows: _Rows) -> list[dict[str, Any]]:
    table = []
    for title, by_run in rows.items():
        cells = []
        for run, values in zip(runs, by_run, strict=True):
            own = [{"value": values.get(name), "is_gain": False} for name in run.predictions]
            if run.has_seed:
                own.append({"value": _difference(values.get("fused"), values.get("initial")), "is_gain": True})
            cells.append(own)
        table.append({"title": title, "runs": cells})
    return table
