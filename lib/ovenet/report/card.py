"""The card of a trained model: data, licence, scores, calibration and failures, as Markdown with pictures."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch
import yaml
from PIL import Image

from ovenet.data.info import DatasetInfo
from ovenet.data.sheets import colorize
from ovenet.errors import UserError
from ovenet.evaluation.image_scores import TENTH
from ovenet.inference.pictures import error_map, side_by_side
from ovenet.report.gallery import picture_path, read_picture
from ovenet.report.runs import CORRUPTIONS, RESULTS, TestedRun, read_run
from ovenet.report.tables import percent
from ovenet.structures import SYMBOLS

_TEMPLATE = "card.md.j2"
_NUM_PICTURES = 3
_NUM_WEAKEST = 3
_LEAST_SHARE = 0.05  # of a class' pixels, for a confusion to be named
_PICTURE_QUALITY = 85
_ERRORS = "grey is right, yellow wrong, black has no label"
_SEED_ERRORS = "grey is right, blue was corrected and orange broken by the seeds, yellow is wrong, black has no label"
_MARKDOWN = str.maketrans({c: f"\\{c}" for c in "\\`*_|<>[]"})


@dataclass(frozen=True)
class CardSources:
    """What a card is written from.

    Attributes:
        name: name of the model.
        load: what `ovenet.load` takes.
        about: the metadata of the weights: ``config`` (YAML), ``dataset``, ``class_names``, ``palette``.
        num_parameters: number of trained weights.
        half: whether the weights are float16.
        version: of the program.
        hub: begin with the lines that the Hugging Face hub reads.
        test: folder of a test of these weights, with ``results.json`` and ``images.jsonl``; None without one.
        seeds: folders of tests, or results of a sweep, of the same model trained with other random seeds.
        data: a text on the images that it was trained on; "" for the list's name alone.
        licence: a text on the licence; "" if it is not known.
        temperature: of S_f, fitted for these weights; None without one.
    """

    name: str
    load: str
    about: Mapping[str, Any]
    num_parameters: int
    half: bool
    version: str
    hub: bool = False
    test: Path | None = None
    seeds: Sequence[Path] = field(default=())
    data: str = ""
    licence: str = ""
    temperature: float | None = None


def model_card(sources: CardSources, picture: str = "") -> str:
    """The Markdown text of a card.

    Args:
        sources: the model and its tests.
        picture: file name of `failures_picture`; "" for none.

    Raises:
        UserError: results are missing or damaged.
    """
    settings = yaml.safe_load(sources.about["config"])
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,  # Markdown; names are escaped by `_plain`
    )
    run = None if sources.test is None else read_run(sources.test, sources.name)
    return environment.get_template(_TEMPLATE).render(
        name=sources.name,
        load=sources.load,
        model=_model(settings["MODEL"]),
        num_parameters=sources.num_parameters,
        half=sources.half,
        version=sources.version,
        hub=sources.hub,
        data=sources.data,
        licence=sources.licence,
        dataset=sources.about["dataset"],
        train_list=settings["DATASET"]["TRAIN_SET"],
        classes=[f"{k} {_plain(name)}" for k, name in enumerate(sources.about["class_names"])],
        tests=[] if run is None else [_test(run, sources, picture)],
        config=sources.about["config"].rstrip(),
    )


def failures_picture(test: Path, info: DatasetInfo, num_images: int = _NUM_PICTURES) -> bytes | None:
    """The images with the lowest mIoU, their labels, predictions and errors, one below the other.

    Args:
        test: folder of a test.
        info: colours.
        num_images: number of images.

    Returns:
        A JPEG; None where the test saved no pictures (``TEST.REPORT``).

    Raises:
        UserError: the results or a picture are damaged.
    """
    worst = [record["index"] for record in _worst_first(read_run(test, ""))]
    paths = [path for path in (picture_path(test, index) for index in worst) if path.is_file()][:num_images]
    if not paths:
        return None
    rows = [_row(path, info) for path in paths]
    width = max(row.shape[1] for row in rows)
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(padded)).save(buffer, "JPEG", quality=_PICTURE_QUALITY)
    return buffer.getvalue()


def _row(path: Path, info: DatasetInfo) -> np.ndarray:
    """Photograph, label, prediction and errors of one image side by side, ``(H, W, 3)`` uint8."""
    data = read_picture(path)
    maps = {name: _decoded(text)[..., 0].astype(np.int64) for name, text in data["maps"].items()}
    label = maps.pop("label")
    predicted = {name: torch.from_numpy(ids) for name, ids in maps.items()}
    tiles = {
        "image": _decoded(data["photo"]),
        "label": colorize(label, info),
        "prediction": colorize(maps["fused"], info),
    }
    drawn = {title: torch.from_numpy(tile).permute(2, 0, 1) for title, tile in tiles.items()}
    drawn["errors"] = error_map(torch.from_numpy(label), predicted, info.num_classes)
    return side_by_side(drawn).permute(1, 2, 0).numpy()


def _decoded(text: str) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB"))


def _model(model: Mapping[str, Any]) -> str:
    """One sentence's beginning on the parts of a model."""
    seed, head, backbone = (model[part]["NAME"] for part in ("SEED", "HEAD", "BACKBONE"))
    parts = f"`{head}` head on the backbone `{backbone}`"
    return f"A{'n' if head[:1] in 'aeio' else ''} {parts}" if seed == "none" else f"Seed `{seed}` behind a {parts}"


