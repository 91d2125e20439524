"""Networks run by other runtimes, with the interface of a segmentor: normalised pixels in, `OVeNetOutput` out."""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ovenet.deployment.about import SUFFIXES, TENSORS
from ovenet.deployment.formats import read_about, require, write_onnx
from ovenet.deployment.network import ExportableNetwork
from ovenet.errors import UserError
from ovenet.inference.views import padded_size
from ovenet.models import Segmentor
from ovenet.models.precision import without_autocast
from ovenet.structures import Normalization, OVeNetOutput, ScoreKind
from ovenet.utils.logging import get_logger

RUNTIMES: tuple[str, ...] = ("auto", "torch", "onnxruntime", "openvino")
_FASTEST_FIRST = ("openvino", "onnxruntime")  # on the CPU, see docs/benchmarks.md
_PROBE_SIZE = (64, 64)

Run = Callable[[np.ndarray], list[np.ndarray]]  # pixels (1, 3, H, W) to the tensors of a file, in their order


def choose_runtime(name: str, device: torch.device) -> str:
    """A runtime that is installed.

    Args:
        name: ``auto`` takes the fastest on the CPU that is installed, and torch elsewhere.
        device: device that torch would use.

    Raises:
        UserError: the runtime is not installed, or runs on the CPU only.
    """
    if name == "auto":
        installed = [one for one in _FASTEST_FIRST if find_spec(one)] if device.type == "cpu" else []
        chosen = (installed or ["torch"])[0]
        get_logger().info("runtime: %s", chosen)
        return chosen
    if name != "torch":
        if device.type != "cpu":
            raise UserError(f"the runtime {name} runs on the CPU; add --device cpu (DEVICE cpu), or take torch")
        require(name, why=f"the runtime {name}")
    return name


class RuntimeNetwork(nn.Module):
    """A network run by another runtime, one image of a batch at a time.

    Attributes:
        normalization: how the input of `forward` is normalised.
        max_offset: see `Segmentor.max_offset`.
    """

    def __init__(self, normalization: Normalization, max_offset: float | None, score_kind: ScoreKind):
        super().__init__()
        self.normalization, self.max_offset, self.score_kind = normalization, max_offset, score_kind

    @abstractmethod
    def run(self, pixels: Tensor) -> dict[str, Tensor]:
        """Tensors by name of one image ``(1, 3, H, W)``, on the CPU."""

    def forward(self, images: Tensor) -> OVeNetOutput:
        """See `Segmentor.forward`; the tuples hold one map each."""
        parts = [self.run(image) for image in images.cpu().split(1)]
        maps = {name: torch.cat([part[name] for part in parts]).to(images.device) for name in parts[0]}
        if "fused" not in maps:
            raise UserError("the file gives no fused scores, which classes are taken from; export them too (--tensors)")
        has_seed = {"initial", "seed", "offset", "confidence"} <= maps.keys()
        fused = (maps["fused"],)
        if not has_seed:
            return OVeNetOutput(fused, (), fused, score_kind=self.score_kind)
        initial, seed = ((maps[name],) for name in ("initial", "seed"))
        return OVeNetOutput(initial, seed, fused, maps["offset"], maps["confidence"], self.score_kind)


