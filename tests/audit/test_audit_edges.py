"""Smoothed labels are told from others, drawn ones and those with every other pixel left out."""

import numpy as np
import pytest
from PIL import Image
from tests.audit.audited import RNG, Data, only
from tests.data.oddities.thin import cells

from ovenet.audit.edges import are_smoothed
from ovenet.data.catalog import CATALOG

BLOCKS = np.kron(RNG.permutation(np.arange(7, 34).repeat(8))[:180].reshape(12, 15), np.ones((14, 11))).astype(np.uint8)


def scaled(size, resampling):
    return np.asarray(Image.fromarray(BLOCKS).resize(size, resampling))


@pytest.mark.parametrize("size", [(80, 80), (120, 100), (165, 168), (330, 336), (401, 333)])
def test_only_scaling_with_smoothing_is_seen(size):
    assert not are_smoothed(scaled(size, Image.Resampling.NEAREST))
    assert are_smoothed(scaled(size, Image.Resampling.BILINEAR)) is (size != (165, 168))


def test_thin_things_steps_of_a_scale_and_outlines_are_no_smoothing():
    thin = BLOCKS.copy()
    thin[:, 5::11] = 17  # poles, in the middle of every block
    assert not are_smoothed(thin)
    steps = np.arange(200).repeat(3)[None] // 10
    assert not are_smoothed(steps)  # each area is wide
    outlined = np.tile([0] * 9 + [1] + [2] * 9 + [1], (20, 30))
    assert not are_smoothed(outlined)
    assert not are_smoothed(np.zeros((3, 1), np.uint8))


@pytest.mark.parametrize("width", [1, 2])
def test_classes_for_the_outlines_of_others_are_no_smoothing(width):
    drawn = np.concatenate([cells(index, width=width) for index in range(8)])
    assert not are_smoothed(drawn)
    assert not are_smoothed(drawn.astype(np.int32) * 300 - 400)
    smoothed = Image.fromarray(np.where(drawn % 2, 0, drawn)).resize((70, 450), Image.Resampling.BILINEAR)
    assert are_smoothed(np.asarray(smoothed))


def test_the_audit_names_smoothed_labels_whose_ids_are_all_known(tmp_path):
    data = Data(tmp_path)
    for number, resampling in enumerate([Image.Resampling.NEAREST, Image.Resampling.BILINEAR]):
        label = scaled((330, 336), resampling)
        data.add([0], image=RNG.integers(0, 256, (*label.shape, 3)).astype(np.uint8), label=label, name=str(number))
    finding = only(data.found(CATALOG["cityscapes"]))
    assert (finding.kind, finding.is_error, finding.paths) == ("smoothed edges", False, ("1_label.png",))
    assert "nearest pixel" in finding.message
