"""What is exported, and the images that files are compared on."""

import numpy as np
import pytest
from PIL import Image
from tests.four_convolutions import write_checkpoint  # noqa: F401 - a fixture
from tests.traced import traced_once

from ovenet.builders.loading import load_model
from ovenet.synthetic.scenes import draw_scene


@pytest.fixture(scope="module", autouse=True)
def _traced_once():
    with traced_once():
        yield


@pytest.fixture(scope="module")
def tiny_file(write_checkpoint, tmp_path_factory):  # noqa: F811
    """The checkpoint of a tiny OVeNet."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny.pth")


@pytest.fixture(scope="module")
def tiny(tiny_file):
    """The tiny OVeNet, loaded."""
    return load_model(tiny_file)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder of three drawn streets."""
    folder = tmp_path_factory.mktemp("images")
    for index in range(3):
        Image.fromarray(draw_scene((90, 140), np.random.default_rng(index))[0]).save(folder / f"{index}.png")
    return folder
