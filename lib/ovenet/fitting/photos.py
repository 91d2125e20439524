"""A user's photos and masks as a dataset of their own: read, checked, divided, linked."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ovenet.audit import audit_list, suggested_weights
from ovenet.audit.reports import ListReport
from ovenet.data.catalog import DESCRIPTION
from ovenet.data.description import blank_description, own_description
from ovenet.data.info import SPLITS
from ovenet.errors import UserError, first_of
from ovenet.fitting.split import choose_validation
from ovenet.preparation.draft import Draft, read_draft
from ovenet.preparation.layouts import LeftOut, Pairs, collect_pairs, find_layout, image_files, told
from ovenet.preparation.mask_values import describe
from ovenet.structures import Size
from ovenet.utils.environment import num_cores
from ovenet.utils.writing import write_text

MIN_PHOTOS = 3
PathLike = str | Path
Paths = PathLike | Sequence[PathLike]


@dataclass(frozen=True)
class PhotoSet:
    """Photos with masks that training can read.

    Attributes:
        pairs: paths of photos and masks, by split.
        description: the content of ``dataset.json``, without layouts.
        size: width and height of most photos.
        lines: what was found, for the user.
        notes: what to look at.
    """

    pairs: Mapping[str, Sequence[tuple[Path, Path]]]
    description: Mapping[str, Any]
    size: Size
    lines: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        """``K``."""
        return len(self.description["classes"])

    def write(self, folder: Path) -> None:
        """Links photos and masks into a dataset's folder, under common names, and describes them.

        Args:
            folder: ``ROOT/<name>``.

        Raises:
            OSError: a file cannot be written.
        """
        for split, pairs in self.pairs.items():
            for number, (photo, mask) in enumerate(pairs):
                for kind, file in (("images", photo), ("labels", mask)):
                    target = folder / kind / split / f"{number:05d}_{photo.stem}{file.suffix.lower()}"
                    target.parent.mkdir(parents=True, exist_ok=True)
                    _link(file, target)
        write_text(folder / DESCRIPTION, json.dumps(self.description, indent=2) + "\n")


def read_photos(photos: Paths, masks: Paths | None, class_names: Sequence[str]) -> PhotoSet:
    """Finds pairs, reads all masks, and divides the photos; writes nothing.

    Args:
        photos: a folder, or files.
        masks: a folder, or as many files in the same order; None for a folder that has both.
        class_names: names of the classes, in the order of their ids, or of their shares where masks are colours; empty
            for numbers.

    Raises:
        UserError: photos and masks do not go together, or training on them would be wrong.
    """
    with TemporaryDirectory(prefix="ovenet-fit-") as scratch:
        base, names = _gather(photos, masks, Path(scratch))
        try:
            return _read(base, class_names)
        except UserError as error:
            message = str(error)
            for place, name in names.items():
                message = message.replace(str(place), name)
            raise UserError(message) from error


def _gather(photos: Paths, masks: Paths | None, scratch: Path) -> tuple[Path, dict[Path, str]]:
    """Links all files into one folder; returns it, and what its parts are called in messages."""
    if masks is None:
        if not isinstance(photos, (str, Path)):
            raise UserError("photos are files; name their masks too, in the same order")
        folder = _folder(photos, "photos and masks")
        (scratch / "both").symlink_to(folder.resolve(), target_is_directory=True)
        return scratch / "both", {scratch / "both": str(photos)}
    given = {"photos": photos, "masks": masks}
    files = {
        name: None if isinstance(one, (str, Path)) else [Path(path) for path in one] for name, one in given.items()
    }
    if (files["photos"] is None) != (files["masks"] is None):
        raise UserError("photos and masks are both folders, or both files in the same order")
    if files["photos"] is not None and files["masks"] is not None:
        _link_files(files["photos"], files["masks"], scratch)
        return scratch, {}
    for name, path in given.items():
        folder = _folder(path, name)  # type: ignore[arg-type]
        if next(image_files(folder), None) is None:
            raise UserError(f"{path}: no {name} in it (png, jpg, bmp, tif, webp, ppm or gif)")
        (scratch / name).symlink_to(folder.resolve(), target_is_directory=True)
    return scratch, {**{scratch / name: str(path) for name, path in given.items()}, scratch: f"{photos} and {masks}"}


def require_folders(photos: Any, masks: Any) -> None:
    """Refuses folders that do not exist.

    Args:
        photos, masks: paths, lists of paths, or None.

    Raises:
        UserError: names the first.
    """
    for path, what in ((photos, "photos"), (masks, "masks")):
        if isinstance(path, (str, Path)):
            _folder(path, what)


def _folder(path: PathLike, what: str) -> Path:
    if not Path(path).is_dir():
        raise UserError(f"{path}: no such folder; name the one with the {what}")
    return Path(path)


def _link_files(photos: Sequence[Path], masks: Sequence[Path], scratch: Path) -> None:
    if len(photos) != len(masks):
        raise UserError(
            f"{len(photos)} photos and {len(masks)} masks; expected a mask for each photo, in the same order"
        )
    for kind, files in (("photos", photos), ("masks", masks)):
        (scratch / kind).mkdir()
        for number, file in enumerate(files):
            if not file.is_file():
                raise UserError(f"{file}: no such file")
            stem = photos[number].stem
            (scratch / kind / f"{number:05d}_{stem}{file.suffix}").symlink_to(file.resolve())


def _read(base: Path, class_names: Sequence[str]) -> PhotoSet:
    try:
        draft = read_draft(base)
    except UserError as error:
        if "no images and masks that go together" not in str(error):
            raise UserError(
                str(error).partition("; write ")[0]
            ) from error  # a dataset.json, which there is none of here
        counted = [f"{sum(1 for _ in image_files(base / kind))} {kind}" for kind in ("photos", "masks")]
        given = f" ({', '.join(counted)})" if (base / "masks").exists() else ", or the folder of masks is not named"
        raise UserError(
            f"{base}: no photo has a mask of its name{given}; a.jpg goes with a.png or a_mask.png"
        ) from error
    left_out: LeftOut = {}
    layouts = find_layout(base, blank_description("photos", draft.layouts))
    pairs = {split: collect_pairs(base, layout, (), left_out) for split, layout in layouts.items()}
    together = [pair for split, some in pairs.items() if split != "test" for pair in some]
    if len(together) < MIN_PHOTOS:
        raise UserError(
            f"{base}: {len(together)} photo(s) with a mask; training and validation need at least {MIN_PHOTOS} in all, "
            f"and twenty or more to be of use{''.join(f'; {line}' for line in told(left_out))}"
        )
    description = _description(draft, class_names)
    report = _audit(base, together, description)
    description["class_weights"] = [round(weight, 4) for weight in suggested_weights(report.class_pixels).tolist()]
    if "all" in pairs:
        classes = [list(pair.counts.class_pixels) for pair in report.pairs]
        chosen = set(choose_validation(classes))
        everything = pairs.pop("all")
        pairs["train"] = [pair for index, pair in enumerate(everything) if index not in chosen]
        pairs["val"] = [pair for index, pair in enumerate(everything) if index in chosen]
    named = zip(draft.classes, description["classes"], strict=True)
    values = {_value_of(row): new["name"] for row, new in named}
    shares = (
        f"  {describe(value)}: {100 * share:.2f} % of the pixels, {values.get(value, 'ignored')}"
        for value, share in draft.shares.items()
    )
    notes = [f"{finding.kind}: {finding.message}" for finding in report.findings]
    if not class_names:
        names = ", ".join(row["name"] for row in draft.classes)
        notes.append(f"the classes are called {names}; better names: --classes, one word for each, in this order")
    return PhotoSet(
        pairs={
            split: [((base / image).resolve(), (base / label).resolve()) for image, label in pairs[split] if label]
            for split in SPLITS
            if split in pairs
        },
        description=description,
        size=draft.size,
        lines=(f"{len(together)} photos with masks, most of {draft.size[0]}x{draft.size[1]} pixels", *shares),
        notes=(*draft.remarks, *told(left_out), *notes),
    )


def _value_of(row: Mapping[str, Any]) -> Any:
    return row["id"] if "id" in row else tuple(row["color"])


def _description(draft: Draft, class_names: Sequence[str]) -> dict[str, Any]:
    """``dataset.json`` with the user's names.

    Raises:
        UserError: there are more or fewer names than classes.
    """
    classes = draft.classes
    if class_names and len(class_names) != len(classes):
        values = ", ".join(row["name"] for row in classes)
        raise UserError(f"{len(class_names)} names of classes, but the masks have {len(classes)}: {values}")
    if len(set(class_names)) != len(class_names):
        raise UserError(f"names of classes are {', '.join(class_names)}; expected each once")
    named = [{**row, "name": name} for row, name in zip(classes, class_names, strict=True)] if class_names else classes
    keys = {key: value for key, value in draft.keys.items() if key != "layouts"}
    return {"classes": named, **({"ignore": draft.ignore} if draft.ignore else {}), **keys}


def _audit(base: Path, pairs: Pairs, description: Mapping[str, Any]) -> ListReport:
    """Checks all pairs.

    Raises:
        UserError: training would be wrong.
    """
    with TemporaryDirectory(prefix="ovenet-fit-") as folder:
        write_text(Path(folder) / DESCRIPTION, json.dumps({**description, "layouts": {"images": "*", "labels": "*"}}))
        info = own_description(Path(folder) / DESCRIPTION, "photos")
    report = audit_list("photos", base, pairs, info, num_threads=num_cores())
    errors = [finding for finding in report.findings if finding.is_error]
    if errors:
        first = errors[0]
        where = f"{first_of(first.paths)}: " if first.paths else ""
        others = f" (and {len(errors) - 1} more kinds of error)" if errors[1:] else ""
        raise UserError(f"{base}: {first.kind}: {where}{first.message}{others}")
    return report


def _link(file: Path, target: Path) -> None:
    if target.is_symlink() or target.exists():
        target.unlink()
    try:
        target.symlink_to(os.path.abspath(file))
    except OSError:  # file systems without links
        shutil.copyfile(file, target)
