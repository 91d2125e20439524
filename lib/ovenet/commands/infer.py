"""Predicts images, folders, videos, cameras and what comes through a pipe.

Photographs and videos are turned upright by their orientation tags: all results have the size and orientation that a
viewer shows.
"""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from itertools import chain, count
from pathlib import Path

from tqdm import tqdm

from ovenet.data.files import read_image
from ovenet.deployment import RUNTIMES
from ovenet.engine.settings import DEVICES
from ovenet.errors import UserError
from ovenet.inference.inferencer import thinning
from ovenet.inference.inputs import FrameReader, Input, find_inputs, frame_name
from ovenet.inference.memory import MemoryGuard
from ovenet.inference.outputs import KINDS, PROBABILITY, SEED_KINDS, FrameWriter, ResultWriter, draw_overlay
from ovenet.predictor.predictor import Predictor, load
from ovenet.predictor.sources import is_model, title_of
from ovenet.report.gallery import IGNORE_ID, picture_data, picture_sides
from ovenet.report.viewer import GalleryPage
from ovenet.structures import Sample
from ovenet.utils.progress import tell, track

DEFAULT_MODEL = "camvid-lite0"
EXIT_SKIPPED = 1
PAGE = "page.html"
NUM_PAGE_IMAGES = 100  # number of images that the picture sizes of a page are made for
MAX_SEED_SIDE = 4096  # offsets and confidence of larger images are subsampled


def main() -> None:
    """Loads the model, and predicts one input after the other."""
    args = build_parser().parse_args()
    if args.max_memory is not None and not 0 < args.max_memory < math.inf:
        raise UserError(f"--max-memory is {args.max_memory}; expected gigabytes above 0")
    if args.max_frames is not None and args.max_frames < 1:
        raise UserError(f"--max-frames is {args.max_frames}; expected at least 1")
    if not args.inputs and is_model(args.weights):  # a run's folder may hold pictures of a test
        raise UserError(
            f"{args.weights} is a model; say what to predict with it: ovenet infer {args.weights} photo.jpg (or a "
            "folder, a pattern, a video, camera:0)"
        )
    weights, sources = (args.weights, args.inputs) if args.inputs else (DEFAULT_MODEL, [args.weights])
    inputs = find_inputs(sources, frames=args.frames)
    folder = args.output or free_folder(Path("output") / "infer")
    if folder.exists() and any(folder.iterdir()) and not args.overwrite:
        raise UserError(f"{folder}: has files in it already; name another folder, or add --overwrite")
    options = {
        "runtime": args.runtime,
        "scales": args.scales,
        "flip": args.flip or None,
        "long_side": args.long_side,
        "overrides": args.set,
    }
    predictor = load(weights, config=args.cfg, device=args.device, **options)
    folder.mkdir(parents=True, exist_ok=True)
    writer = ResultWriter(folder, predictor.info, predictor.max_offset, args.save)
    page = page_for(predictor) if args.page else None
    require_inputs_stay(inputs, writer)
    seeds = any(kind in args.save for kind in SEED_KINDS)
    guard = MemoryGuard(
        predictor,
        predictor.info.num_classes,
        args.max_memory,
        max_seed_side=MAX_SEED_SIDE if seeds else 0,
        probability=PROBABILITY in args.save,
    )
    num_skipped = 0
    try:
        for one in track(inputs, "inputs", len(inputs), tell=tell):
            try:
                if one.kind == "image":
                    predict_image(predictor, writer, guard, one, seeds=seeds, page=page)
                else:
                    num_skipped += predict_video(predictor, writer, one, args, seeds=seeds and args.frames)
            except UserError as error:
                if args.strict or len(inputs) == 1:  # there is nothing to go on with
                    raise
                num_skipped += 1
                tqdm.write(f"skipped: {error}", file=sys.stderr)
    finally:
        writer.finish()
        if page is not None:
            page.write(folder / PAGE, command=shlex.join(["ovenet", "infer", *sys.argv[1:]]))
    if page is not None:
        print(f"page:        {folder / PAGE}")
    print(f"results:     {folder} ({len(inputs)} inputs, {num_skipped} images or frames skipped)")
    if num_skipped:
        sys.exit(EXIT_SKIPPED)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "weights",
        metavar="WEIGHTS",
        help="a run's folder, best.pth or other weights, or a model's name (ovenet models --pretrained); without INPUT "
        f"it is the input, for {DEFAULT_MODEL}",
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        metavar="INPUT",
        help="image, folder, 'pattern*', video, camera:0, or - for a video from a pipe",
    )
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="folder of the results (default: the first free of output/infer…)"
    )
    parser.add_argument("--overwrite", action="store_true", help="use DIR though it has files in it")
    parser.add_argument(
        "--save",
        nargs="+",
        choices=(*KINDS, PROBABILITY),
        default=list(KINDS),
        help=f"results to write; default: all but {PROBABILITY}, that of the predicted class",
    )
    parser.add_argument("--cfg", metavar="FILE", help="experiment file, for weights that carry no configuration")
    parser.add_argument("--long-side", metavar="PIXELS", help="long side that the network sees, or 'native'")
    parser.add_argument("--scales", nargs="+", type=float, metavar="S", help="scales whose scores are averaged")
    parser.add_argument("--flip", action="store_true", help="average with the flipped image")
    parser.add_argument("--max-memory", type=float, metavar="GB", help="skip images that would need more than this")
    parser.add_argument("--max-frames", type=int, metavar="N", help="stop a video or a camera after N frames")
    parser.add_argument(
        "--frames", action="store_true", help="for videos, write the results of --save for every frame too"
    )
    parser.add_argument("--page", action="store_true", help=f"write {PAGE}: click a pixel of an image to see its seed")
    parser.add_argument("--strict", action="store_true", help="stop at the first input that cannot be read")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument("--runtime", choices=RUNTIMES, help="default: torch, or the usual runtime of an exported file")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY VALUE", help="settings, such as TEST.SCORE exp"
    )
    return parser


