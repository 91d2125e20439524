"""Corrections of likely label errors, and the page on which people draw them.

Labels cross to the page and back as bytes: train ids, `IGNORE_ID` for no label. Images are named by their place in
the ranking, never by a path. Shapes: ``H W`` size of an image, ``K`` classes.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np

from ovenet.data.corrections import LabelCorrector
from ovenet.data.dataset import ListDataset
from ovenet.data.files import format_line, read_list, require_file
from ovenet.data.remote import is_remote
from ovenet.data.stored_ids import CORRECTED, with_stored_ids
from ovenet.errors import UserError
from ovenet.evaluation.label_quality import PREDICTION, percent_of
from ovenet.inference.inferencer import Prediction
from ovenet.report.gallery import IGNORE_ID, encode_webp
from ovenet.report.runs import TestedRun
from ovenet.report.template import colours, in_script, page_template
from ovenet.utils.writing import write_text

RECORD = "corrections.jsonl"
_NUM_KEPT = 8  # predictions in memory
_LONGEST_SIDE = 16383  # of a WebP picture


class Review:
    """The images with the lowest label quality of a test, and the corrections of their labels.

    Args:
        run: the test.
        dataset: its list.
        predict: prediction of an image ``(H, W, 3)`` uint8, with the probability of the predicted class.
        output: folder of the corrected files, inside the dataset's; None for that of the label files, with
            ``_corrected`` added to its name.
        number: of images; fewer where the test has fewer.

    Attributes:
        folder: of the corrected files.
        list_file: the list with the corrected files where there are any.

    Raises:
        UserError: the test says nothing about labels, is of other classes or another list, or a label file is missing,
            has changed since, or cannot be corrected.
    """

    def __init__(
        self,
        run: TestedRun,
        dataset: ListDataset,
        predict: Callable[[np.ndarray], Prediction],
        *,
        output: Path | None = None,
        number: int = 50,
    ):
        if not run.has_label_quality:
            raise UserError(
                f"{run.folder}: no label_quality in its records, as of an earlier version or a list without labels; "
                "run `ovenet test` again on a labelled list"
            )
        if run.results["classes"]["names"] != list(dataset.info.class_names):
            raise UserError(
                f"{run.folder}: the test has other classes than {dataset.info.name} has now "
                f"({len(run.results['classes']['names'])} and {dataset.info.num_classes}); test again"
            )
        self._dataset, self._run, self._lock = dataset, run, Lock()
        self._records = run.worst_labels(number)
        self._corrector = LabelCorrector(dataset.decoder)
        self._shared, self.folder = _places(dataset, output)
        self.list_file = self.folder / f"{dataset.list_path.stem.removesuffix(CORRECTED)}{CORRECTED}.lst"
        self._digests = [self._checked(record) for record in self._records]
        self._require_readable()
        self._predict = predict
        self._predicted = lru_cache(_NUM_KEPT)(self._new_prediction)
        self._thresholds = self._sure_percent()

    def __len__(self) -> int:
        return len(self._records)

    def begin(self) -> None:
        """Writes the list, so that a folder that cannot be written to is known before anything is drawn.

        Raises:
            OSError: the list cannot be written.
        """
        pairs = read_list(self._dataset.list_path)
        lines = [format_line(image, label and self._listed(label)) for image, label in pairs]
        write_text(self.list_file, "".join(lines))

    def page(self, command: str = "") -> str:
        """The page as HTML."""
        info = self._dataset.info
        data = {
            **colours(info.class_names, info.palette, 1.0),
            "images": [
                {"name": record["name"], "score": record["label_quality"]["score"], "corrected": self._is_corrected(r)}
                for r, record in enumerate(self._records)
            ],
            "can_ignore": self._corrector.can_ignore(self._original(0)),
        }
        context = {
            "title": f"Labels of {info.name}",
            "facts": f"{len(self)} images of {self._dataset.list_path.name}, likely label errors first. Corrected "
            f"labels go to {self.folder.name}; the original files stay as they are.",
            "command": command,
            "page_data": in_script(data),
            "can_ignore": data["can_ignore"],
        }
        return page_template("review.html.j2", "review.js").render(context)

    def image(self, place: int) -> dict[str, Any]:
        """What the page shows of an image.

        Returns:
            ``size``, ``photo``, and ``maps`` with the label, the predicted class and 255 where the network is sure of
            it in the three channels; ``version`` of the label, for `save`.

        Raises:
            UserError: a file cannot be read.
        """
        record = self._records[place]
        if max(record["size"]) > _LONGEST_SIDE:
            raise UserError(f"{record['name']}: longer than {_LONGEST_SIDE} pixels, which a browser is not shown")
        photo, predicted, sure = self._predicted(place)
        label = self._present(place)
        return {
            "size": list(label.shape),
            "photo": photo,
            "maps": encode_webp(np.dstack([label, predicted, sure])),
            "version": _version(label),
        }

    def save(self, place: int, version: str, content: bytes) -> dict[str, Any]:
        """Writes the corrected label of an image, the list and the record of what changed.

        Args:
            place: of the image in the ranking.
            version: that the correction began from, see `image`.
            content: ``H * W`` bytes.

        Returns:
            The new ``version``, and ``changed``: names of the old and the new class and number of pixels.

        Raises:
            UserError: another window saved this image meanwhile, the original file has changed, or the content is no
                label.
            OSError: a file cannot be written.
        """
        with self._lock:
            old, path = self._present(place), self._original(place)
            new = self._label_of(content, old.shape)
            if version != _version(old):
                raise UserError(
                    "another window saved this image meanwhile, and its label was kept; open the image again to go on "
                    "from there"
                )
            if _digest(path) != self._digests[place]:
                raise UserError(f"{path}: the label file has changed since the review began; begin it again")
            changed = self._changes(old, new)
            if not changed:
                return {"version": version, "changed": []}
            ignore = self._dataset.decoder.ignore_label
            train_ids = np.where(new == IGNORE_ID, ignore, new).astype(np.int16)
            self._corrector.write(path, train_ids, self._corrected(place))
            self._note(place, changed)
            self.begin()
            return {"version": _version(self._present(place)), "changed": changed}

    def _label_of(self, content: bytes, size: tuple[int, ...]) -> np.ndarray:
        label = np.frombuffer(content, np.uint8)
        if label.size != size[0] * size[1]:
            raise UserError(f"a label of {label.size} pixels; expected {size[1]}x{size[0]}")
        wrong = label[(label >= self._dataset.info.num_classes) & (label != IGNORE_ID)]
        if wrong.size:
            raise UserError(f"a label with class {wrong[0]}; expected 0 to {self._dataset.info.num_classes - 1}")
        return label.reshape(size)

    def _changes(self, old: np.ndarray, new: np.ndarray) -> list[list[Any]]:
        names = dict(enumerate(self._dataset.info.class_names)) | {IGNORE_ID: "no label"}
        differs = old != new
        pairs = old[differs].astype(np.int32) * (IGNORE_ID + 1) + new[differs]
        found = zip(*np.unique(pairs, return_counts=True), strict=True)
        return [[names[int(p) // (IGNORE_ID + 1)], names[int(p) % (IGNORE_ID + 1)], int(n)] for p, n in found]

    def _note(self, place: int, changed: list[list[Any]]) -> None:
        path = self.folder / RECORD
        line = {
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "image": self._records[place]["name"],
            "label": self._label_name(place),
            "original_sha256": self._digests[place],
            "pixels": sum(number for _, _, number in changed),
            "changed": changed,
        }
        before = path.read_text(encoding="utf-8") if path.is_file() else ""
        write_text(path, f"{before}{json.dumps(line, ensure_ascii=False)}\n")

    def _label_name(self, place: int) -> str:
        label = self._dataset.pairs[self._records[place]["index"]][1]
        assert label is not None  # see `_checked`
        return label

    def _original(self, place: int) -> Path:
        return self._dataset.folder / self._label_name(place)

    def _name_in_output(self, label: str) -> str:
        return PurePosixPath(label).relative_to(self._shared).as_posix()

    def _corrected(self, place: int) -> Path:
        return self.folder / self._name_in_output(self._label_name(place))

    def _is_corrected(self, place: int) -> bool:
        return self._corrected(place).is_file()

    def _listed(self, label: str) -> str:
        """The name that a list has for a label: that of the corrected file, if there is one."""
        inside = PurePosixPath(label).is_relative_to(self._shared)
        path = self.folder / self._name_in_output(label) if inside else self.folder / label
        return _relative(path, self._dataset.folder) if inside and path.is_file() else label

    def _present(self, place: int) -> np.ndarray:
        """The label as bytes, with the earlier corrections."""
        path = self._corrected(place) if self._is_corrected(place) else self._original(place)
        train_ids = self._dataset.decoder.read(path)
        if list(train_ids.shape) != self._records[place]["size"]:
            raise UserError(f"{path}: {train_ids.shape[1]}x{train_ids.shape[0]} pixels, its image has others")
        is_class = (train_ids >= 0) & (train_ids < self._dataset.info.num_classes)
        return np.where(is_class, train_ids, IGNORE_ID).astype(np.uint8)

    def _new_prediction(self, place: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Photograph, predicted classes, and 255 where the network is sure of them."""
        image, _ = self._dataset.read_files(self._records[place]["index"])
        prediction = self._predict(image)
        predicted = prediction.labels[PREDICTION].cpu().numpy().astype(np.uint8)
        percent = percent_of(prediction.probability[PREDICTION]).cpu().numpy()
        sure = np.where(percent >= self._thresholds[predicted], 255, 0).astype(np.uint8)
        return encode_webp(image, lossless=False), predicted, sure

    def _sure_percent(self) -> np.ndarray:
        """``(K,)`` thresholds of the test; out of reach for classes without one."""
        saved = self._run.results["label_quality"]["threshold_percent"]
        return np.array([101 if saved[name] is None else saved[name] for name in self._dataset.info.class_names])

    def _checked(self, record: dict[str, Any]) -> str:
        """The digest of an image's label file.

        Raises:
            UserError: the list names another image, or the file is not that of the test.
        """
        index, pairs = record["index"], self._dataset.pairs
        if index >= len(pairs) or pairs[index][0] != record["name"]:
            raise UserError(
                f"{self._dataset.list_path}: entry {index + 1} is not {record['name']}, as in the test of another "
                "list; test again"
            )
        label = pairs[index][1]
        if label is None:
            raise UserError(f"{self._dataset.list_path}: entry {index + 1} has no label any more; test again")
        path = self._dataset.folder / label
        require_file(path, "label")
        train_ids = self._dataset.decoder.read(path)
        counts = np.bincount(train_ids[(train_ids >= 0)], minlength=IGNORE_ID)[: self._dataset.info.num_classes]
        found = {str(k): int(counts[k]) for k in np.flatnonzero(counts)}
        if found != record["pixels"]["label"] or list(train_ids.shape) != record["size"]:
            raise UserError(f"{path}: the label file has changed since the test of {self._run.folder}; test again")
        return _digest(path)

    def _require_readable(self) -> None:
        """Refuses a folder that no list could name, and corrections of other originals."""
        name = _relative(self._corrected(0), self._dataset.folder)
        if with_stored_ids(self._dataset.info, [name]).label_ids != self._dataset.decoder.info.label_ids:
            raise UserError(f"--output {self.folder}: its files would be read by other ids; leave it out")
        path = self.folder / RECORD
        latest = {}
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines() if path.is_file() else [], start=1):
            try:
                entry = json.loads(line)
                latest[entry["label"]] = entry["original_sha256"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not the record of a correction; move the file away") from error
        for place, digest in enumerate(self._digests):
            if self._is_corrected(place) and latest.get(self._label_name(place), digest) != digest:
                raise UserError(
                    f"{self._original(place)}: the label file has changed since it was corrected; remove "
                    f"{self._corrected(place)} to begin again from it"
                )


def _places(dataset: ListDataset, output: Path | None) -> tuple[str, Path]:
    """The first folder that all labels share, "" for none, and the folder of the corrected files.

    Raises:
        UserError: a list could not name files there, or the dataset lies at an address.
    """
    if is_remote(dataset.folder):
        raise UserError(f"{dataset.folder}: nothing is written to an address; set DATASET.ROOT to a copy on a disk")
    firsts = {PurePosixPath(label).parts[0] for _, label in dataset.pairs if label and "/" in label}
    is_flat = any(label and "/" not in label for _, label in dataset.pairs)
    shared = firsts.pop() if len(firsts) == 1 and not is_flat else ""
    folder = output or dataset.folder / f"{(shared or 'labels').removesuffix(CORRECTED)}{CORRECTED}"
    relative = _relative(folder, dataset.folder)
    if relative.startswith("..") or relative == ".":
        raise UserError(f"--output {output}: expected a folder inside {dataset.folder}, as lists name files there only")
    if any(label and (dataset.folder / label).is_relative_to(dataset.folder / relative) for _, label in dataset.pairs):
        raise UserError(f"--output {folder}: the label files that are to be corrected lie there; name another folder")
    return shared, folder


def _relative(path: Path, folder: Path) -> str:
    return PurePosixPath(os.path.relpath(path.absolute(), folder.absolute())).as_posix()


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _version(label: np.ndarray) -> str:
    return hashlib.sha256(label.tobytes()).hexdigest()[:16]
