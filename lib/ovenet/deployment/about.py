"""Metadata of exported files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ovenet.errors import UserError
from ovenet.structures import Normalization, ScoreKind

KEY = "ovenet"  # of the metadata in a file
VERSION = 1
SUFFIXES = {".onnx": "onnx", ".pt2": "pt2", ".xml": "openvino"}
TENSORS = ("initial", "seed", "fused", "offset", "confidence")  # that a network with a seed can give
LABELS = "labels"

Precision = Literal["float32", "int8"]


@dataclass(frozen=True)
class ExportedFile:
    """The metadata of an exported file.

    Attributes:
        config: the configuration of the training, as YAML.
        dataset_info: the classes, see `DatasetInfo.as_dict`.
        normalization: of the network's pixels.
        is_normalized: whether the file expects normalised pixels; else RGB from 0 to 255.
        size: ``(H, W)`` of its input; None for any.
        multiple: of the sides, where `size` is None: 1; files of earlier versions were wrong at other sizes than 32's.
        tensors: names of its outputs, in their order.
        stride: of its score maps.
        score_kind: what they hold.
        max_offset: see `Segmentor.max_offset`; None too where a tensor of the seed is left out.
        precision: of its weights.
        source: name of the file of weights.
        source_sha256: its checksum.
        versions: of ovenet and torch that wrote it.
        colors: ``K`` colours ``(R, G, B)``, and
        class_names: ``K`` names, for programs that read nothing else.
    """

    config: str
    dataset_info: Mapping[str, Any]
    normalization: Normalization
    is_normalized: bool
    size: tuple[int, int] | None
    multiple: int
    tensors: tuple[str, ...]
    stride: int
    score_kind: ScoreKind
    max_offset: float | None
    precision: Precision
    source: str
    source_sha256: str
    versions: Mapping[str, str]
    class_names: tuple[str, ...]
    colors: tuple[tuple[int, int, int], ...]

    @property
    def gives_labels(self) -> bool:
        """Whether it gives classes instead of scores."""
        return self.tensors == (LABELS,)

    def as_text(self) -> str:
        """JSON for the file."""
        return json.dumps({"version": VERSION, **asdict(self)})

    @classmethod
    def from_text(cls, text: str | None, path: Path) -> ExportedFile:
        """What `as_text` wrote.

        Args:
            text: of the file; None if it has none.
            path: the file, for messages.

        Raises:
            UserError: there is none, it is damaged, or of another version.
        """
        if not text:
            raise UserError(f"{path}: says nothing about its classes and pixels; write it with: ovenet export WEIGHTS")
        try:
            content = dict(json.loads(text))
            version = content.pop("version")
            if version != VERSION:
                raise UserError(
                    f"{path}: exported in form {version}, this program reads form {VERSION}; export it again"
                )
            mean, std = (tuple(content["normalization"][key]) for key in ("mean", "std"))
            order = content["normalization"]["channel_order"]
            return cls(
                **content
                | {
                    "normalization": Normalization(mean, std, order),
                    "size": tuple(content["size"]) if content["size"] else None,
                    "tensors": tuple(content["tensors"]),
                    "class_names": tuple(content["class_names"]),
                    "colors": tuple(tuple(color) for color in content["colors"]),
                }
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{path}: what it says about itself is damaged ({error!r}); export it again") from error


def is_exported(path: str | Path) -> bool:
    """Whether a file has the name of an exported one."""
    return Path(path).suffix in SUFFIXES
