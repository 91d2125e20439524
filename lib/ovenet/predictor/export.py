"""Export of a trained model to a file of another runtime."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from ovenet.builders.data import list_dataset, require_rgb
from ovenet.builders.loading import TrainedModel
from ovenet.builders.models import build_model
from ovenet.data.files import read_image
from ovenet.data.samplers import spread
from ovenet.data.transforms import normalize_images, resize_image, resize_labels
from ovenet.deployment import ExportableNetwork, ExportedFile, Limits, Parity, compare, write_network
from ovenet.deployment.about import LABELS, SUFFIXES, TENSORS, Precision, Sampling, usual_sampling
from ovenet.deployment.formats import move_into_place
from ovenet.deployment.half import halve_onnx
from ovenet.deployment.quantization import quantize_onnx
from ovenet.deployment.runtimes import open_session, usual_runtime
from ovenet.errors import UserError
from ovenet.geometry import resize_bilinear
from ovenet.inference.backend import best_class
from ovenet.inference.inputs import find_inputs
from ovenet.inference.temperature import read_temperatures
from ovenet.models import Segmentor
from ovenet.models.conv_bn import fuse_conv_bn
from ovenet.predictor.run_folder import without_places
from ovenet.utils.logging import get_logger
from ovenet.version import version

ReadSample = Callable[[int], tuple[np.ndarray, np.ndarray | None]]  # image and labels, by index
Compared = tuple[np.ndarray, Tensor | None]  # an image of the network's size, and its train ids if there are any
# Image size at which a network of dynamic size is traced. All maps have odd sides, down to a stride of 32, so that no
# resize and no padding is skipped in the trace because a map happens to have the right size.
EXAMPLE_SIZE = (321, 449)
_PROBE_SIZE = (64, 64)
_LEAST_SIDE = 32


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export.

    Attributes:
        size: ``(H, W)`` of the images; None for any.
        tensors: outputs, see `ExportedFile`.
        normalize: put the normalisation of the pixels into the file.
        precision: of weights and activations; in float16, positions, scores, input and outputs stay in float32.
        opset: ONNX opset.
        limits: largest accepted differences from the trained model.
        images: images to compare and calibrate with, instead of the lists of the configuration.
        num_images: number of images to compare.
        num_calibration: number of images to calibrate with.
        seed_sampling: ``gather``, ``grid_sample``, or None for the usual one of the format, see `usual_sampling`.
    """

    size: tuple[int, int] | None
    tensors: tuple[str, ...]
    normalize: bool
    precision: Precision
    opset: int
    limits: Limits
    images: Sequence[str] = ()
    num_images: int = 8
    num_calibration: int = 16
    seed_sampling: Sampling | None = None


