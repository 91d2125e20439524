"""A network that is exported in a second, for what is true of the files of any network."""

from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from ovenet.builders import build_model
from ovenet.config.loading import load_config_text
from ovenet.models.interfaces import Backbone
from ovenet.models.registry import BACKBONES
from ovenet.structures import Normalization
from ovenet.synthetic.scenes import draw_scene
from tests.conftest import tiny_settings

OVENET = {"HEAD": {"NAME": "fcn"}, "SEED": {"NAME": "neck", "PROJECTION": 8}}


class FourConvolutions(Backbone):
    """Maps of strides 4, 8 and 16."""

    channels, strides = (8, 8, 8), (4, 8, 16)
    normalization = Normalization(mean=(0.5, 0.25, 0.75), std=(0.5, 1.0, 0.25))

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, 8, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
            )
            for width in (3, 8, 8, 8)
        )

    def forward(self, images):
        maps = [images]
        for layer in self.layers:
            maps.append(layer(maps[-1]))
        return maps[2:]


def small_settings() -> dict:
    """`tiny_settings` of an OVeNet of four convolutions, which runs, trains and is saved in a fifth of the time."""
    return {**tiny_settings(), "MODEL": {"BACKBONE": {"NAME": "four_convolutions"}, **OVENET}}


def registered():
    """A context in which configurations can name the backbone ``four_convolutions``."""
    return patch.dict(BACKBONES._builders, four_convolutions=FourConvolutions)


@pytest.fixture(scope="module")
def write_checkpoint():
    """A function that writes the checkpoint of a network of random weights, by default an OVeNet; it gives the path."""
    scenes = np.stack([draw_scene((96, 128), np.random.default_rng(index))[0] for index in range(2)])
    pixels = torch.from_numpy(scenes).permute(0, 3, 1, 2) / 127.5 - 1

    def write(path, *, parts=OVENET, dataset="synthetic", num_classes=7):
        settings = {
            "MODEL": {"BACKBONE": {"NAME": "four_convolutions"}, **parts},
            "DATASET": {"DATASET": dataset, "NUM_CLASSES": num_classes},
            "TEST": {"BASE_SIZE": 128, "IMAGE_SIZE": [128, 128]},
        }
        text = yaml.safe_dump(settings)
        torch.manual_seed(0)
        network = build_model(load_config_text(text, str(path))).train()
        for name, parameter in network.named_parameters():
            if parameter.ndim == 4:  # scores and offsets begin near zero
                nn.init.normal_(parameter, std=0.05 if name.startswith("seed.head") else 0.3)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():  # BatchNorm's statistics are those of what it will see
            network(pixels)
        torch.save({"model": network.state_dict(), "config": text}, path)
        return path

    with registered():
        yield write
