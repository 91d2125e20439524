"""Builds the report: one self-contained HTML file from the files of evaluations."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jinja2
import matplotlib
import numpy as np
import torch

from ovenet.errors import UserError
from ovenet.evaluation.curves import read_log
from ovenet.evaluation.pictures import OUTCOMES, colorize_offset
from ovenet.evaluation.writers import SYMBOLS
from ovenet.report import plots
from ovenet.report.gallery import MAX_IMAGES, choose_images, encode_webp, picture_path, read_records
from ovenet.utils.writing import write_text

RESULTS = "results.json"
RECORDS = "images.jsonl"
REPORT = "report.html"
MAX_BYTES = 60_000_000  # of the whole file
_BYTES_AROUND = 200  # overhead of an image beside its pictures
_WHEEL_RADIUS = 48
_MAX_CONFUSIONS = 30
_LOSSES = {"loss": "all", "loss_initial": "S_i", "loss_seed": "S_s", "loss_fused": "S_f"}
_VALIDATION = {f"mean_iou_{name}": symbol for name, symbol in reversed(SYMBOLS.items())}
# Okabe and Ito's colours, then lighter and darker ones of the same hues: more than 21 classes repeat them.
_SAFE_HUES = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (213, 94, 0),
    (86, 180, 233),
    (204, 121, 167),
    (240, 228, 66),
)
_SAFE_SHADES = ((1.0, 0), (0.55, 0), (0.5, 127))  # share of the hue, plus white


@dataclass(frozen=True)
class Run:
    """One evaluation, as its folder has it.

    Attributes:
        folder: where `RESULTS` lies.
        name: that tells it from the others in the report.
        results: the content of `RESULTS`.
        records: the lines of `RECORDS`.
        log: the lines of the training run's ``log.jsonl``, if it is there.
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