def export(
    trained: TrainedModel, path: Path, options: ExportOptions, *, tell: Callable[[str], object] = lambda _: None
) -> Parity:
    """Writes an exported file, unless it predicts otherwise than the trained model.

    Args:
        trained: the network and its metadata.
        path: ``*.onnx``, ``*.pt2`` or ``*.xml``.
        options: size, outputs and limits.
        tell: called with a line before each step that takes long.

    Raises:
        UserError: a package is missing, the network cannot be exported, or its predictions differ by more than the
            limits; no file is left.
        OSError: the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise UserError(f"{path}: expected a name that ends in {', '.join(SUFFIXES)}")
    if options.precision == "int8" and (options.size is None or path.suffix == ".pt2"):
        raise UserError("int8 needs --format onnx or openvino, and a fixed size: --size HxW")
    if options.precision == "float16" and path.suffix != ".onnx":
        raise UserError("fp16 needs --format onnx")
    require_rgb(trained.normalization)
    trained = _repeatable(trained)
    tensors = _checked_tensors(options.tensors, has_seed=trained.model.max_offset is not None)
    size = options.size or _traced_size(trained)
    about = _about(trained, options, tensors)
    sampling = options.seed_sampling or usual_sampling(path)
    fast = _network(trained, options, tensors, fuse_conv_bn(trained.model), gathers=sampling == "gather")
    example = _pixels(trained, options, np.zeros((*size, 3), np.uint8))

    def prepare(onnx_file: Path) -> None:
        if options.precision == "float16":
            halve_onnx(onnx_file)
        if options.precision == "int8":
            images = _samples(trained, options, trained.cfg.DATASET.TRAIN_SET, options.num_calibration)
            quantize_onnx(onnx_file, (_pixels(trained, options, image).numpy() for image, _ in images))

    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".ovenet-", dir=path.parent) as folder:
        unfinished = Path(folder) / path.name
        tell(f"writing:     for images of {f'{size[0]}x{size[1]}' if options.size else 'any size'}")
        write_network(fast, example, unfinished, about, opset=options.opset, prepare=prepare)
        tell(f"comparing:   with the trained network, on up to {options.num_images} images")
        samples = _samples(trained, options, trained.cfg.DATASET.TEST_SET, options.num_images)
        parity = _parity(trained, options, tensors, unfinished, samples)
        if problem := parity.problem(options.limits):
            raise UserError(f"{path} is not written: {problem} ({parity}); --max-changed and --max-loss allow more")
        for height, width, image in _other_shapes(trained, options) if options.size is None else ():
            parity_there = _parity(trained, options, tensors, unfinished, [(image, None)])
            if problem := parity_there.problem(options.limits):
                raise UserError(f"{path} is not written: at {height}x{width} {problem}; name one size: --size HxW")
        move_into_place(unfinished, path)
    return parity


def _repeatable(trained: TrainedModel) -> TrainedModel:
    """The same network with deterministic predictions: random ones cannot be compared with the file's."""
    if trained.cfg.MODEL.HEAD.get("BASES") != "official":
        return trained
    get_logger().info("an exported file has the same bases for every image: MODEL.HEAD.BASES is seeded in it")
    cfg = trained.cfg.clone()
    cfg.defrost()
    cfg.MODEL.HEAD.BASES = "seeded"
    cfg.freeze()
    model = build_model(cfg).eval()
    model.load_state_dict(trained.model.state_dict())
    return replace(trained, cfg=cfg, network=model)


def _network(
    trained: TrainedModel, options: ExportOptions, tensors: tuple[str, ...], model: Segmentor, *, gathers: bool = False
) -> ExportableNetwork:
    cfg = trained.cfg
    return ExportableNetwork(
        model,
        tensors,
        align_corners=cfg.MODEL.ALIGN_CORNERS,
        output_index=cfg.TEST.OUTPUT_INDEX,
        normalization=trained.normalization if options.normalize else None,
        gathers=gathers,
    ).eval()


def _pixels(trained: TrainedModel, options: ExportOptions, image: np.ndarray) -> Tensor:
    """Input ``(1, 3, H, W)`` of the network, from an image ``(H, W, 3)`` uint8."""
    images = torch.from_numpy(image.transpose(2, 0, 1).copy()).unsqueeze(0)
    return images.float() if options.normalize else normalize_images(images, trained.normalization)


def _parity(
    trained: TrainedModel, options: ExportOptions, tensors: tuple[str, ...], path: Path, samples: Iterable[Compared]
) -> Parity:
    """Compares an exported file with the trained model."""
    plain, run = _network(trained, options, tensors, trained.model), open_session(path, usual_runtime(path))
    align_corners = trained.cfg.MODEL.ALIGN_CORNERS

    def by_torch(image: np.ndarray) -> dict[str, Tensor]:
        return dict(zip(tensors, plain(_pixels(trained, options, image)), strict=True))

    def by_file(image: np.ndarray) -> dict[str, Tensor]:
        pixels = _pixels(trained, options, image)
        if options.size is None:  # another image in the batch must not change the result
            pixels = torch.cat((pixels, pixels.flip(3)))
        return dict(zip(tensors, (torch.from_numpy(x[:1]) for x in run(pixels.numpy())), strict=True))

    def classes(maps: dict[str, Tensor], size: tuple[int, int]) -> Tensor:
        if tensors == (LABELS,):
            return maps[LABELS][0]
        return best_class(resize_bilinear(maps["fused"], size, align_corners=align_corners)[0].permute(1, 0, 2))

    return compare(
        by_torch,
        by_file,
        classes,
        samples,
        trained.info.class_names,
        ignore_label=trained.cfg.TRAIN.IGNORE_LABEL,
    )


