"""SegFix behind a network: its decisions against plain loops."""

import numpy as np
import pytest
import torch
from torch import nn

from ovenet.errors import UserError
from ovenet.losses import SegmentationCriterion
from ovenet.models import build_segmentor
from ovenet.models.segmentor import Segmentor
from ovenet.structures import DirectionOutput

SIZE = (63, 95)
STEPS = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]  # (x, y) of the published 8 directions


def build(head="fcn", **seed_args):
    torch.manual_seed(0)
    return build_segmentor(
        "hrnet_w18_small_v1",
        num_classes=4,
        head=head,
        head_args={"mid_channels": 8, "key_channels": 4} if head == "ocr" else None,
        seed="segfix",
        seed_args={"projection": 8, "channels": 16, **seed_args},
    )


@pytest.fixture
def images():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))


def test_scores_come_from_the_decided_pixels(images):
    """At the image's size, ``p`` takes the score of ``p + 2 step``, clamped to the image."""
    model = build().eval()
    for branch in (model.seed.boundary, model.seed.direction):
        weight = branch[-1].weight.data.normal_()
        weight -= weight.mean(dim=1, keepdim=True)
    with torch.no_grad():
        output = model(images)
    predicted = output.directions
    resized = [
        nn.functional.interpolate(x, SIZE, mode="bilinear", align_corners=False)  # as HRNet's fcn head has it
        for x in (predicted.boundary.sigmoid(), predicted.direction)
    ]
    near, index = resized[0][:, 0] > 0.5, resized[1].argmax(dim=1)
    assert 0.05 < near.float().mean() < 0.95
    initial, fused = output.initial[-1].numpy(), output.fused[-1].numpy()
    expected = initial.copy()
    for b, y, x in np.argwhere(near.numpy()):
        dx, dy = STEPS[index[b, y, x]]
        row, column = np.clip(y + 2 * dy, 0, SIZE[0] - 1), np.clip(x + 2 * dx, 0, SIZE[1] - 1)
        expected[b, :, y, x] = initial[b, :, row, column]
    np.testing.assert_allclose(fused, expected, atol=2e-4 * np.abs(initial).max())
    assert torch.equal(output.confidence[:, 0] > 0, near)
    assert torch.equal(output.confidence.unique(), torch.tensor([0.0, 1.0]))
    pixels = output.offset * torch.tensor([(SIZE[1] - 1) / 2, (SIZE[0] - 1) / 2]).view(1, 2, 1, 1)
    expected = 2 * torch.tensor(STEPS, dtype=torch.float32)[index].movedim(-1, 1) * near.unsqueeze(1)
    torch.testing.assert_close(pixels, expected)


def test_each_direction_leads_to_its_neighbour():
    seed = build(scale=3).seed
    for index, (x, y) in enumerate(STEPS):
        direction = torch.zeros(1, 8, 5, 9)
        direction[:, index] = 1
        offset, near = seed.decide(DirectionOutput(torch.ones(1, 1, 5, 9), direction), (5, 9))
        assert near.all()
        torch.testing.assert_close(offset[0, :, 2, 3], torch.tensor([3 * x / 4, 3 * y / 2]))
        assert seed.decide(DirectionOutput(near, direction), (1, 9))[0].isfinite().all()  # a row has no height


def test_without_borders_the_scores_stay(images):
    model = build().eval()
    nn.init.zeros_(model.seed.boundary[-1].weight)  # probability one half: no border
    with torch.no_grad():
        output = model(images)
        plain = Segmentor(model.backbone, model.neck, model.head).eval()(images).fused[-1]
    assert not output.offset.any()
    resized = nn.functional.interpolate(plain, SIZE, mode="bilinear", align_corners=False)
    torch.testing.assert_close(output.fused[-1], resized, atol=1e-5, rtol=1e-4)


def test_auxiliary_scores_stay(images):
    model = build("ocr").eval()
    with torch.no_grad():
        output = model(images)
    assert [x.shape[-2:] for x in output.fused] == [(16, 24), SIZE]
    assert output.initial[0] is output.seed[0] is output.fused[0]
    assert output.fused[1].shape == output.initial[1].shape


@pytest.mark.parametrize("head", ["fcn", "ocr"])
def test_training_reaches_every_parameter(images, head):
    model = build(head).train()
    output = model(images)
    assert output.fused == output.initial  # nothing is decided in training
    assert not output.has_seed
    weights = (0.4, 1.0) if head == "ocr" else (1.0,)
    labels = torch.arange(4).repeat_interleave(24)[: SIZE[1]].expand(2, *SIZE)
    losses = SegmentationCriterion(ignore_label=255, output_weights=weights)(output, labels)
    losses.total.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_behind_a_frozen_network_only_the_seed_learns(images):
    model = build().train()
    model.freeze(["backbone", "neck", "head"])
    before = {k: v.clone() for k, v in model.state_dict().items()}
    labels = torch.arange(4).repeat_interleave(24)[: SIZE[1]].expand(2, *SIZE)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    for _ in range(3):
        optimizer.zero_grad()
        losses = SegmentationCriterion(ignore_label=255)(model(images), labels)
        losses.total.backward()
        optimizer.step()
    changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
    assert changed
    assert all(name.startswith("seed.") for name in changed)


def test_bfloat16_keeps_scores_and_positions_in_float32(images):
    model = build().eval()
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(images)
    assert {x.dtype for x in (output.fused[-1], output.offset, output.directions.direction)} == {torch.float32}


def test_settings():
    assert sum(p.numel() for p in build(channels=32).seed.parameters()) > sum(
        p.numel() for p in build().seed.parameters()
    )
    with pytest.raises(UserError, match=r"^MODEL.SEED.SCALE is 0.0; expected more than 0 \(pixels\)$"):
        build(scale=0.0)
    with pytest.raises(UserError, match=r"^MODEL.SEED.CHANNELS is 0; expected at least 1$"):
        build(channels=0)
