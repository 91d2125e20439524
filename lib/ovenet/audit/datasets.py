"""The audit of a list as commands run it, and its short form before training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from ovenet.audit.lists import audit_list, findings_between, missing_files
from ovenet.audit.reports import Finding, ListReport
from ovenet.audit.tables import format_finding
from ovenet.data.dataset import ListDataset
from ovenet.data.samplers import spread
from ovenet.errors import UserError
from ovenet.utils.logging import get_logger
from ovenet.utils.progress import progress


def audit_dataset(
    dataset: ListDataset,
    *,
    num_threads: int,
    num_pairs: int = 0,
    decode_images: bool = False,
) -> ListReport:
    """Checks the files of a list.

    Args:
        dataset: the list.
        num_threads: files that are read at the same time.
        num_pairs: number of pairs to check, evenly spread; 0 is all.
        decode_images: read the images' pixels too.
    """
    chosen = spread(len(dataset), num_pairs or len(dataset))
    name, started = dataset.list_path.stem, time.perf_counter()
    with progress(name, len(chosen)) as advance:
        report = audit_list(
            name,
            dataset.folder,
            [dataset.pairs[i] for i in chosen],
            dataset.decoder.info,
            num_threads=num_threads,
            decode_images=decode_images,
            if_missing=_renewal(dataset),
            on_pair=advance,
        )
    seconds = time.perf_counter() - started
    get_logger().info(
        "%s: %d of %d pairs checked in %.1f s, %.0f a second",
        dataset.list_path,
        len(chosen),
        len(dataset),
        seconds,
        len(chosen) / seconds,
    )
    return report


def check_datasets(datasets: Sequence[ListDataset], *, num_pairs: int, num_threads: int) -> None:
    """The short audit before training: all files exist, and some pairs of each list are sound.

    Args:
        datasets: the lists of training and validation, with labels.
        num_pairs: number of pairs to check in each list.
        num_threads: files that are read at the same time.

    Raises:
        UserError: training would be wrong; names the first file and the fix.
    """
    reports = [_check(dataset, num_pairs, num_threads) for dataset in datasets]
    is_whole = sum(report.num_pairs for report in reports) == sum(map(len, datasets))
    together = findings_between(reports, datasets[0].decoder.info, is_whole=is_whole)
    _refuse_errors(together, datasets[0].folder, reports)
    for finding in together:
        get_logger().warning("%s", format_finding(finding, " and ".join(report.name for report in reports)))


def _check(dataset: ListDataset, num_pairs: int, num_threads: int) -> ListReport:
    missing = missing_files(dataset.folder, dataset.pairs)
    if missing:
        raise UserError(
            f"{dataset.folder / missing[0]}: the file does not exist, like {len(missing) - 1} more of "
            f"{dataset.list_path}; unpack the data again, or {_renewal(dataset) or 'correct the list'}"
        )
    report = audit_dataset(dataset, num_threads=num_threads, num_pairs=num_pairs, decode_images=True)
    _refuse_errors(report.findings, dataset.folder, [report])
    for finding in report.findings:
        if finding.kind != "absent class":  # a sample of pairs need not show every class
            get_logger().warning("%s", format_finding(finding, report.name))
    return report


def _refuse_errors(findings: Sequence[Finding], folder: Path, reports: Sequence[ListReport]) -> None:
    for finding in findings:
        if finding.is_error:
            looked_at = sum(report.num_pairs for report in reports)
            raise UserError(
                f"{folder / finding.paths[0]}: {finding.kind}: {finding.message} "
                f"({len(finding.paths)} of {looked_at} pairs looked at; tools/audit_data.py shows all)"
            )


def _renewal(dataset: ListDataset) -> str:
    """What to do about removed files of a list; "" for lists that `prepare_dataset` has not written."""
    name, root = dataset.info.name, dataset.folder.parent
    if dataset.list_path.parent != root / "list" / name:
        return ""
    return (
        f"run `ovenet prepare {name}{'' if root == Path('data') else f' --root {root}'}`, which writes the lists anew"
    )
