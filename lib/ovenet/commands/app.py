"""Opens a local page where photographs and short videos can be dropped."""

from __future__ import annotations

import argparse
import hashlib
import io
import sys
import tempfile
import zlib
from collections import Counter, OrderedDict
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovenet.app.server import Answers, AppServer
from ovenet.app.uploads import read_upload
from ovenet.deployment import RUNTIMES, is_exported
from ovenet.engine.settings import DEVICES
from ovenet.errors import UserError
from ovenet.inference.inputs import FrameReader, Input
from ovenet.inference.outputs import FrameWriter, draw_overlay
from ovenet.inference.result import SegResult
from ovenet.predictor.predictor import Predictor, load
from ovenet.predictor.sources import find_weights, models_here, title_of
from ovenet.report.gallery import picture_data
from ovenet.report.viewer import AppSettings, GalleryPage
from ovenet.structures import Sample
from ovenet.synthetic.scenes import draw_scene

MAX_FRAMES = 300
MAX_VIDEO_SIDE = 1920
_PHOTO_SIDE, _GRID_SIDE = 1280, 192  # see `picture_data`
_NUM_LOADED = 2  # number of models kept in memory
_NUM_MASKS = 16  # number of packed predictions kept in memory, for downloads
_EXAMPLE_SIZE, _EXAMPLE_SEED = (480, 640), 0
_DOWNLOADS = {"mask": ("Mask", "image/png"), "overlay": ("Overlay", "image/png"),
              "geojson": ("GeoJSON", "application/geo+json")}  # fmt: skip


class App:
    """The answers of the page.

    Args:
        models: arguments of `ovenet.load`, by the names that the page shows.
        device: see `Predictor.from_checkpoint`.
        runtime: runtime that the page starts with.
        max_mb: size limit of an upload, in MB.
        overrides: ``KEY VALUE …`` for all models.
    """

    def __init__(self, models: dict[str, str], device: str, runtime: str, max_mb: float, overrides: Sequence[str] = ()):
        self._models, self._runtime, self._max_mb = models, runtime, max_mb
        self._load = lru_cache(_NUM_LOADED)(
            lambda name, runtime: load(models[name], device=device, runtime=runtime, overrides=overrides)
        )
        self._masks: OrderedDict[tuple[str, str, str], bytes] = OrderedDict()

    def answers(self) -> Answers:
        """The functions that the server calls."""
        return Answers(self.page, self.predict, self.film, self.save, example)

    def predictor(self, model: str, runtime: str) -> Predictor:
        """The predictor of a model in a runtime; "" for the first model and the usual runtime.

        Raises:
            UserError: the model or the runtime does not exist.
        """
        model = model or next(iter(self._models))
        if model not in self._models:
            raise UserError(f"there is no model {model!r}; there are {', '.join(self._models)}")
        runtime = runtime or self._runtime
        if runtime not in RUNTIMES:
            raise UserError(f"there is no runtime {runtime!r}; there are {', '.join(RUNTIMES)}")
        source = find_weights(self._models[model])
        return self._load(model, None if is_exported(source) else runtime)

    def _predictor(self, model: str, runtime: str) -> Predictor:
        """`predictor`, with messages for a browser: they do not contain the paths of the weights."""
        try:
            return self.predictor(model, runtime)
        except UserError as error:
            message = str(error)
            for name, source in self._models.items():
                message = message.replace(source, name)
            raise UserError(message) from error

    def page(self, model: str) -> str:
        """The page of a model."""
        predictor = self._predictor(model, "")
        info = predictor.info
        title = model or next(iter(self._models))
        facts = f"{len(info.class_names)} classes of {info.name}. Files are predicted on this machine and not stored."
        page = GalleryPage(title, facts, info.class_names, info.palette, predictor.max_offset)
        downloads = tuple((form, text) for form, (text, _) in _DOWNLOADS.items())
        return page.render(
            app=AppSettings(tuple(self._models), RUNTIMES, title, self._runtime, self._max_mb, downloads)
        )

    def predict(self, file: Path, model: str, runtime: str) -> dict[str, Any]:
        """The data of one image for the viewer."""
        predictor = self._predictor(model, runtime)
        image = read_upload(file)
        prediction = predictor.predict(image, seeds=True, score_side=_GRID_SIDE)
        self._keep(_key(file, model, runtime), prediction.labels["fused"].cpu().numpy())
        num_classes = len(predictor.info.class_names)
        return picture_data(
            Sample(image, None, ""), prediction, num_classes, photo_side=_PHOTO_SIDE, grid_side=_GRID_SIDE
        )

    def save(self, file: Path, model: str, runtime: str, form: str) -> tuple[str, bytes]:
        """Type and content of a download, see `SegResult.save`; a photograph of late is not predicted again."""
        if form not in _DOWNLOADS:
            raise UserError(f"there is no download {form!r}; there are {', '.join(_DOWNLOADS)}")
        predictor = self._predictor(model, runtime)
        image = read_upload(file)
        key = _key(file, model, runtime)
        if key not in self._masks:
            self._keep(key, predictor.predict(image, names=("fused",)).labels["fused"].cpu().numpy())
        mask = np.frombuffer(zlib.decompress(self._masks[key]), np.uint8).reshape(image.shape[:2])
        path = SegResult(image, mask, predictor.info).save(file.with_name("download.png"), form)
        return _DOWNLOADS[form][1], path.read_bytes()

    def _keep(self, key: tuple[str, str, str], mask: np.ndarray) -> None:
        self._masks[key] = zlib.compress(mask.astype(np.uint8, copy=False).tobytes(), 1)
        self._masks.move_to_end(key)
        while len(self._masks) > _NUM_MASKS:
            self._masks.popitem(last=False)

    def film(self, file: Path, model: str, runtime: str) -> bytes:
        """The overlays of a video's first frames, as an mp4."""
        predictor = self._predictor(model, runtime)
        reader = FrameReader(Input("video", file, "upload"))
        with tempfile.TemporaryDirectory(prefix="ovenet-app-") as folder:
            path = Path(folder) / "film.mp4"
            writer = FrameWriter(path, reader.rate)
            try:
                for index, frame in enumerate(reader):
                    if index == MAX_FRAMES:
                        break
                    if frame is None:
                        continue
                    if max(frame.shape[:2]) > MAX_VIDEO_SIDE:
                        raise UserError(f"the upload: a video of more than {MAX_VIDEO_SIDE} pixels a side")
                    labels = predictor.predict(frame, names=("fused",)).labels["fused"].cpu().numpy()
                    writer.write(draw_overlay(frame, labels, predictor.info))
            finally:
                reader.close()
                writer.close()
            if not writer.num_frames:
                raise UserError("the upload: a video without a frame that can be decoded")
            return path.read_bytes()