class ConvertedNetwork(RuntimeNetwork):
    """A segmentor, converted for each image size on first use.

    Args:
        model: segmentor on the CPU, its BatchNorm fused.
        runtime: ``onnxruntime`` or ``openvino``.
        output_index: which score map, -1 the final one.
        precision: ``fp32``; with openvino also ``bf16``, for processors that have it.

    Raises:
        UserError: the runtime is not installed, or does not support the precision.
    """

    def __init__(self, model: Segmentor, runtime: str, *, output_index: int = -1, precision: str = "fp32"):
        probe = _probe(model)
        super().__init__(model.normalization, model.max_offset, probe.score_kind)
        self._tensors = TENSORS if probe.has_seed else ("fused",)
        network = ExportableNetwork(model, self._tensors, align_corners=True, output_index=output_index).eval()
        self._network = [network.to(memory_format=torch.contiguous_format)]  # in a list, so that it is no submodule
        self._runtime, self._precision = runtime, precision
        self._sessions: dict[tuple[int, ...], Run] = {}
        _require_precision(runtime, precision)

    def run(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `RuntimeNetwork.run`."""
        size = tuple(pixels.shape[-2:])
        if size not in self._sessions:
            get_logger().info("%s: converting the network for images of %dx%d", self._runtime, *reversed(size))
            with tempfile.TemporaryDirectory(prefix="ovenet-") as folder:
                path = Path(folder) / "network.onnx"
                # Tensors of inference mode cannot be exported, nor those of mixed precision.
                with torch.inference_mode(False), torch.no_grad(), without_autocast(pixels.device):
                    write_onnx(self._network[0], torch.zeros(pixels.shape), path, self._tensors, is_dynamic=False)
                self._sessions[size] = open_session(path, self._runtime, self._precision)
        return dict(zip(self._tensors, map(torch.from_numpy, self._sessions[size](pixels.numpy())), strict=True))


class FileNetwork(RuntimeNetwork):
    """The network of an exported file.

    Images smaller than a fixed size are padded with the mean colour, and the padding is cut off again.

    Args:
        path: exported file.
        runtime: runtime to use; None for the usual one of the format.
        precision: see `ConvertedNetwork`.

    Attributes:
        about: metadata of the file.

    Raises:
        UserError: the file cannot be read or run, or gives labels instead of scores.
    """

    def __init__(self, path: Path, runtime: str | None = None, *, precision: str = "fp32"):
        about = read_about(path)
        super().__init__(about.normalization, about.max_offset, about.score_kind)
        self.about, self._path = about, path
        if about.gives_labels:
            raise UserError(
                f"{path}: gives classes, not scores, for other programs; export it with --output scores to predict here"
            )
        self._run = open_session(path, runtime or usual_runtime(path), precision)

    def run(self, pixels: Tensor) -> dict[str, Tensor]:
        """See `RuntimeNetwork.run`.

        Raises:
            UserError: the image does not fit the file's size.
        """
        size = pixels.shape[-2], pixels.shape[-1]
        padded = self._padded_size(size)
        pixels = F.pad(pixels, (0, padded[1] - size[1], 0, padded[0] - size[0]))
        if not self.about.is_normalized:
            pixels = _denormalized(pixels, self.normalization)
        tensors = map(torch.from_numpy, self._run(np.ascontiguousarray(pixels.numpy())))
        maps = dict(zip(self.about.tensors, tensors, strict=True))
        return _cut(maps, size, padded) if padded != size else maps

    def _padded_size(self, size: tuple[int, int]) -> tuple[int, int]:
        fixed = self.about.size
        if fixed is None:
            return padded_size(size, self.about.multiple)
        if any(n > limit for n, limit in zip(size, fixed, strict=True)):
            raise UserError(
                f"{self._path}: exported for images of {fixed[1]}x{fixed[0]} pixels, got {size[1]}x{size[0]}; "
                "export it with --size dynamic, or that size"
            )
        return fixed


def usual_runtime(path: Path) -> str:
    """The usual runtime of a file's format."""
    return {"onnx": "onnxruntime", "openvino": "openvino", "pt2": "torch"}[SUFFIXES[path.suffix]]


def open_session(path: Path, runtime: str, precision: str = "fp32") -> Run:
    """A function that runs a file.

    Raises:
        UserError: the runtime is not installed, or cannot run the file.
    """
    _require_precision(runtime, precision)
    file_format = SUFFIXES[path.suffix]
    if runtime == "onnxruntime" and file_format == "onnx":
        return _onnx_session(path)
    if runtime == "openvino" and file_format != "pt2":
        return _openvino_session(path, precision)
    if runtime == "torch" and file_format == "pt2":
        try:
            program = torch.export.load(path).module()
        except Exception as error:  # damaged bytes; torch 2.6 also fails on its own files of these networks
            raise UserError(
                f"{path}: torch {torch.__version__} cannot read it ({error!r}); take a newer one"
            ) from error
        return lambda pixels: [x.numpy() for x in program(torch.from_numpy(pixels))]
    raise UserError(f"{path}: the runtime {runtime} does not run {file_format} files; take {usual_runtime(path)}")


def _onnx_session(path: Path) -> Run:
    onnxruntime = require("onnxruntime", why="the runtime onnxruntime")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors derive from Exception alone
        raise UserError(f"{path.name}: ONNX Runtime cannot run it: {str(error).splitlines()[0][:300]}") from error
    (name,) = (one.name for one in session.get_inputs())

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        with _runnable(path, "ONNX Runtime", pixels):
            return session.run(None, {name: pixels})

    return run


def _openvino_session(path: Path, precision: str) -> Run:
    openvino = require("openvino", why="the runtime openvino")
    hints = {"INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision], "PERFORMANCE_HINT": "LATENCY"}
    try:
        compiled = openvino.Core().compile_model(openvino.Core().read_model(path), "CPU", hints)
    except RuntimeError as error:
        reason = " ".join(str(error).split())  # the first line is a source location; the reason is the last
        raise UserError(f"{path.name}: OpenVINO cannot run it: …{reason[-200:]}") from error

    def run(pixels: np.ndarray) -> list[np.ndarray]:
        with _runnable(path, "OpenVINO", pixels):
            results = compiled(pixels)
        return [results[index].copy() for index in range(len(results))]

    return run


@contextmanager
def _runnable(path: Path, runtime: str, pixels: np.ndarray) -> Iterator[None]:
    """Turns a runtime's error into one line."""
    try:
        yield
    except Exception as error:  # as above
        batch, _, height, width = pixels.shape
        reason = " ".join(str(error).split())[-200:]
        raise UserError(f"{path.name}: {runtime} cannot run {batch} image(s) of {width}x{height}: …{reason}") from error


def _require_precision(runtime: str, precision: str) -> None:
    if precision != "fp32" and not (runtime == "openvino" and precision == "bf16"):
        raise UserError(f"the runtime {runtime} does not compute in {precision} here; set TEST.PRECISION fp32")


@torch.no_grad()
def _probe(model: Segmentor) -> OVeNetOutput:
    return model.eval()(torch.zeros(1, model.backbone.in_channels, *(model.backbone.fixed_size or _PROBE_SIZE)))


def _denormalized(pixels: Tensor, normalization: Normalization) -> Tensor:
    """RGB from 0 to 255 of normalised pixels."""
    mean, std = (255 * torch.tensor(values).view(3, 1, 1) for values in (normalization.mean, normalization.std))
    pixels = pixels * std + mean
    return pixels.flip(1) if normalization.channel_order == "BGR" else pixels


def _cut(maps: Mapping[str, Tensor], size: tuple[int, int], padded: tuple[int, int]) -> dict[str, Tensor]:
    """Crops the maps of a padded image to the image, and rescales offsets to its size."""
    cut: dict[str, Any] = {}
    for name, values in maps.items():
        full = values.shape[-2:]
        height, width = (-(-n * m // p) for n, m, p in zip(size, full, padded, strict=True))
        cut[name] = values[..., :height, :width]
        if name == "offset":
            factors = [(m - 1) / max(1, n - 1) for m, n in ((full[1], width), (full[0], height))]
            cut[name] = cut[name] * torch.tensor(factors).view(2, 1, 1)
    return cut
