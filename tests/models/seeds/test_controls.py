"""Controls have what OVeNet has, but for the seed."""

import numpy as np
import pytest
import torch
from torch import nn

from ovenet.errors import UserError
from ovenet.models import build_segmentor

TINY = {"num_classes": 4, "neck_args": {"projection": 8}}


def build(seed="control", neck="concat", **seed_args):
    torch.manual_seed(0)
    return build_segmentor(
        "hrnet_w18_small_v1",
        neck=neck,
        seed=seed,
        seed_args={"projection": 8, "max_offset": 0.5, **seed_args} if seed else None,
        **TINY,
    )


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("source", ["own", "random", "mean3", "mean7"])
def test_it_has_the_parameters_of_ovenet(source):
    ovenet, control = build("neck"), build(source=source)
    assert {n: p.shape for n, p in control.named_parameters()} == {n: p.shape for n, p in ovenet.named_parameters()}


def test_the_pixel_itself(images):
    output = build(source="own").train()(images)
    assert not output.offset.any()
    torch.testing.assert_close(output.seed[-1], output.initial[-1], rtol=0, atol=1e-5)


def test_random_pixels_within_the_limit(images):
    model = build(source="random")
    first, second = model.train()(images).offset, model(images).offset
    assert 0.45 < first.abs().max() <= 0.5
    assert (first != second).any()
    assert abs(first.mean()) < 0.02
    with torch.no_grad():
        first, second = model.eval()(images).offset, model(images).offset
    torch.testing.assert_close(first, second, rtol=0, atol=0)


@pytest.mark.parametrize("window", [3, 7])
def test_the_mean_of_the_neighbourhood(images, window):
    with torch.no_grad():
        output = build(source=f"mean{window}").eval()(images)
    scores, means = output.initial[-1].numpy(), output.seed[-1].numpy()
    half, (height, width) = window // 2, scores.shape[-2:]
    for y, x in ((0, 0), (0, width - 1), (height // 2, width // 2), (height - 1, 2)):
        rows, columns = slice(max(y - half, 0), y + half + 1), slice(max(x - half, 0), x + half + 1)
        np.testing.assert_allclose(means[..., y, x], scores[..., rows, columns].mean(axis=(-2, -1)), atol=1e-5)


def test_added_features_cost_what_the_seed_costs(images):
    """The seed's neck and 1x1 convolution once more, less the convolution to offsets and confidence."""
    added, ovenet = build(seed=None, neck="concat_added"), build("neck")
    last = ovenet.seed.head.layers[-1]
    assert parameters(ovenet) - parameters(added) == last.weight.numel() + last.bias.numel()
    output = added.eval()(images)
    assert not output.has_seed
    before = output.fused[-1]
    nn.init.zeros_(added.neck.layers[1].weight)  # with the added features at zero the plain network remains
    plain = build(seed=None)
    state = {k: v for k, v in added.state_dict().items() if not k.startswith(("neck.extra.", "neck.layers."))}
    plain.load_state_dict({k.replace("neck.main.", "neck."): v for k, v in state.items()})
    torch.testing.assert_close(plain.eval()(images).fused[-1], added(images).fused[-1])
    assert (before - added(images).fused[-1]).abs().max() > 1e-3


def test_a_correction_costs_what_the_seed_costs():
    """The last convolution has K classes and the confidence in place of two offsets and the confidence."""
    corrected, ovenet = build("corrected"), build("neck")
    width = ovenet.seed.head.layers[-1].in_channels
    assert parameters(corrected) - parameters(ovenet) == (TINY["num_classes"] - 2) * (width + 1)
    assert corrected.max_offset == 0.5


def test_corrected_scores(images):
    """The second scores are the first ones plus what a convolution reads off the seed's own neck."""
    model = build("corrected").eval()
    last = model.seed.head.layers[-1]
    with torch.no_grad():
        nn.init.zeros_(last.weight)
        last.bias.copy_(torch.tensor([0.5, -1.0, 2.0, 0.0, 0.0]))
        output = model(images)
    assert output.has_seed
    assert not output.offset.any()
    initial, corrected = output.initial[-1], output.seed[-1]
    expected = torch.tensor([0.5, -1.0, 2.0, 0.0]).view(1, 4, 1, 1).expand_as(initial)
    torch.testing.assert_close(corrected - initial, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(output.confidence, torch.full_like(output.confidence, 0.5))
    torch.testing.assert_close(output.fused[-1], (initial + corrected) / 2)


def test_a_correction_learns_beside_a_network_at_rest(images):
    model = build("corrected")
    model.freeze(["backbone", "neck", "head"])
    output = model.train()(images)
    (output.seed[-1].square().mean() + output.confidence.mean()).backward()
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.grad is not None} == {"seed"}
    assert model.seed.head.layers[-1].weight.grad.abs().sum(dim=(1, 2, 3)).all()


def test_a_correction_has_no_seeds_to_count():
    with pytest.raises(UserError, match=r"seed_args\.num_seeds.*corrected"):
        build("corrected", num_seeds=2)