def free_folder(folder: Path) -> Path:
    """This folder, or the first one with a number after it that has nothing in it."""
    names = chain([folder], (folder.with_name(f"{folder.name}_{number}") for number in count(2)))
    return next(path for path in names if not path.exists() or (path.is_dir() and not any(path.iterdir())))


def require_inputs_stay(inputs: list[Input], writer: ResultWriter) -> None:
    """Refuses results that would overwrite an input, directly or through links.

    Raises:
        UserError: a result has the path of an input.
    """
    sources = {one.source.resolve() for one in inputs if isinstance(one.source, Path)}
    for one in inputs:
        results = writer.paths(one.name) if one.kind == "image" else [video_path(writer, one)]
        for path in results:
            if path.resolve() in sources:
                raise UserError(f"{path.resolve()}: an input, which a result would replace; name another --output")


def video_path(writer: ResultWriter, one: Input) -> Path:
    """Path of the video of an input."""
    return writer.folder / "video" / f"{one.name}.mp4"


def page_for(predictor: Predictor) -> GalleryPage:
    """An empty page.

    Raises:
        UserError: the model has more classes than its pictures can hold.
    """
    info = predictor.info
    if len(info.class_names) > IGNORE_ID:
        raise UserError(f"--page: {len(info.class_names)} classes; its pictures hold at most {IGNORE_ID}")
    facts = f"{predictor.path.name}, {len(info.class_names)} classes of {info.name}"
    return GalleryPage(title_of(predictor.path), facts, info.class_names, info.palette, predictor.max_offset)


def predict_image(
    predictor: Predictor,
    writer: ResultWriter,
    guard: MemoryGuard,
    one: Input,
    *,
    seeds: bool,
    page: GalleryPage | None,
) -> None:
    """Predicts one image file, and writes its results."""
    assert isinstance(one.source, Path)
    image = read_image(one.source, max_pixels=guard.check(one.source))
    stride = thinning(image.shape[:2], MAX_SEED_SIDE)
    if page is not None and stride > 1:
        tqdm.write(f"{one}: larger than {MAX_SEED_SIDE} pixels a side, not on the page", file=sys.stderr)
        page = None
    if page is None:
        prediction = predictor.predict(
            image, names=("fused",), seeds=seeds, seed_stride=stride, probability=PROBABILITY in writer.kinds
        )
        writer.write(one.name, image, prediction)
        return
    photo_side, grid_side = picture_sides(NUM_PAGE_IMAGES)
    prediction = predictor.predict(image, seeds=True, score_side=grid_side, probability=PROBABILITY in writer.kinds)
    sample = Sample(image, None, one.name)
    num_classes = len(predictor.info.class_names)
    page.add(one.name, picture_data(sample, prediction, num_classes, photo_side=photo_side, grid_side=grid_side))
    writer.write(one.name, image, prediction)


def predict_video(
    predictor: Predictor, writer: ResultWriter, one: Input, args: argparse.Namespace, *, seeds: bool
) -> int:
    """Predicts the frames of a video or a camera; returns how many could not be decoded."""
    reader = FrameReader(one)
    video = FrameWriter(video_path(writer, one), reader.rate)
    broken, started = [], time.monotonic()
    total = min((n for n in (reader.num_frames, args.max_frames) if n), default=None)
    try:
        for index, frame in enumerate(track(reader, str(one), total, tell=tell)):
            if args.max_frames and index >= args.max_frames:
                break
            if frame is None:
                if args.strict:
                    raise UserError(f"{one}: frame {index} cannot be decoded")
                broken.append(index)
                continue
            prediction = predictor.predict(
                frame, names=("fused",), seeds=seeds, probability=args.frames and PROBABILITY in writer.kinds
            )
            name, labels = frame_name(one, index), prediction.labels["fused"].cpu().numpy()
            if args.frames:
                writer.write(name, frame.copy(), prediction)
            else:
                writer.note_shares(name, labels)
            video.write(draw_overlay(frame, labels, predictor.info))
    except KeyboardInterrupt:
        tqdm.write(f"{one}: stopped after {index} frames", file=sys.stderr)
        if one.kind == "video":  # the others may have no end of their own
            raise
    finally:
        video.close()
        reader.close()
    if video.num_frames:
        rate = video.num_frames / (time.monotonic() - started)
        tqdm.write(f"{one}: {video.num_frames} frames, {rate:.1f} frames/s")
    if broken:
        tqdm.write(f"skipped: {one}: {len(broken)} frames cannot be decoded, the first is {broken[0]}", file=sys.stderr)
    return len(broken)
