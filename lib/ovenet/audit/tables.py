"""An audit as text and as plain values for JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ovenet.audit.lists import suggested_weights
from ovenet.audit.reports import Finding, ListReport
from ovenet.data.info import DatasetInfo
from ovenet.data.schema import is_number
from ovenet.errors import UserError, first_of

_MAX_SIZES = 3


def format_audit(reports: Sequence[ListReport], info: DatasetInfo) -> str:
    """Sizes, a table of the classes in all lists, and the findings, errors first.

    Args:
        reports: of the lists; weights are suggested from the first, the training list.
        info: the dataset.
    """
    lines = [_sizes(report) for report in reports]
    weights = suggested_weights(reports[0].class_pixels)
    width = max(len("class"), *(len(name) for name in info.class_names))
    titles = "".join(f"{report.name:>12} %{'images':>8}" for report in reports)
    lines += ["", f"{'class':<{width}}{titles}{'weight':>9}"]
    for k, name in enumerate(info.class_names):
        cells = "".join(
            f"{100 * report.class_pixels[k] / max(1, report.num_pixels):14.3f}{report.class_images[k]:8d}"
            for report in reports
        )
        lines.append(f"{name:<{width}}{cells}{weights[k]:9.3f}")
    ignored = "".join(
        f"{100 * (1 - report.class_pixels.sum() / max(1, report.num_pixels)):14.3f}{'':8}" for report in reports
    )
    lines += [f"{'(ignored)':<{width}}{ignored}", ""]
    for report in reports:
        lines += [format_finding(finding, report.name) for finding in report.findings]
        if not report.findings:
            lines.append(f"{report.name}: nothing to remark")
    return "\n".join(lines)


def _sizes(report: ListReport) -> str:
    shown = ", ".join(f"{count} of {w}x{h}" for (h, w), count in report.sizes[:_MAX_SIZES])
    more = f", and {len(report.sizes) - _MAX_SIZES} other sizes" if len(report.sizes) > _MAX_SIZES else ""
    return f"{report.name}: {report.num_pairs} pairs ({shown}{more})"


def format_finding(finding: Finding, list_name: str) -> str:
    """One finding in one line, with its share of the pixels and examples of files."""
    share = "" if finding.share is None else f" ({100 * finding.share:.3g} % of all pixels)"
    files = f" [{first_of(finding.paths)}]" if finding.paths else ""
    return f"{'error' if finding.is_error else 'note'}: {list_name}: {finding.kind}: {finding.message}{share}{files}"


def audit_as_dict(
    reports: Sequence[ListReport], info: DatasetInfo, about_both: Sequence[Finding] = ()
) -> dict[str, Any]:
    """All counts and findings, and the class weights suggested from the first list.

    Args:
        reports: of the lists.
        info: the dataset.
        about_both: findings about the lists together.
    """
    weights = suggested_weights(reports[0].class_pixels)
    return {
        "dataset": info.name,
        "class_names": list(info.class_names),
        "suggested_class_weights": [round(float(weight), 4) for weight in weights],
        "lists": {
            report.name: {
                "num_pairs": report.num_pairs,
                "sizes": [{"width": w, "height": h, "num_images": count} for (h, w), count in report.sizes],
                "num_pixels": report.num_pixels,
                "class_pixels": [int(n) for n in report.class_pixels],
                "class_images": [int(n) for n in report.class_images],
                "id_pixels": {str(i): n for i, n in sorted(report.id_pixels.items())},
                "findings": [_finding_as_dict(finding) for finding in report.findings],
            }
            for report in reports
        },
        "findings": [_finding_as_dict(finding) for finding in about_both],
    }


def _finding_as_dict(finding: Finding) -> dict[str, Any]:
    content = {"kind": finding.kind, "error": finding.is_error, "message": finding.message}
    share = {} if finding.share is None else {"share": finding.share}
    return content | share | {"paths": list(finding.paths)}


def read_suggested_weights(path: Path, info: DatasetInfo) -> list[float]:
    """The class weights that an audit suggested.

    Args:
        path: an ``audit.json``.
        info: the dataset.

    Returns:
        ``K`` weights.

    Raises:
        UserError: the file cannot be read, is no audit, or is of other classes.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        names, weights = content["class_names"], content["suggested_class_weights"]
    except OSError as error:
        raise UserError(
            f"LOSS.CLASS_WEIGHTS {path}: cannot be read ({error.strerror}); tools/audit_data.py writes it"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"LOSS.CLASS_WEIGHTS {path}: no audit; expected the audit.json of tools/audit_data.py"
        ) from error
    if names != list(info.class_names):
        raise UserError(
            f"LOSS.CLASS_WEIGHTS {path}: the audit is of {content.get('dataset')} with {len(names)} classes, "
            f"not of {info.name} with {info.num_classes}; audit this dataset"
        )
    if not isinstance(weights, list) or len(weights) != len(names) or not all(is_number(w) and w > 0 for w in weights):
        raise UserError(f"LOSS.CLASS_WEIGHTS {path}: suggested_class_weights is {weights}; expected numbers above 0")
    return weights
