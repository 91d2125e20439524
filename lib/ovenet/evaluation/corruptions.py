"""Scores of one model on clean and on corrupted images.

``P(c, s)`` is the mIoU under corruption ``c`` at severity ``s``, ``P`` that on clean images. The mean over severities,
then over kinds, is the mPC of Michaelis et al. (2019), mPC / P their rPC, for the 15 common kinds at all five
severities; the same means of other kinds and severities are told under another name. The degradation is 1 - mean / P.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ovenet.data.corruption_kinds import COMMON_KINDS, GROUPS, SEVERITIES
from ovenet.structures import SYMBOLS

Scores = dict[str, float]  # mIoU by prediction name: initial, seed, fused


@dataclass(frozen=True)
class CorruptionScores:
    """mIoU on clean and on corrupted images.

    Attributes:
        clean: without a corruption.
        corrupted: by kind and severity.
        severities: those of the whole comparison; kinds that lack one are in no mean.
    """

    clean: Scores
    corrupted: dict[str, dict[int, Scores]]
    severities: tuple[int, ...]

    @property
    def complete_kinds(self) -> list[str]:
        """The kinds with all severities."""
        return [kind for kind, scores in self.corrupted.items() if set(self.severities) <= set(scores)]

    def mean(self, kinds: Iterable[str]) -> dict[str, Any] | None:
        """Means over severities and then kinds.

        Returns:
            ``mean_iou`` by prediction, ``relative`` to clean and ``degradation``, and ``gain`` of the seeds, each of
            S_f; None without a complete kind. The gain is None for a baseline, the ratios where the clean mIoU is 0.
        """
        kinds = [kind for kind in kinds if kind in self.complete_kinds]
        if not kinds:
            return None
        means = {
            name: _mean(_mean(self.corrupted[kind][s][name] for s in self.severities) for kind in kinds)
            for name in self.clean
        }
        relative = means["fused"] / self.clean["fused"] if self.clean["fused"] else None
        return {
            "mean_iou": means,
            "relative": relative,
            "degradation": None if relative is None else 1 - relative,
            "gain": means["fused"] - means["initial"] if "initial" in means else None,
        }

    def _by_severity(self) -> dict[str, Scores]:
        """Means over the complete kinds, by severity and prediction."""
        own = [self.corrupted[kind] for kind in self.complete_kinds]
        return {str(s): {name: _mean(o[s][name] for o in own) for name in self.clean} for s in self.severities if own}

    def as_dict(self) -> dict[str, Any]:
        """Scores and means as plain numbers; ``mPC`` is None unless it is the published one."""
        kinds = list(self.corrupted)
        is_published = set(COMMON_KINDS) <= set(self.complete_kinds) and set(self.severities) == set(SEVERITIES)
        published = self.mean(COMMON_KINDS) if is_published else None
        groups = {group: self.mean(own) for group, own in GROUPS.items()}
        return {
            "severities": list(self.severities),
            "clean": self.clean,
            "scores": {kind: {str(s): scores for s, scores in own.items()} for kind, own in self.corrupted.items()},
            "by_kind": {kind: self.mean([kind]) for kind in kinds},
            "by_group": {group: means for group, means in groups.items() if means},
            "by_severity": self._by_severity(),
            "mean": self.mean(kinds),
            "mPC": published and published["mean_iou"]["fused"],
            "rPC": published and published["relative"],
        }


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)


def format_corruptions(content: Mapping[str, Any]) -> str:
    """A table by kind and severity, in percent; the gain in points.

    Args:
        content: from `CorruptionScores.as_dict`, and ``trained_with``, kinds that are marked.
    """
    severities, has_seed = content["severities"], "initial" in content["clean"]
    titles = [*map(str, severities), "mean", "degrad.", *(["mean S_i", "gain"] if has_seed else [])]
    width = max(20, *(len(kind) + 1 for kind in content["scores"]))
    head = f"{'mIoU of S_f in %':<{width}}" + "".join(f"{title:>9}" for title in titles)
    lines = [head, "-" * len(head)]
    clean = content["clean"]
    clean_gain = clean["fused"] - clean["initial"] if has_seed else None
    lines.append(_row("clean", [None] * len(severities), _columns(clean, None, clean_gain), width))
    for group, kinds in GROUPS.items():
        chosen = [kind for kind in kinds if kind in content["scores"]]
        lines += [f"{group}:"] if chosen else []
        for kind in chosen:
            own = content["scores"][kind]
            marked = kind + "*" * (kind in content["trained_with"])
            lines.append(
                _row(marked, [own.get(str(s), {}).get("fused") for s in severities], _means(content, kind), width)
            )
    lines.append("-" * len(head))
    if (mean := content["mean"]) is not None:
        num_complete = sum(means is not None for means in content["by_kind"].values())
        by_severity = [content["by_severity"][str(s)]["fused"] for s in severities]
        columns = _columns(mean["mean_iou"], mean["degradation"], mean["gain"])
        lines.append(_row(f"mean of {num_complete}", by_severity, columns, width))
    if content["mPC"] is not None:
        lines.append(
            f"15 common kinds, five severities: mPC {100 * content['mPC']:.2f} %, rPC {100 * content['rPC']:.2f} %"
        )
    if any(kind in content["scores"] for kind in content["trained_with"]):
        lines.append("* the weights were trained with it: no measure of robustness to the unseen")
    if has_seed:
        lines.append(f"gain: {SYMBOLS['fused']} less {SYMBOLS['initial']}, means over severities, in points")
    return "\n".join(lines)


def _means(content: Mapping[str, Any], kind: str) -> list[float | None]:
    means = content["by_kind"][kind]
    if means is None:
        return [None] * (4 if "initial" in content["clean"] else 2)
    return _columns(means["mean_iou"], means["degradation"], means["gain"])


def _columns(scores: Mapping[str, float], degradation: float | None, gain: float | None) -> list[float | None]:
    columns = [scores["fused"], degradation]
    return [*columns, scores["initial"], gain] if "initial" in scores else columns


def _row(title: str, by_severity: Sequence[float | None], columns: Sequence[float | None], width: int) -> str:
    cells = [f"{100 * value:9.2f}" if value is not None else f"{'–':>9}" for value in (*by_severity, *columns)]
    if len(columns) == 4 and columns[-1] is not None:
        cells[-1] = f"{round(100 * columns[-1], 2) + 0.0:+9.2f}"  # no -0.00
    return f"{title:<{width}}" + "".join(cells)
