"""`TEST.PROTOCOL` on data sets of every rule."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ovenet.builders.inference import inference_settings
from ovenet.config import load_config
from ovenet.data.catalog import CATALOG
from ovenet.data.info import EvaluationRule
from ovenet.data.transforms import IMAGENET
from ovenet.inference.inferencer import SlidingWindowInferencer
from ovenet.structures import OVeNetOutput


class Watching(nn.Module):
    """Two classes; remembers the sizes ``(H, W)`` that it is given."""

    def __init__(self):
        super().__init__()
        self.sizes = []

    def forward(self, images):
        self.sizes.append(tuple(images.shape[-2:]))
        return OVeNetOutput((images[:, :2],), (), (images[:, :2],))


def sizes_seen(protocol, rule, image_size=(64, 64)):
    """Sizes of what the network is given of an image of 30 x 40 pixels, at a base size of 40."""
    overrides = ["TEST.PROTOCOL", protocol, "TEST.BASE_SIZE", "40", "TEST.IMAGE_SIZE", str(list(image_size))]
    cfg = load_config("synthetic/demo", overrides)
    info = replace(CATALOG["synthetic"], evaluation=rule)
    network = Watching()
    predictor = SlidingWindowInferencer(network, inference_settings(cfg, info, IMAGENET), torch.device("cpu"))
    labels = predictor.predict(np.zeros((30, 40, 3), np.uint8)).labels["fused"]
    assert labels.shape == (30, 40)
    return network.sizes


@pytest.mark.parametrize("protocol", ["default", "ovenet"])
def test_padding_of_a_dataset_stays(protocol):
    """30 x 40 up to multiples of 16."""
    assert sizes_seen(protocol, EvaluationRule("long_side", multiple_of=16)) == [(32, 48)]


def test_protocols_of_a_short_side():
    """Of 30 x 40 the short side is 40: 40 x 53, up to 40 x 56, of which the long side is 40: 29 x 40."""
    rule = EvaluationRule("short_side", multiple_of=8)
    assert sizes_seen("default", rule) == [(40, 56)]
    assert sizes_seen("ovenet", rule) == [(29, 40)]
    assert sizes_seen("hrnet", rule) == [(64, 64)]


@pytest.mark.parametrize(
    ("protocol", "rule", "told"),
    [
        ("default", "long_side", False),
        ("ovenet", "long_side", True),
        ("hrnet", "long_side", False),
        ("ovenet", "short_side", False),
        ("ovenet", "stretch", False),
    ],
)
def test_a_protocol_that_changes_nothing_is_told(protocol, rule, told, caplog):
    sizes_seen(protocol, EvaluationRule(rule))
    messages = [record.message for record in caplog.records if "TEST.PROTOCOL" in record.message]
    assert len(messages) == told
    if told:
        assert messages == [
            "TEST.PROTOCOL ovenet changes nothing on synthetic: the long side is scaled to TEST.BASE_SIZE anyway"
        ]
