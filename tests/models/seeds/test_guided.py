"""The seed `guided`, against its formulas written with torch's functions."""

import pytest
import torch
import torch.nn.functional as F

from ovenet.errors import UserError
from ovenet.losses import SegmentationCriterion
from ovenet.models import build_segmentor

SIZE = (66, 98)  # no multiple of any stride


def build(*, head="fcn", backbone_args=None, align_corners=True, **seed_args):
    torch.manual_seed(0)
    return build_segmentor(
        "efficientnet_lite0_imagenet",
        num_classes=5,
        head=head,
        neck="none",
        seed="guided",
        align_corners=align_corners,
        backbone_args={"output_stride": 16} if backbone_args is None else backbone_args,
        seed_args=seed_args,
    )


def awaken(module):
    """Gives every weight and statistic a size that matters: some are zero or nearly so at initialisation."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, values in module.state_dict().items():
            if values.is_floating_point():
                spread = torch.rand(values.shape, generator=generator) - 0.5
                values.copy_(1 + spread if name.endswith("running_var") else spread)
    return module


def images(batch=2, channels=3):
    return torch.randn(batch, channels, *SIZE, generator=torch.Generator().manual_seed(2))


def layer(state, conv, norm, x, *, stride=1, relu=True):
    """A convolution, BatchNorm in evaluation, ReLU."""
    weight = state[f"{conv}.weight"]
    x = F.conv2d(x, weight, state.get(f"{conv}.bias"), stride=stride, padding=weight.shape[-1] // 2)
    mean, var, gain, shift = (
        state[f"{norm}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
    )
    x = (x - mean) / (var + 1e-5).sqrt() * gain + shift
    return x.clamp_min(0) if relu else x


@pytest.mark.parametrize("align_corners", [True, False])
def test_offsets_come_from_raised_features_and_the_image(align_corners):
    model = build(align_corners=align_corners, max_offset=0.3, correction=True).eval()
    awaken(model.seed)
    x = images()
    with torch.no_grad():
        output = model(x)
        padded = F.pad(x, (0, 128 - 98, 0, 96 - 66))
        decoded = model.head(model.backbone(padded))
        state = model.seed.state_dict()
        height, width, rows, columns = 17, 25, 5, 7  # at strides of 4 and 16
        coarse = layer(state, "detail.reduce.0", "detail.reduce.1", decoded.features[..., :rows, :columns])
        coarse = F.interpolate(coarse, (height, width), mode="bilinear", align_corners=align_corners)
        fine = layer(state, "detail.stem.0.0", "detail.stem.0.1", x, stride=2)
        fine = layer(state, "detail.stem.1.0", "detail.stem.1.1", fine, stride=2)
        fine = layer(state, "detail.stem.2.0", "detail.stem.2.1", fine)
        hidden = layer(state, "head.layers.0", "head.layers.1", torch.cat((coarse, fine), dim=1))
        raw = F.conv2d(hidden, state["head.layers.3.weight"], state["head.layers.3.bias"])
        offset, confidence, correction = 0.3 * raw[:, :2].tanh(), raw[:, 2:3].sigmoid(), raw[:, 3:]
        scores = decoded.scores[-1][..., :rows, :columns]
        initial = F.interpolate(scores, (height, width), mode="bilinear", align_corners=align_corners)
        y, column = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        place = (torch.stack((column, y)) + offset).clamp(-1, 1)
        seed = F.grid_sample(initial, place.permute(0, 2, 3, 1), align_corners=True) + correction
    for ours, expected in (
        (output.initial[-1], initial),
        (output.offset, offset),
        (output.confidence, confidence),
        (output.seed[-1], seed),
        (output.fused[-1], (1 - confidence) * initial + confidence * seed),
    ):
        torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("stride", "expected"), [(2, (33, 49)), (4, (17, 25)), (8, (9, 13))])
def test_scores_have_the_chosen_stride_and_begin_as_resized_ones(stride, expected):
    model = build(output_stride=stride).eval()
    with torch.no_grad():
        output, coarse = model(images()), model.decode(model.backbone(model.pad(images())), images()).scores[-1]
    assert output.fused[-1].shape == (2, 5, *expected)
    assert output.offset.shape == (2, 2, *expected)
    raised = F.interpolate(coarse, expected, mode="bilinear", align_corners=True)
    assert (output.fused[-1] - raised).abs().mean() < 0.05 * raised.abs().mean()
    torch.testing.assert_close(output.initial[-1], raised, atol=1e-5, rtol=1e-4)


def test_the_loss_reaches_every_trained_parameter():
    model = build(head="segformer")
    model.freeze(["backbone"])
    model.train()
    labels = torch.randint(0, 5, (2, *SIZE), generator=torch.Generator().manual_seed(3))
    criterion = SegmentationCriterion(ignore_label=255)
    criterion(model(images()), labels).total.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.isfinite().all())}
    assert reached == {name for name, _ in model.named_parameters() if not name.startswith("backbone.")}


@pytest.mark.parametrize(
    ("seed", "args", "size"),
    [
        ("guided", {"output_stride": 2}, (33, 49)),
        ("shared", {"upsampling": 2}, (34, 50)),
        ("freqfusion", {}, (34, 50)),
    ],
)
def test_seeds_that_read_the_image_take_any_number_of_channels(seed, args, size):
    model = build_segmentor(
        "mit_b0", num_classes=5, head="segformer", seed=seed, seed_args=args, backbone_args={"in_channels": 5}
    ).eval()
    with torch.no_grad():
        assert model(images(1, channels=5)).fused[-1].shape == (1, 5, *size)


@pytest.mark.parametrize(
    ("head", "args", "named"),
    [
        ("fcn", {"projection": 0}, ("PROJECTION is 0", "1")),
        ("fcn", {"upsampling": 2}, ("UPSAMPLING", "OUTPUT_STRIDE")),
        ("segformer", {"output_stride": 8}, ("OUTPUT_STRIDE is 8", "4")),
        ("fcn", {"max_offset": -1}, ("MAX_OFFSET is -1",)),
    ],
)
def test_bad_settings_are_named(head, args, named):
    with pytest.raises(UserError) as raised:
        build(head=head, **args)
    assert all(text in str(raised.value) for text in named)


def test_embeddings_are_refused():
    torch.manual_seed(0)
    model = build_segmentor(
        "resnet18", num_classes=5, head="conv1x1", neck="none", head_args={"embedding": 4}, seed="guided"
    ).train()
    with pytest.raises(UserError, match="EMBEDDING"):
        model(images())