def _test(run: TestedRun, sources: CardSources, picture: str) -> dict[str, Any]:
    settings = run.results["settings"]
    scales = ", ".join(map(str, settings["scales"]))
    views = f"scales {scales}{' and flipped views' if settings['flip'] else ''}"
    return {
        "facts": f"On the {len(run.records)} images of {settings['list']}, {views}, {run.results['date']}:",
        "symbols": [SYMBOLS[name] for name in run.predictions],
        "scores": _scores(run),
        "spread": _spread(run, sources.seeds),
        "trust": _trust(run, sources.temperature),
        "failures": _failures(run),
        "picture": picture,
        "errors": _SEED_ERRORS if run.has_seed else _ERRORS,
    }


def _scores(run: TestedRun) -> list[dict[str, Any]]:
    results, details = run.results["results"], run.results["details"]
    rows = {
        "mIoU": [results[name]["mean_iou"] for name in run.predictions],
        "pixel accuracy": [results[name]["pixel_accuracy"] for name in run.predictions],
        **_image_rows(run),
        "Boundary IoU": [details["boundaries"]["mean_iou"][name][-1] for name in run.predictions],
    }
    return [{"title": title, "by_prediction": list(map(percent, values))} for title, values in rows.items()]


def _image_rows(run: TestedRun) -> dict[str, list[float | None]]:
    scores = run.images["overall"]["scores"]
    return {
        "mean of the images' mIoU": [scores[name]["mean_iou_i"] for name in run.predictions],
        "mean of the worst tenth of them": [scores[name]["worst_i"][TENTH] for name in run.predictions],
    }


def _spread(run: TestedRun, seeds: Sequence[Path]) -> str:
    """How much the mIoU of S_f varies over random seeds."""
    if not seeds:
        return "One training: how much the scores vary with the random seed is not known."
    values = np.array([_mean_iou(path) for path in seeds])
    if len(values) == 1:
        return f"The mIoU of S_f of another training with another random seed: {100 * values[0]:.2f}."
    return (
        f"The mIoU of S_f over {len(values)} trainings with different random seeds: {100 * values.mean():.2f} ± "
        f"{100 * values.std(ddof=1):.2f} (mean, standard deviation)."
    )


def _mean_iou(path: Path) -> float:
    """Of S_f, from the folder of a test or from a sweep's result of a run."""
    file = path / RESULTS if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return float(content["results" if path.is_dir() else "scores"]["fused"]["mean_iou"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file}: not the results of a test or of a run of a sweep ({type(error).__name__}); name folders with "
            f"{RESULTS}, or JSON files of a sweep"
        ) from error


def _trust(run: TestedRun, temperature: float | None) -> list[str]:
    """Calibration of the class probabilities, and what corrupted images cost."""
    sentences = []
    calibration = (run.results["details"].get("class_calibration") or {}).get("fused")
    if calibration:
        sentences.append(
            f"Probabilities: expected calibration error {percent(calibration['expected_error'])} %"
            f"{_surest(calibration)}."
        )
    if temperature is not None:
        sentences.append(
            f"A temperature of {temperature:.3f}, fitted on validation images, comes along: TEST.TEMPERATURE fitted "
            "uses it. Above 1, the network is too sure of itself without it."
        )
    sentences += _corruptions(run)
    return sentences or ["Neither its probabilities nor its behaviour on corrupted images were tested."]


