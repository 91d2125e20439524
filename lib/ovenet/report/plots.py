"""The report's plots, by matplotlib, as SVG text.

S_i, S_s and S_f have a hue and a line style each, so that colour is not the only difference. Runs differ by their
markers; plots without predictions have a colour for each run. Text and axes take the page's colour.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ovenet.data.corruption_kinds import GROUPS
from ovenet.evaluation.curves import COLORS, PREDICTION_COLORS, plain_text
from ovenet.structures import SYMBOLS

_STYLES = {"initial": ":", "seed": "--", "fused": "-"}
_MARKERS = (".", "x", "^", "s", "d", "+")
_INK, _LINE = "#010203", "#040506"  # stand for the page's colours, see `to_svg`
_MAX_CLASSES_NAMED = 40
_STYLE: dict[Any, Any] = {  # the keys that matplotlib knows are one type each
    "font.size": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "text.color": _INK,
    "axes.labelcolor": _INK,
    "axes.edgecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text: it can be searched, and the file is small
    "svg.hashsalt": "ovenet",  # equal plots are equal files
}

RunScores = Mapping[str, Any]


def to_svg(figure: Figure) -> str:
    """An ``<svg>`` element that scales to the width of the page, and follows its light or dark colours."""
    text = io.StringIO()
    with matplotlib.rc_context(_STYLE):
        figure.savefig(text, format="svg", bbox_inches="tight", metadata={"Date": None})
    svg = text.getvalue().replace(_INK, "currentColor").replace(_LINE, "var(--line)")
    return svg[svg.index("<svg") :]


def _axes(title: str, x: str, y: str) -> tuple[Figure, Axes]:
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(5.2, 3.4))
        axes = figure.add_subplot(title=title, xlabel=x, ylabel=y)
    return figure, axes


def _finish(figure: Figure, axes: Axes) -> str:
    if axes.get_legend_handles_labels()[0]:
        with matplotlib.rc_context(_STYLE):
            axes.legend(fontsize=8)
    return to_svg(figure)


def _line(axes: Axes, x: Sequence[Any], y: Sequence[float | None], *, run: int, label: str, style: str = "-") -> None:
    values = [float("nan") if value is None else value for value in y]
    axes.plot(x, values, style, marker=".", color=COLORS[run % len(COLORS)], label=label)


def _prediction_line(
    axes: Axes, y: Sequence[float | None], runs: Sequence[RunScores], run: int, name: str, x: Any
) -> None:
    values = [float("nan") if value is None else value for value in y]
    label, marker = _label(runs, run, SYMBOLS[name]), _MARKERS[run % len(_MARKERS)]
    axes.plot(x, values, _STYLES[name], marker=marker, color=PREDICTION_COLORS[name], label=label)


def _label(runs: Sequence[RunScores], run: int, text: str) -> str:
    return plain_text(f"{runs[run]['name']}: {text}") if len(runs) > 1 else text


def image_plot(runs: Sequence[RunScores]) -> str:
    """The mIoU of every image, lowest first, each prediction in an order of its own.

    Args:
        runs: each with ``name`` and ``images``, the mIoU of the images by prediction name.
    """
    figure, axes = _axes("mIoU of each image, lowest first", "share of the images, %", "mIoU of the image, %")
    with matplotlib.rc_context(_STYLE):
        axes.axvspan(0, 10, color="#888888", alpha=0.2, linewidth=0, label="worst tenth")
    for index, run in enumerate(runs):
        for name, values in run["images"].items():
            marker = _MARKERS[index % len(_MARKERS)] if len(runs) > 1 else ""
            axes.plot(
                _shares(len(values)),
                100 * np.sort(values),
                _STYLES[name],
                marker=marker,
                markevery=max(1, len(values) // 12),
                color=PREDICTION_COLORS[name],
                label=_label(runs, index, SYMBOLS[name]),
            )
    axes.set_xlim(0, 100)
    return _finish(figure, axes)


def image_gain_plot(runs: Sequence[RunScores]) -> str:
    """What the seeds change in the mIoU of every image, largest loss first."""
    title = "Gain of S_f over S_i in each image, largest loss first"
    figure, axes = _axes(title, "share of the images, %", "points of mIoU")
    axes.axhline(0, color="#888888", linewidth=1)
    for index, run in enumerate(runs):
        gains = 100 * np.sort(np.subtract(run["images"]["fused"], run["images"]["initial"]))
        counts = f"{(gains > 0).sum():,} images gain, {(gains < 0).sum():,} lose"
        color = COLORS[index % len(COLORS)]
        axes.plot(_shares(len(gains)), gains, color=color, label=_label(runs, index, counts))
    axes.set_xlim(0, 100)
    return _finish(figure, axes)


def _shares(number: int) -> np.ndarray:
    """The places of `number` sorted values, in percent."""
    return 100 * (np.arange(number) + 0.5) / max(number, 1)


def edge_plot(runs: Sequence[RunScores], key: str, title: str) -> str:
    """One curve of `EdgeCurve` for every prediction.

    Args:
        runs: each with ``name`` and ``details``.
        key: ``mean_iou``, ``accuracy`` or ``trimap_iou``.
        title: title of the plot.
    """
    figure, axes = _axes(title, "distance to the nearest label edge, pixels", "share")
    for index, run in enumerate(runs):
        edges = run["details"]["edges"]
        for name, values in edges[key].items():
            _prediction_line(axes, values, runs, index, name, range(len(values)))
    axes.set_xticks(*_band_ticks(edges["distances_px"], cumulative=key == "trimap_iou"))
    return _finish(figure, axes)


def _band_ticks(ends: Sequence[float | None], *, cumulative: bool = False) -> tuple[range, list[str]]:
    """Positions and names of bands from their upper ends, the last one None."""
    last = "all" if cumulative else f"> {ends[-2]}"
    return range(len(ends)), [*(f"≤ {end}" for end in ends[:-1]), last]


def boundary_plot(runs: Sequence[RunScores], key: str, title: str) -> str:
    """``mean_iou`` or ``mean_f_score`` of `BoundaryScores` by width."""
    figure, axes = _axes(title, "width, % of the image's diagonal", "share")
    for index, run in enumerate(runs):
        scores = run["details"]["boundaries"]
        widths = [100 * ratio for ratio in scores["ratios"]]
        for name, values in scores[key].items():
            _prediction_line(axes, values, runs, index, name, widths)
    return _finish(figure, axes)


def seed_plot(runs: Sequence[RunScores]) -> str:
    """Effect of the seeds by distance to the nearest edge."""
    figure, axes = _axes("Seeds by distance to the nearest label edge", "distance, pixels", "share")
    styles = {
        "right_class_by_distance": ("seed has the pixel's class", "-"),
        "corrected_by_distance": ("of wrong pixels corrected", "--"),
        "broken_by_distance": ("of right pixels broken", ":"),
    }
    for index, run in enumerate(runs):
        for key, (text, style) in styles.items():
            values = run["details"]["seeds"][key]
            _line(axes, range(len(values)), values, run=index, label=_label(runs, index, text), style=style)
    axes.set_xticks(*_band_ticks(runs[0]["details"]["edges"]["distances_px"]))
    return _finish(figure, axes)


def length_plot(runs: Sequence[RunScores]) -> str:
    """Histogram of offset lengths."""
    figure, axes = _axes("Length of the offsets", "pixels", "share of the pixels")
    width = 0.8 / len(runs)
    for index, run in enumerate(runs):
        pixels = np.array(run["details"]["seeds"]["length_pixels"], dtype=np.float64)
        x = np.arange(len(pixels)) + width * (index - (len(runs) - 1) / 2)
        axes.bar(
            x, pixels / max(pixels.sum(), 1), width, color=COLORS[index % len(COLORS)], label=plain_text(run["name"])
        )
    axes.set_xticks(*_band_ticks(runs[0]["details"]["seeds"]["lengths_px"]), rotation=45)
    return _finish(figure, axes)


def reliability_plot(runs: Sequence[RunScores]) -> str:
    """Share of right seeds against the confidence."""
    title = "Reliability: does the confidence say how often the seed is right?"
    figure, axes = _axes(title, "confidence", "share of seeds of the pixel's class")
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    for index, run in enumerate(runs):
        calibration = run["details"]["calibration"]
        if calibration["expected_error"] is None:
            continue  # no seed on a label
        points = zip(calibration["bin_confidence"], calibration["bin_accuracy"], strict=True)
        x, y = zip(*((a, b) for a, b in points if a is not None), strict=True)
        error = f"expected calibration error {100 * calibration['expected_error']:.1f} %"
        _line(axes, x, y, run=index, label=_label(runs, index, error))
    return _finish(figure, axes)


def class_reliability_plot(runs: Sequence[RunScores]) -> str:
    """Share of right pixels against the probability of the predicted class, for the runs that counted it."""
    title = "Reliability: do the probabilities say how often the class is right?"
    figure, axes = _axes(title, "probability of the predicted class", "share of right pixels")
    axes.plot([0, 1], [0, 1], color="#888888", linewidth=1)
    for index, run in enumerate(runs):
        for name, scores in (run["details"].get("class_calibration") or {}).items():
            shown = [
                pair for pair in zip(scores["bin_confidence"], scores["bin_accuracy"], strict=True) if None not in pair
            ]
            _prediction_line(axes, [y for _, y in shown], runs, index, name, [x for x, _ in shown])
    return _finish(figure, axes)


def class_risk_plot(runs: Sequence[RunScores]) -> str:
    """Risk over coverage of the class probabilities, for the runs that counted them."""
    title = "Risk: pixels of another class, surest first"
    figure, axes = _axes(title, "share of the pixels kept", "share of wrong pixels")
    for index, run in enumerate(runs):
        for name, scores in (run["details"].get("class_calibration") or {}).items():
            values = [float("nan") if value is None else value for value in scores["risk"]]
            label = _label(runs, index, f"{SYMBOLS[name]}, area {scores['area_under_risk']:.4f}")
            axes.plot(scores["coverage"], values, _STYLES[name], color=PREDICTION_COLORS[name], label=label)
    axes.set_ylim(bottom=0)
    return _finish(figure, axes)


def risk_plot(runs: Sequence[RunScores]) -> str:
    """Risk over coverage."""
    figure, axes = _axes(
        "Risk: seeds of another class, surest first", "share of the pixels kept", "share of wrong seeds"
    )
    for index, run in enumerate(runs):
        calibration = run["details"]["calibration"]
        if calibration["expected_error"] is None:
            continue
        area = f"area {calibration['area_under_risk']:.4f}"
        values = [float("nan") if value is None else value for value in calibration["risk"]]
        color = COLORS[index % len(COLORS)]
        axes.plot(calibration["coverage"], values, color=color, label=_label(runs, index, area))
    axes.set_ylim(bottom=0)
    return _finish(figure, axes)


def uncertainty_plot(runs: Sequence[RunScores]) -> str:
    """UIoU over the threshold; runs without ``uncertainty`` are left out."""
    title = "Uncertainty-aware IoU, mean over the classes"
    figure, axes = _axes(title, "confidence below which a pixel is called invalid", "share")
    for index, run in enumerate(runs):
        scores = run["uncertainty"] or {"overall": {}}
        for name, curve in scores["overall"].items():
            values = [float("nan") if value is None else value for value in curve["mean_uiou"]]
            label = _label(runs, index, f"{SYMBOLS[name]}, by {scores['confidence']}")
            marker, every = _MARKERS[index % len(_MARKERS)], max(1, len(values) // 10)
            color = PREDICTION_COLORS[name]
            axes.plot(
                scores["thresholds"], values, _STYLES[name], marker=marker, markevery=every, color=color, label=label
            )
    return _finish(figure, axes)


def training_plot(
    runs: Sequence[RunScores], points: Sequence[Sequence[Mapping[str, Any]]], kind: str, names: Mapping
) -> str:
    """Curves from the training log.

    Args:
        runs: runs with their names.
        points: the lines of each run's ``log.jsonl``.
        kind: ``train`` or ``val``.
        names: keys of the log to show, and their titles.
    """
    title = "Training loss" if kind == "train" else "mIoU on the validation list"
    figure, axes = _axes(title, "iteration", "loss" if kind == "train" else "share")
    styles = ("-", "--", ":", "-.")
    for index, own in enumerate(points):
        for style, (name, text) in zip(styles, names.items(), strict=False):
            chosen = [(p["iteration"], p[name]) for p in own if p["kind"] == kind and p.get(name) is not None]
            if chosen:
                x, y = zip(*chosen, strict=True)
                color = COLORS[index % len(COLORS)]
                axes.plot(x, y, style, color=color, label=_label(runs, index, text), linewidth=1)
    return _finish(figure, axes)


def confusion_plot(counts: np.ndarray, class_names: Sequence[str], *, normalised: bool) -> str:
    """The confusion matrix as a heat map.

    Args:
        counts: ``(K, K)`` pixels, rows are labels.
        class_names: ``K``.
        normalised: show the share of each label's pixels; else the pixels, on a logarithmic scale.
    """
    total = counts.sum(axis=1, keepdims=True)
    values = counts / np.maximum(total, 1) if normalised else counts.astype(np.float64)
    k, class_names = len(class_names), [plain_text(name) for name in class_names]
    with matplotlib.rc_context({**_STYLE, "axes.grid": False}):
        figure = Figure(figsize=(min(3 + 0.32 * k, 12), min(2.6 + 0.3 * k, 11)))
        title = "Share of each label's pixels" if normalised else "Pixels (logarithmic scale)"
        axes = figure.add_subplot(title=title, xlabel="predicted by S_f", ylabel="label")
        norm = None if normalised else matplotlib.colors.LogNorm(vmin=1, vmax=max(2, counts.max()))
        image = axes.imshow(np.maximum(values, 0 if normalised else 1), cmap="cividis", norm=norm, aspect="auto")
        figure.colorbar(image, ax=axes)
        if k <= _MAX_CLASSES_NAMED:
            axes.set_xticks(range(k), class_names, rotation=90)
            axes.set_yticks(range(k), class_names)
        if normalised and k <= 20:
            for row, column in np.ndindex(k, k):
                if total[row] and values[row, column] >= 0.005:
                    ink = "black" if values[row, column] > 0.6 else "white"
                    text = f"{100 * values[row, column]:.0f}"
                    axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=7)
    return to_svg(figure)


def corruption_plot(content: Mapping[str, Any]) -> str:
    """mIoU over severity, the mean of each group of corruptions; severity 0 is clean.

    Args:
        content: of ``corruptions.json``.
    """
    names = [name for name in ("initial", "fused") if name in content["clean"]]
    dotted = f" (dotted: {SYMBOLS['initial']})" if len(names) > 1 else ""
    figure, axes = _axes(f"mIoU by severity, mean of each group{dotted}", "severity (0: clean)", "share")
    severities = content["severities"]
    for index, (group, kinds) in enumerate(GROUPS.items()):
        own = [content["scores"][kind] for kind in kinds if content["by_kind"].get(kind)]
        if not own:
            continue
        for name in names:
            means = [float(np.mean([scores[str(s)][name] for scores in own])) for s in severities]
            label = f"{group} ({len(own)})" if name == "fused" else None
            style, marker = _STYLES[name], _MARKERS[index % len(_MARKERS)]
            values = [content["clean"][name], *means]
            axes.plot([0, *severities], values, style, marker=marker, color=COLORS[index], label=label)
    axes.set_xticks([0, *severities])
    axes.set_ylim(bottom=0)
    return _finish(figure, axes)