def find_evaluation(folder: Path) -> Path:
    """The evaluation that a folder stands for: itself, or the newest below ``test/`` of a training run.

    Raises:
        UserError: there is none.
    """
    if (folder / RESULTS).is_file():
        return folder
    found = sorted(folder.glob(f"test/*/{RESULTS}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UserError(f"{folder}: there is no {RESULTS} in it or in test/*/; run tools/test.py first")
    return found[-1].parent


def read_run(folder: Path, name: str) -> Run:
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
    return Run(folder, name, results, read_records(folder / RECORDS), read_log(log) if log.is_file() else [])


def distinct_names(folders: Sequence[Path]) -> list[str]:
    """A short name for each folder: the training run's, and the test's where that is not enough."""
    names = [folder.parents[1].name or folder.name for folder in map(Path.absolute, folders)]
    full = [f"{name}/{folder.name}" for name, folder in zip(names, folders, strict=True)]
    if len(set(names)) < len(names):
        names = full
    return [name if names.count(name) == 1 else f"{name} ({index + 1})" for index, name in enumerate(names)]


def write_report(folders: Sequence[Path], path: Path, *, command: str = "") -> str:
    """Writes the report of one or several evaluations of the same classes.

    Args:
        folders: see `find_evaluation`.
        path: of the HTML file; replaced only when the new one is whole.
        command: how it was made, for the foot of the page.

    Returns:
        What the gallery shows, in a sentence.

    Raises:
        UserError: an evaluation is missing or not as it should be, or the classes differ.
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


@dataclass(frozen=True)
class AppSettings:
    """What a page needs that asks a server for its images.

    Attributes:
        models: names to choose from.
        runtimes: likewise.
        model, runtime: the chosen ones.
        max_mb: largest upload, in 10^6 bytes.
    """

    models: tuple[str, ...]
    runtimes: tuple[str, ...]
    model: str
    runtime: str
    max_mb: float


class GalleryPage:
    """A page with the viewer alone, for images without labels.

    Args:
        title: of the page.
        facts: about the model, in a line.
        class_names: ``K`` names.
        palette: an ``(R, G, B)`` per class.
        max_offset: see `Segmentor.max_offset`.
    """

    def __init__(
        self,
        title: str,
        facts: str,
        class_names: Sequence[str],
        palette: Sequence[Sequence[int]],
        max_offset: float | None,
    ):
        self._title, self._facts, self._max_offset = title, facts, max_offset
        self._classes = class_names, palette
        self._images: list[dict[str, Any]] = []
        self._pictures: list[tuple[str, str]] = []
        self._num_bytes = self._num_given = 0

    def add(self, name: str, data: Mapping[str, Any]) -> None:
        """Takes an image's `picture_data`, as long as the page has room."""
        self._num_given += 1
        text = _in_script(data)
        if len(self._images) < MAX_IMAGES and self._num_bytes + len(text) < MAX_BYTES:
            index = len(self._images)
            self._num_bytes += len(text)
            self._images.append({"index": index, "name": name, "changed": None, "scores": [{}]})
            self._pictures.append((f"picture-0-{index}", text))

    def write(self, path: Path, *, command: str = "") -> None:
        """Writes the page; `command` is for its foot.

        Raises:
            OSError: the file system refuses.
        """
        write_text(path, self.render(command=command))

    def render(self, *, command: str = "", app: AppSettings | None = None) -> str:
        """The page as HTML, for a server if `app` is given."""
        predictions = ["fused"] if self._max_offset is None else list(SYMBOLS)
        run = {"name": self._title, "predictions": predictions, "has_seed": self._max_offset is not None, "fields": []}
        longest = self._max_offset or 1.0
        data = {
            **_colours(*self._classes, longest),
            "is_labelled": False,
            "runs": [{**run, "max_offset": longest}],
            "images": self._images,
            "app": None if app is None else asdict(app),
        }
        context = {
            "script": _script(),
            "script_hash": _script_hash(),
            "title": self._title,
            "runs": [{"name": self._title, "facts": self._facts, "columns": []}],
            "sections": [],
            "command": command,
            "page_data": _in_script(data),
            "pictures": self._pictures,
            "num_pictures": len(self._images),
            "note": "" if app else f"{len(self._images)} of {self._num_given} images are shown.",
            "app": app,
        }
        return _environment().get_template("report.html.j2").render(context)


def _render(runs: Sequence[Run], command: str) -> tuple[str, str]:
    """The page, and a sentence about its gallery."""
    context = _context(runs, command)
    template = _environment().get_template("report.html.j2")

    def render(images: list[dict[str, Any]], pictures: list[tuple[str, str]], note: str) -> str:
        page_data = _in_script(_page_data(runs, images))
        return template.render(context, page_data=page_data, pictures=pictures, num_pictures=len(images), note=note)

    by_image = len(_in_script(runs[0].records).encode()) + _BYTES_AROUND * len(runs[0].records)
    without = len(render([], [], "").encode()) + by_image * len(runs)
    images, pictures = _pictures(runs, MAX_BYTES - without)
    note = f"{len(images)} of {len(runs[0].records)} images are shown." if images else "No pictures were saved."
    return render(images, pictures, note), note


def _context(runs: Sequence[Run], command: str) -> dict[str, Any]:
    """Variables of the page's template, without pictures."""
    return {
        "script": _script(),
        "script_hash": _script_hash(),
        "title": f"OVeNet: {' and '.join(run.name for run in runs)}",
        "runs": [_run_context(run) for run in runs],
        "sections": _sections(runs),
        "verdict": _verdict(runs),
        "headline": _rows(runs, _headline(runs)),
        "classes": _rows(runs, _class_rows(runs)),
        "conditions": _rows(runs, _condition_rows(runs)),
        "edge_rows": _rows(runs, _edge_rows(runs)),
        "seed_rows": _seed_rows(runs),
        "has_seed": any(run.has_seed for run in runs),
        "plots": _plots(runs),
        "command": command,
        "app": None,
    }


def _script() -> str:
    return "\n" + (Path(__file__).parent / "report.js").read_text(encoding="utf-8")


def _script_hash() -> str:
    return base64.b64encode(hashlib.sha256(_script().encode()).digest()).decode()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja2.select_autoescape(["j2"], default_for_string=True),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.filters |= {"percent": _percent, "signed": _signed, "direction": _direction}
    return environment


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _signed(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:+.2f}".replace("-", "−")


def _direction(share: float | None) -> str:
    """CSS class of a gain, as far as it shows in two decimals."""
    rounded = 0.0 if share is None else round(100 * share, 2)
    return "up" if rounded > 0 else "down" if rounded < 0 else ""


# ---- the summary -----------------------------------------------------------------------------------------------------


def _verdict(runs: Sequence[Run]) -> list[str]:
    """Verdict: a sentence for each run, and one comparing each with the first."""
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
            sentences.append(f"{name}{_percent(fused)} % mIoU, without seeds.{than}")
            continue
        gain = _difference(fused, scores["initial"]["mean_iou"])
        seeds = run.results["details"]["seeds"]
        start = {"up": "The seeds help", "down": "The seeds hurt", "": "The seeds change nothing that shows"}
        sentences.append(
            f"{name}{start[_direction(gain)]}: {_percent(fused)} % mIoU with them (S_f), "
            f"{_percent(scores['initial']['mean_iou'])} % without (S_i), {_signed(gain)}. They correct "
            f"{_percent(seeds['corrected']['fused'])} % of the pixels that S_i has wrong and break "
            f"{_percent(seeds['broken']['fused'])} % of those that it has right.{than}"
        )
    return sentences


def _difference(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value - other


def _cards(run: Run) -> list[dict[str, str]]:
    """The headline numbers."""
    scores, details = run.results["results"], run.results["details"]
    fused = scores["fused"]
    cards = [{"title": "mIoU of S_f, %", "value": _percent(fused["mean_iou"]), "hue": "fused"}]
    if run.has_seed:
        gain = _difference(fused["mean_iou"], scores["initial"]["mean_iou"])
        cards.append({"title": "gain: mIoU of S_f less S_i", "value": _signed(gain), "hue": _direction(gain)})
        cards.append({"title": "mIoU of S_i, %", "value": _percent(scores["initial"]["mean_iou"]), "hue": "initial"})
    boundary = details["boundaries"]["mean_iou"]["fused"][-1]
    cards.append({"title": "Boundary IoU of S_f, %", "value": _percent(boundary), "hue": ""})
    cards.append({"title": "pixels right, %", "value": _percent(fused["pixel_accuracy"]), "hue": ""})
    ious = {name: iou for name, iou in fused["iou"].items() if iou is not None}
    if ious:
        weakest = min(ious, key=ious.__getitem__)
        cards.append({"title": f"weakest class: {weakest}, IoU in %", "value": _percent(ious[weakest]), "hue": ""})
    return cards


# ---- tables: a row is a title, and for each run a value per prediction -----------------------------------------------

Rows = list[tuple[str, list[dict[str, Any]]]]


def _rows(runs: Sequence[Run], rows: Rows) -> list[dict[str, Any]]:
    table = []
    for title, by_run in rows:
        cells = []
        for run, values in zip(runs, by_run, strict=True):
            own = [{"value": values.get(name), "is_gain": False} for name in run.predictions]
            if run.has_seed:
                pair = values.get("initial"), values.get("fused")
                own.append({"value": _difference(pair[1], pair[0]), "is_gain": True})
            cells.append(own)
        table.append({"title": title, "runs": cells})
    return table


def _columns(run: Run) -> list[dict[str, str]]:
    columns = [{"title": SYMBOLS[name], "hue": name} for name in run.predictions]
    return columns + ([{"title": "gain", "hue": ""}] if run.has_seed else [])


def _headline(runs: Sequence[Run]) -> Rows:
    titles = {
        "mean_iou": "mIoU",
        "frequency_weighted_iou": "frequency-weighted IoU",
        "pixel_accuracy": "pixel accuracy",
        "mean_accuracy": "mean accuracy",
        "mean_dice": "mean Dice",
    }
    return [
        (title, [{name: scores[key] for name, scores in run.results["results"].items()} for run in runs])
        for key, title in titles.items()
    ]


def _class_rows(runs: Sequence[Run]) -> Rows:
    return [
        (c, [{name: scores["iou"][c] for name, scores in run.results["results"].items()} for run in runs])
        for c in runs[0].results["classes"]["names"]
    ]


def _condition_rows(runs: Sequence[Run]) -> Rows:
    names = dict.fromkeys(name for run in runs for name in run.results.get("conditions", {}))
    return [
        (
            condition,
            [
                {name: s["mean_iou"] for name, s in run.results.get("conditions", {}).get(condition, {}).items()}
                for run in runs
            ],
        )
        for condition in names
    ]


def _edge_rows(runs: Sequence[Run]) -> Rows:
    details = [run.results["details"] for run in runs]
    rows: Rows = []
    for key, title in (("mean_iou", "Boundary IoU"), ("mean_f_score", "boundary F-score")):
        for index, width in enumerate(details[0]["boundaries"]["ratios"]):
            values = [{name: v[index] for name, v in d["boundaries"][key].items()} for d in details]
            rows.append((f"{title}, width {100 * width:g} %", values))
    for index, distance in enumerate(details[0]["edges"]["distances_px"][:-1]):
        values = [{name: v[index] for name, v in d["edges"]["trimap_iou"].items()} for d in details]
        rows.append((f"mIoU of the pixels up to {distance} px", values))
    for index, size in enumerate(details[0]["segments"]["sizes"]):
        count = details[0]["segments"]["num_segments"][index]
        for key, title in (("mean_recall", "mean class recall"), ("found", "more than half right")):
            values = [{name: v[index] for name, v in d["segments"][key].items()} for d in details]
            rows.append((f"{size} segments ({count:,}): {title}", values))
    return rows


def _seed_rows(runs: Sequence[Run]) -> list[dict[str, Any]]:
    details = [run.results["details"] for run in runs if run.has_seed]
    rows = [
        ("seeds on their pixel's class", [d["seeds"]["right_class"] for d in details]),
        ("the same, where S_i is wrong", [d["seeds"]["right_class_where_wrong"] for d in details]),
    ]
    for name in ("seed", "fused"):
        symbol = SYMBOLS[name]
        rows.append(
            (f"of the pixels that S_i has wrong, {symbol} corrects", [d["seeds"]["corrected"][name] for d in details])
        )
        rows.append(
            (f"of the pixels that S_i has right, {symbol} breaks", [d["seeds"]["broken"][name] for d in details])
        )
    rows.append(("expected calibration error of the confidence", [d["calibration"]["expected_error"] for d in details]))
    rows.append(("area under risk over coverage", [d["calibration"]["area_under_risk"] for d in details]))
    return [{"title": title, "shares": values} for title, values in rows]


def _sections(runs: Sequence[Run]) -> list[tuple[str, str]]:
    sections = [("summary", "Summary"), ("images", "Images"), ("scores", "Scores"), ("edges", "Near edges")]
    if any(run.has_seed for run in runs):
        sections.append(("seeds", "Seeds and confidence"))
    sections.append(("confusion", "Confusion"))
    if any(run.log for run in runs):
        sections.append(("training", "Training"))
    return sections


def _run_context(run: Run) -> dict[str, Any]:
    counts = np.array(run.results["confusion"]["fused"], dtype=np.int64)
    names = run.results["classes"]["names"]
    wrong = counts.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None)[::-1][:_MAX_CONFUSIONS]
    pairs = [(int(i) // len(names), int(i) % len(names)) for i in order]
    return {
        "name": run.name,
        "columns": _columns(run),
        "facts": _facts(run),
        "cards": _cards(run),
        "has_seed": run.has_seed,
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


def _facts(run: Run) -> str:
    settings = run.results["settings"]
    views = ", flipped views" if settings["flip"] else ""
    scales = ", ".join(map(str, settings["scales"]))
    return (
        f"{run.results['dataset']}, {len(run.records)} images of {settings['list']}; weights "
        f"{settings['model_file']}; scales {scales}{views}; {run.results['date']}"
    )


def _plots(runs: Sequence[Run]) -> dict[str, list[tuple[str, str]]]:
    named = [{"name": run.name, "details": run.results["details"]} for run in runs]
    with_seeds = [run for run in named if run["details"]["seeds"]]
    result = {
        "edges": [
            (plots.edge_plot(named, "trimap_iou", "mIoU of all pixels up to a distance (trimap)"), "Trimap curve"),
            (plots.edge_plot(named, "mean_iou", "mIoU of the pixels in each band"), "mIoU by distance"),
            (plots.boundary_plot(named, "mean_iou", "Boundary IoU"), "Boundary IoU by width"),
            (plots.boundary_plot(named, "mean_f_score", "Boundary F-score"), "Boundary F-score by width"),
        ],
        "seeds": [],
        "training": [],
    }
    if with_seeds:
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


def _pictures(runs: Sequence[Run], max_bytes: int) -> tuple[list[dict[str, Any]], list[tuple[str, str]]]:
    """Records of the images that every run has pictures of, and the pictures as texts by their id in the page.

    As many as fit: those left out for want of room are taken evenly from the list.
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
        images.append(image)
    texts = [
        (f"picture-{run}-{record['index']}", _in_script(_read_picture(path)))
        for record in chosen
        for run, path in enumerate(paths[record["index"]])
    ]
    return images, texts


def _read_picture(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); run tools/test.py again with TEST.REPORT True") from error


def _page_data(runs: Sequence[Run], images: list[dict[str, Any]]) -> dict[str, Any]:
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
        **_colours(classes["names"], classes["palette"], longest),
        "is_labelled": True,
        "outcomes": list(OUTCOMES.items()),
        "runs": shown,
        "images": images,
    }


def _colours(names: Sequence[str], palette: Sequence[Sequence[int]], longest: float) -> dict[str, Any]:
    """Colours of classes, offsets (up to the longest) and confidence."""
    axis = torch.linspace(-longest, longest, 2 * _WHEEL_RADIUS + 1)
    wheel = colorize_offset(torch.stack(torch.meshgrid(axis, axis, indexing="xy")), longest)
    cividis = (matplotlib.colormaps["cividis"](np.arange(256))[:, :3] * 255).round().astype(int)
    return {
        "classes": list(names),
        "palette": [list(color) for color in palette],
        "safe_palette": [_safe_color(index) for index in range(len(names))],
        "cividis": cividis.tolist(),
        "wheel": encode_webp(wheel.permute(1, 2, 0).numpy()),
    }


def _fields(run: Run, images: Sequence[Mapping[str, Any]]) -> list[str]:
    """Titles of the displacements that the pictures have beside the seeds; a network has the same ones for all."""
    for image in images[:1]:
        index = next(record["index"] for record in run.records if record["name"] == image["name"])
        return list(_read_picture(picture_path(run.folder, index)).get("fields", {}))
    return []


def _safe_color(index: int) -> list[int]:
    shade, white = _SAFE_SHADES[index // len(_SAFE_HUES) % len(_SAFE_SHADES)]
    return [round(shade * channel) + white for channel in _SAFE_HUES[index % len(_SAFE_HUES)]]


def _in_script(content: Any) -> str:
    """JSON that no browser takes for the end of its ``<script>``."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