def _surest(calibration: Mapping[str, Any]) -> str:
    """What is right of the pixels in the last bin."""
    right, pixels = calibration["bin_accuracy"][-1], calibration["bin_pixels"]
    if right is None or not sum(pixels):
        return ""
    least, share = 1 - 1 / len(pixels), pixels[-1] / sum(pixels)
    return (
        f"; of the pixels with a probability of at least {percent(least)} %, which are {percent(share)} % of all, "
        f"{percent(right)} % are right"
    )


def _corruptions(run: TestedRun) -> list[str]:
    """What `corruptions.json` beside the results says, in a sentence."""
    path = run.folder / CORRUPTIONS
    if not path.is_file():
        return []
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        lost = {kind: means["degradation"] for kind, means in content["by_kind"].items() if means}
        worst = [f"{kind.replace('_', ' ')} ({percent(lost[kind])} %)" for kind in sorted(lost, key=lambda k: -lost[k])]
        mean = content["mean"]
        if mean is None:
            return []
        severities = ", ".join(map(str, content["severities"]))
        return [
            f"Corrupted images of {content['list']} ({len(lost)} kinds, severities {severities}) cost on average "
            f"{percent(mean['degradation'])} % of the mIoU of {percent(content['clean']['fused'])} %; most: "
            f"{', '.join(worst[:_NUM_WEAKEST])}."
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{path}: not what tools/test.py --corruptions writes ({type(error).__name__}); run it again"
        ) from error


def _failures(run: TestedRun) -> list[str]:
    """Weak classes and what they are taken for, small things, edges, conditions and images."""
    details = run.results["details"]
    sentences = [_weak_class(run, name) for name in _weakest(run)]
    found, sizes = details["segments"]["found"]["fused"], details["segments"]["sizes"]
    by_size = [f"{percent(share)} % of the {size} ones" for size, share in zip(sizes, found, strict=True) if share]
    if by_size:
        sentences.append(
            "Connected regions of the label of which more than half is right: "
            f"{', '.join(by_size)} (small: less than 32x32 pixels; large: more than 96x96)."
        )
    near, far = (details["edges"]["accuracy"]["fused"][k] for k in (0, -1))
    if near is not None and far is not None:
        sentences.append(
            f"{percent(near)} % of the pixels at an edge between two classes are right, and {percent(far)} % of those "
            f"more than {details['edges']['distances_px'][-2]:g} pixels from one."
        )
    conditions = {name: s["fused"]["mean_iou"] for name, s in run.results.get("conditions", {}).items()}
    if conditions:
        listed = ", ".join(f"{_plain(name)} {percent(v)}" for name, v in sorted(conditions.items(), key=lambda x: x[1]))
        sentences.append(f"mIoU by condition, in %: {listed}.")
    worst = [f"{_plain(r['name'])} ({percent(_iou(r))} %)" for r in _worst_first(run)[:_NUM_PICTURES]]
    return [*sentences, f"The images with the lowest mIoU: {', '.join(worst)}."]


def _weakest(run: TestedRun) -> list[str]:
    ious = {name: iou for name, iou in run.results["results"]["fused"]["iou"].items() if iou is not None}
    return sorted(ious, key=ious.__getitem__)[:_NUM_WEAKEST]


def _weak_class(run: TestedRun, name: str) -> str:
    """``pole: 18.92 % IoU; its pixels are often taken for other classes: building (39 %), tree (12 %).``"""
    names = run.results["classes"]["names"]
    row = np.array(run.results["confusion"]["fused"], dtype=np.float64)[names.index(name)]
    shares = row / row.sum()
    order = [k for k in np.argsort(-shares) if names[k] != name and shares[k] >= _LEAST_SHARE][:2]
    taken = ", ".join(f"{_plain(names[k])} ({100 * shares[k]:.0f} %)" for k in order)
    iou = f"{_plain(name)}: {percent(run.results['results']['fused']['iou'][name])} % IoU"
    return f"{iou}; its pixels are often taken for other classes: {taken}." if taken else f"{iou}."


def _worst_first(run: TestedRun) -> list[dict[str, Any]]:
    scored = [record for record in run.records if record.get("scores") and _iou(record) is not None]
    return sorted(scored, key=lambda record: float(_iou(record) or 0.0))


def _iou(record: Mapping[str, Any]) -> float | None:
    value: float | None = record["scores"]["fused"]["mean_iou"]
    return value


def _plain(name: str) -> str:
    """A name whose characters mean nothing in Markdown."""
    return name.translate(_MARKDOWN)
