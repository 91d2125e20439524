"""Metadata of exported files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from ovenet.errors import UserError
from ovenet.structures import Normalization, ScoreKind

KEY = "ovenet"  # of the metadata entry in a file
VERSION = 1
SUFFIXES = {".onnx": "onnx", ".pt2": "pt2", ".xml": "openvino"}
TENSORS = ("initial", "seed", "fused", "offset", "confidence")  # outputs of a network with a seed
LABELS = "labels"

Precision = Literal["float32", "float16", "int8"]
Sampling = Literal["gather", "grid_sample"]
SAMPLINGS: tuple[Sampling, ...] = ("gather", "grid_sample")


@dataclass(frozen=True)
class ExportedFile:
    """The metadata of an exported file.

    Attributes:
        config: configuration of the training, as YAML.
        dataset_info: the classes, see `DatasetInfo.as_dict`.
        normalization: how the network's input is normalised.
        is_normalized: whether the file expects normalised input; else RGB from 0 to 255.
        size: ``(H, W)`` of its input; None for any.
        multiple: sides must be multiples of this where `size` is None: 1, or 32 in files of earlier versions.
        tensors: names of the outputs, in order.
        stride: stride of the score maps.
        score_kind: logits or probabilities.
        max_offset: see `Segmentor.max_offset`; None also where one of the seed's tensors is left out.
        precision: precision of the weights.
        source: name of the weights file.
        source_sha256: checksum of the weights file.
        versions: versions of ovenet and torch that wrote the file.
        class_names: ``K`` names, for programs that read no configuration.
        colors: ``K`` colours ``(R, G, B)``, for the same programs.
        temperature: fitted temperature of the probabilities by prediction name, for ``TEST.TEMPERATURE fitted``; the
            scores in the file are not divided by it. Empty for none.
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
    temperature: Mapping[str, float] = field(default_factory=dict)

    @property
    def gives_labels(self) -> bool:
        """Whether it gives classes instead of scores."""
        return self.tensors == (LABELS,)

    def as_text(self) -> str:
        """JSON for the file."""
        content = {"version": VERSION, **asdict(self)}
        if not self.temperature:
            del content["temperature"]  # earlier versions read the file too
        return json.dumps(content)

    @classmethod
    def from_text(cls, text: str | None, path: Path) -> ExportedFile:
        """Reads the text that `as_text` wrote.

        Args:
            text: metadata in the file; None if there is none.
            path: the file, for messages.

        Raises:
            UserError: the metadata is missing, damaged, or from another version.
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


def usual_sampling(path: Path) -> Sampling:
    """How a file samples at seeds if nobody asks: torch runs ``pt2`` files, with a `grid_sample` of its own."""
    return "grid_sample" if SUFFIXES[path.suffix] == "pt2" else "gather"


def is_exported(path: str | Path) -> bool:
    """Whether a file has the name of an exported one."""
    return Path(path).suffix in SUFFIXES