def _checked_tensors(tensors: tuple[str, ...], *, has_seed: bool) -> tuple[str, ...]:
    if tensors == (LABELS,):
        return tensors
    if not has_seed:
        foreign = [name for name in tensors if name != "fused"]
        if foreign and tensors != TENSORS:
            raise UserError(f"--tensors {foreign[0]}: this model has no seed; it gives fused alone")
        return ("fused",)
    if "fused" not in tensors:
        raise UserError("--tensors: fused is missing, which the classes are taken from to compare them")
    return tuple(name for name in TENSORS if name in tensors)


def _traced_size(trained: TrainedModel) -> tuple[int, int]:
    if trained.model.backbone.fixed_size is not None:
        raise UserError("--size dynamic: the backbone takes images of one size alone; name it: --size HxW")
    if trained.cfg.MODEL.HEAD.NAME == "mask2former":
        raise UserError(
            "--size dynamic: the head mask2former computes with the sizes of its maps as they are when it is written; "
            "name one size: --size HxW"
        )
    return EXAMPLE_SIZE


@torch.no_grad()
def _about(trained: TrainedModel, options: ExportOptions, tensors: tuple[str, ...]) -> ExportedFile:
    info = trained.info
    size = trained.model.backbone.fixed_size or _PROBE_SIZE
    probe = trained.model(torch.zeros(1, 3, *size))
    return ExportedFile(
        config=without_places(trained.cfg),
        dataset_info=info.as_dict(),
        normalization=trained.normalization,
        is_normalized=not options.normalize,
        size=options.size,
        multiple=1,
        tensors=tensors,
        stride=round(size[1] / probe.fused[-1].shape[3]),
        score_kind=probe.score_kind,
        max_offset=trained.model.max_offset if tensors == TENSORS else None,
        precision=options.precision,
        source=trained.path.name,
        source_sha256=hashlib.sha256(trained.path.read_bytes()).hexdigest(),
        versions={"ovenet": version(), "torch": torch.__version__},
        class_names=tuple(info.class_names),
        colors=info.palette,
        temperature=read_temperatures(trained.path),
    )


def _samples(trained: TrainedModel, options: ExportOptions, list_file: str, number: int) -> Iterator[Compared]:
    """Images resized for the network, evenly spread over a list, with their labels if there are any."""
    read, num_images = _images_of(options) if options.images else _listed(trained.cfg, list_file)
    for place, index in enumerate(spread(num_images, number)):
        image, labels = read(index)
        size = options.size or _varied_size(trained, image, place)
        resized = None if labels is None else torch.from_numpy(resize_labels(labels, size))
        yield resize_image(image, size), resized


def _images_of(options: ExportOptions) -> tuple[ReadSample, int]:
    found = [one.source for one in find_inputs(options.images) if isinstance(one.source, Path) and one.kind == "image"]
    if not found:
        raise UserError("--images: there is no image among them")
    return lambda index: (read_image(found[index]), None), len(found)


def _listed(cfg: CfgNode, list_file: str) -> tuple[ReadSample, int]:
    try:
        dataset = list_dataset(cfg, list_file)
    except UserError as error:
        raise UserError(
            f"the exported network is compared with the trained one on images of {list_file}, but {error}; set "
            "DATASET.ROOT (--set DATASET.ROOT data/), or name images: --images FOLDER"
        ) from error

    def read(index: int) -> tuple[np.ndarray, np.ndarray | None]:
        sample = dataset[index]
        return sample.image, sample.labels

    return read, len(dataset)


def _varied_size(trained: TrainedModel, image: np.ndarray, place: int) -> tuple[int, int]:
    """The size at which an image is run, less a few pixels more for each image: a list has images of one size."""
    size = trained.settings.scaled_size(image.shape[:2], 1.0)
    height, width = (max(_LEAST_SIDE, n - place * step % 32) for n, step in zip(size, (5, 11), strict=True))
    return height, width


def _other_shapes(trained: TrainedModel, options: ExportOptions) -> Iterator[tuple[int, int, np.ndarray]]:
    """Height, width and the first image at them: turned by a quarter, and squeezed, so that every aspect differs."""
    ((image, _),) = _samples(trained, options, trained.cfg.DATASET.TEST_SET, 1)
    height, width = image.shape[:2]
    for shape in ((width - 3, height - 1), (height // 2 + 7, width // 3 + 2)):
        size = max(_LEAST_SIDE, shape[0]), max(_LEAST_SIDE, shape[1])
        yield *size, resize_image(image, size)
