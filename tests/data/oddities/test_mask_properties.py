"""Masks drawn at random through draft, lists, audit and reader, beside the arrays that they were made of."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from tests.data.oddities import IGNORED, Truth
from tests.data.oddities.masks import write_png
from tests.data.oddities.test_oddities import experiment_of, require_truth
from tests.data.oddities.test_oddities import settings as places
from tests.tools.conftest import run_tool  # noqa: F401, a fixture

from ovenet import load_config

NUM_MASKS = 8
BITS = {"grey1": 1, "grey2": 2, "grey4": 4}
DEEP = {"tiff16": np.uint16, "tiff32": np.int32, "tiff float": np.float32}
IDS = ("grey8", *BITS, *DEEP, "palette")
COLORS = ("quantized", "rgb", "rgba")


@dataclass(frozen=True)
class Stored:
    """How a folder's masks are stored.

    Attributes:
        kind: of the files.
        size: height and width.
        values: id of each class, or an index into a table of colours.
        has_holes: some pixels are ignored, as 255 or as white.
        seed: of the pixels.
    """

    kind: str
    size: tuple[int, int]
    values: tuple[int, ...]
    has_holes: bool
    seed: int


@st.composite
def stored(draw: st.DrawFn) -> Stored:
    kind = draw(st.sampled_from((*IDS, *COLORS)))
    most = 2 ** BITS[kind] if kind in BITS else 254
    values = draw(st.lists(st.integers(0, most - 1), min_size=2, max_size=min(most, 5), unique=True))
    can_have_holes = kind not in BITS and kind != "quantized"
    return Stored(
        kind,
        (draw(st.integers(2, 24)), draw(st.integers(3, 24))),
        tuple(values),
        can_have_holes and draw(st.booleans()),
        draw(st.integers(0, 2**16)),
    )


def table_of(case: Stored) -> np.ndarray:
    """A colour ``(256, 3)`` for each value, none of them white."""
    rng = np.random.default_rng(case.seed)
    codes = rng.choice(2**24 - 1, 256, replace=False)
    return np.stack((codes >> 16, codes >> 8 & 255, codes & 255), axis=1).astype(np.uint8)


def write(case: Stored, folder: Path) -> Truth:
    """Images and masks; every class is in each mask that has room for it."""
    rng, truth = np.random.default_rng(case.seed), {}
    for index in range(NUM_MASKS):
        classes = rng.integers(0, len(case.values), case.size)
        classes.flat[: len(case.values)] = np.arange(len(case.values))
        holes = (rng.random(case.size) < 0.2) & case.has_holes
        holes.flat[: len(case.values)] = False
        for part in ("images", "labels"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (*case.size, 3), dtype=np.uint8)).save(folder / f"images/{index}.png")
        save(case, classes, holes, folder / "labels" / str(index), index)
        truth[str(index)] = np.where(holes, IGNORED, classes)
    return truth


def save(case: Stored, classes: np.ndarray, holes: np.ndarray, path: Path, index: int) -> None:
    values, table = np.array(case.values)[classes], table_of(case)
    ids, colors = np.where(holes, 255, values), np.where(holes[..., None], 255, table[values]).astype(np.uint8)
    if case.kind in BITS:
        write_png(path.with_suffix(".png"), ids, bits=BITS[case.kind])
    elif case.kind in DEEP:
        Image.fromarray(ids.astype(DEEP[case.kind])).save(path.with_suffix(".tif"))
    elif case.kind in ("palette", "quantized"):
        order = np.random.default_rng(case.seed + (index if case.kind == "quantized" else 0)).permutation(255)
        places = np.append(order if case.kind == "quantized" else np.arange(255), 255)
        palette = np.zeros((256, 3), np.uint8)
        palette[places] = np.where(np.arange(256)[:, None] == 255, 255, table)
        image = Image.fromarray(places[ids].astype(np.uint8), "P")
        image.putpalette(palette.tobytes())
        image.save(path.with_suffix(".png"))
    elif case.kind == "rgba":
        Image.fromarray(np.dstack((colors, np.full(case.size, 255, np.uint8)))).save(path.with_suffix(".png"))
    else:
        image = Image.fromarray(ids.astype(np.uint8) if case.kind == "grey8" else colors)
        image.save(path.with_suffix(".png"))


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(case=stored())
def test_what_is_trained_on_is_what_was_drawn(case: Stored, run_tool) -> None:  # noqa: F811
    with tempfile.TemporaryDirectory() as name:
        root = Path(name) / "data"
        truth = write(case, root / "drawn")
        prepared = run_tool("prepare_data", "drawn", "--root", root)
        assert prepared.code == 0, prepared.err
        experiment = experiment_of("drawn", root, prepared.out)
        audited = run_tool("audit_data", "--cfg", experiment, "--pictures", 0, *places(root, Path(name)))
        assert audited.code == 0, audited.out + audited.err
        require_truth(truth, load_config(experiment, places(root, Path(name))))
