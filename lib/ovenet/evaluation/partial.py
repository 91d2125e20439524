"""Saved counts of an interrupted evaluation, from which the next one resumes.

Each process keeps a file of counts and a file with a line per counted image. The counts cover the first `num_lines`
lines; the images of later lines are evaluated again.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import Tensor

from ovenet.errors import UserError
from ovenet.evaluation.evaluator import SegEvaluator
from ovenet.utils.logging import get_logger
from ovenet.utils.writing import write_file, write_text

FOLDER = "unfinished"
_SETTINGS = "settings.json"
_PART = re.compile(r"(\d+)_\w+\.(pth|jsonl)")


class PartialEvaluation:
    """The folder of an unfinished evaluation.

    Args:
        folder: path of the folder, created with the first image.
        settings: settings that the counts depend on; they must be equal to resume.
        interval_s: seconds between two saves.
        read_settings: converts settings that an earlier version may have saved.
        before_save: waits until the other files of the images are written, since these are not evaluated again.

    Attributes:
        joined: counts that `join` found, on the process that called it.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        interval_s: float = 30.0,
        read_settings: Callable[[dict[str, Any]], Mapping[str, Any]] = dict,
        before_save: Callable[[], None] = lambda: None,
    ):
        self.folder = folder
        self.settings = json.loads(json.dumps(settings))
        self.interval_s = interval_s
        self.read_settings = read_settings
        self.before_save = before_save
        self.joined: dict[str, Tensor] = {}
        self._name = ""
        self._num_lines = 0
        self._num_counted = 0
        self._saved_at = 0.0

    def exists(self) -> bool:
        """Whether an interrupted evaluation left any counts."""
        return any(self.folder.glob("[!.]*.pth"))

    def check_settings(self) -> None:
        """Refuses to resume from counts of another model or other settings.

        Raises:
            UserError: names the first difference.
        """
        try:
            found = json.loads((self.folder / _SETTINGS).read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise TypeError
        except (OSError, ValueError, TypeError) as error:
            raise UserError(
                f"{self.folder / _SETTINGS}: missing or damaged, so that nobody knows what was counted; delete that "
                "folder to start over"
            ) from error
        found = self.read_settings(found)
        for key in sorted({*found, *self.settings}):
            if found.get(key) != self.settings.get(key):
                raise UserError(
                    f"{self.folder}: was begun with {key} {found.get(key)!r}, now it is {self.settings.get(key)!r}; "
                    "set it back, or delete that folder to start over"
                )

    def join(self) -> set[int]:
        """Merges the files of all processes into one pair; called by rank 0 only.

        Returns:
            Indices of the images in the list; `joined` then holds their counts.

        Raises:
            UserError: see `check_settings`.
        """
        if not self.exists():
            self.remove()  # lines without counts
            return set()
        self.check_settings()
        parts = sorted(self._whole_parts(), key=lambda part: -len(part[1]))
        records: dict[int, dict[str, Any]] = {}
        for counts, own in parts:
            if all(record["index"] in records for record in own):
                continue  # joined before, but the program ended before it could be deleted
            self.joined = {name: table + self.joined.get(name, 0) for name, table in counts.items()}
            records |= {record["index"]: record for record in own}
        old = [path for path in self.folder.iterdir() if _PART.fullmatch(path.name)]
        number = 1 + max((_number(path) for path in old), default=0)
        lines = [json.dumps(records[index], ensure_ascii=False) + "\n" for index in sorted(records)]
        (self.folder / f"{number}_joined.jsonl").write_text("".join(lines), encoding="utf-8")
        _save(self.folder / f"{number}_joined.pth", self.joined, len(lines))
        for path in old:
            path.unlink()
        return set(records)

    def begin(self, rank: int) -> None:
        """Opens this process's files, after `join`."""
        numbers = [_number(path) for path in self.folder.glob("*") if _PART.fullmatch(path.name)]
        self._name = f"{1 + max(numbers, default=0)}_{rank}"
        self._num_lines = 0
        self._saved_at = monotonic()

    def add(self, record: Mapping[str, Any], evaluator: SegEvaluator) -> None:
        """Records an image that `evaluator` has counted, and saves the counts every `interval_s`.

        Raises:
            OSError: the file system refuses.
        """
        if not self._num_lines:
            write_text(self.folder / _SETTINGS, json.dumps(self.settings, indent=2))  # other processes write the same
        with (self.folder / f"{self._name}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._num_lines += 1
        self._num_counted = evaluator.num_images
        if monotonic() - self._saved_at >= self.interval_s:
            self.save(evaluator)

    def save(self, evaluator: SegEvaluator) -> None:
        """Writes the counts of this process, unless they cover an image that is not recorded."""
        if self._num_lines and self._num_counted == evaluator.num_images:
            self.before_save()
            _save(self.folder / f"{self._name}.pth", evaluator.counts, self._num_lines)
        self._saved_at = monotonic()

    def records(self) -> list[dict[str, Any]]:
        """The records of all processes, in the order of the list, once all have saved."""
        found = {r["index"]: r for path in self._paths() for r in self._read(path)[1]}
        return [found[index] for index in sorted(found)]

    def remove(self) -> None:
        """Deletes the folder, when the evaluation is finished."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def discard(self) -> None:
        """Deletes the folder, and the counts that `join` found."""
        self.remove()
        self.joined = {}

    def _paths(self) -> list[Path]:
        return [path for path in self.folder.glob("*.pth") if _PART.fullmatch(path.name)]

    def _whole_parts(self) -> Iterator[tuple[dict[str, Tensor], list[dict[str, Any]]]]:
        """Reads the intact parts; images of damaged parts are evaluated again."""
        for path in self._paths():
            try:
                counts, records = self._read(path)
                known = all(isinstance(table, Tensor) for table in counts.values())
                if not known or not all(type(record["index"]) is int for record in records):
                    raise TypeError
            except Exception as error:  # bytes that are no pickle can fail anywhere in the parser
                for part in (path, path.with_suffix(".jsonl")):
                    if part.exists():
                        part.replace(part.with_name(f"{part.name}.damaged"))
                get_logger().warning(
                    "%s: damaged (%s); set aside as .damaged, its images are evaluated again",
                    path,
                    type(error).__name__,
                )
                continue
            yield counts, records

    def _read(self, path: Path) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        state = torch.load(path, map_location="cpu", weights_only=True)
        lines = path.with_suffix(".jsonl").read_text(encoding="utf-8").splitlines()[: state["num_lines"]]
        if len(lines) < state["num_lines"]:
            raise EOFError("lines are missing")
        return state["counts"], [json.loads(line) for line in lines]


def _number(path: Path) -> int:
    return int(path.name.split("_")[0])


def _save(path: Path, counts: Mapping[str, Tensor], num_lines: int) -> None:
    content = {"counts": {name: table.cpu() for name, table in counts.items()}, "num_lines": num_lines}
    write_file(path, partial(torch.save, content))