def _key(file: Path, model: str, runtime: str) -> tuple[str, str, str]:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        for block in iter(lambda: content.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest(), model, runtime


@cache
def example() -> bytes:
    """A drawn street to try, as a PNG; the same at each call."""
    buffer = io.BytesIO()
    Image.fromarray(draw_scene(_EXAMPLE_SIZE, np.random.default_rng(_EXAMPLE_SEED))[0]).save(buffer, "PNG")
    return buffer.getvalue()


def main() -> None:
    """Serves the page until Ctrl-C."""
    args = build_parser().parse_args()
    if not 0 < args.max_mb <= 2000:
        raise UserError(f"--max-mb is {args.max_mb:g}; expected megabytes above 0, up to 2000")
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port is {args.port}; expected 0 to 65535")
    sources = args.models or sound_models()
    models = named_models(sources)
    app = App(models, args.device, args.runtime, args.max_mb, args.set)
    with AppServer(app.answers(), args.port, args.max_mb) as server:
        for name in models if args.models else list(models)[:1]:
            print(f"loading {name} …", flush=True)
            app.predictor(name, "")  # errors of loading appear now
        print(f"page: {server.address} (Ctrl-C ends it)", flush=True)
        server.serve_forever()


def named_models(sources: Sequence[str]) -> dict[str, str]:
    """Paths or names of models by what they are called on the page; by their paths where two are called the same.

    Raises:
        UserError: there is no such model.
    """
    here = models_here()
    titles = {source: source if source in here else title_of(find_weights(source)) for source in sources}
    counts = Counter(titles.values())
    return {title if counts[title] == 1 else source: source for source, title in titles.items()}


def sound_models() -> list[str]:
    """Names of the models on this machine whose files are the published ones; says which are left out."""
    names = []
    for name in models_here():
        try:
            find_weights(name)
        except UserError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
        else:
            names.append(name)
    return names


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "models",
        nargs="*",
        metavar="MODEL",
        help="models as for `ovenet infer`; default: those on this machine, general ones first",
    )
    parser.add_argument("--port", type=int, default=7860, help="default: 7860; 0 for a free one")
    parser.add_argument("--max-mb", type=float, default=20.0, metavar="MB", help="largest upload (default: 20)")
    parser.add_argument("--runtime", choices=RUNTIMES, default="torch", help="runtime that the page starts with")
    parser.add_argument("--device", default="auto", choices=DEVICES)
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY VALUE",
        help="settings of the models, such as TEST.TEMPERATURE fitted",
    )
    return parser
