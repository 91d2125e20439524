"""HRNet's structure: widths, exchange between resolutions, and the fork into the offset branch."""

import pytest
import torch

from ovenet.errors import UserError
from ovenet.models import build_segmentor
from ovenet.models.backbones import HRNet, StageSpec
from ovenet.models.backbones.hrnet import HRModule, Transition
from ovenet.models.necks import ConcatNeck
from ovenet.utils.meta import meta_device

SPECS = [
    StageSpec(1, (1,), (4,), "BOTTLENECK"),
    StageSpec(1, (1, 1), (4, 8)),
    StageSpec(1, (1, 1, 1), (4, 8, 16)),
    StageSpec(1, (1, 1, 1, 1), (4, 8, 16, 32)),
]


@pytest.mark.parametrize(
    ("widths", "modules", "blocks", "stage1", "num_parameters"),
    [
        ((18, 36, 72, 144), (1, 3, 2), 2, (2, 64), 3_860_720),  # counts of the backbones of other implementations
        ((18, 36, 72, 144), (1, 4, 3), 4, (4, 64), 9_562_260),
        ((48, 96, 192, 384), (1, 4, 3), 4, (4, 64), 65_325_120),
        ((16, 32, 64, 128), (1, 1, 1), 2, (1, 32), 1_477_920),
    ],
)
def test_parameter_counts(widths, modules, blocks, stage1, num_parameters):
    specs = [StageSpec(1, (stage1[0],), (stage1[1],), "BOTTLENECK")]
    specs += [StageSpec(m, (blocks,) * n, widths[:n]) for n, m in zip((2, 3, 4), modules, strict=True)]
    with meta_device():
        model = HRNet(specs)
    assert sum(p.numel() for p in model.parameters()) == num_parameters


@pytest.mark.parametrize("size", [(64, 96), (37, 51)])
def test_features_halve_rounding_up(size):
    features = HRNet(SPECS).eval()(torch.randn(1, 3, *size))
    height, width = (-(-n // 4) for n in size)
    for channels, x in zip((4, 8, 16, 32), features, strict=True):
        assert x.shape == (1, channels, height, width)
        height, width = -(-height // 2), -(-width // 2)


@pytest.mark.parametrize("stage", [2, 3, 4])
def test_a_tail_with_equal_weights_gives_equal_features(stage):
    model = HRNet(SPECS).eval()
    tail = model.make_tail(stage).eval()
    tail.load_state_dict({name: model.state_dict()[name] for name in tail.state_dict()})
    before = model.run([torch.randn(1, 3, 64, 96)], 0, stage - 1)
    for main, branch in zip(model.run(before, stage - 1, 4), tail(before), strict=True):
        torch.testing.assert_close(main, branch)


def test_exchange_sums_what_every_resolution_sends():
    """With blocks that pass non-negative maps on, 1x1 weights of one and 3x3 kernels that pick the centre."""
    unit = HRModule(StageSpec(1, (1, 1), (1, 1)), align_corners=True).double().eval()
    for branch in unit.branches:
        torch.nn.init.zeros_(branch[0].conv2.weight)  # the block is then relu(x)
    up, down = unit.fuse_layers[0][1][0], unit.fuse_layers[1][0][0][0]
    torch.nn.init.ones_(up.weight)
    torch.nn.init.zeros_(down.weight)
    down.weight.data[0, 0, 1, 1] = 1.0
    for module in unit.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.0
    fine = torch.arange(9.0, dtype=torch.float64).view(1, 1, 3, 3)
    coarse = torch.tensor([[[[10.0, 30.0], [50.0, 70.0]]]], dtype=torch.float64)
    new_fine, new_coarse = unit([fine, coarse])
    upsampled = torch.tensor([[10.0, 20, 30], [30, 40, 50], [50, 60, 70]])  # corners on corners
    torch.testing.assert_close(new_fine[0, 0], fine[0, 0] + upsampled)
    torch.testing.assert_close(new_coarse, coarse + fine[..., ::2, ::2])


def test_transition_adds_the_new_resolution_from_the_coarsest():
    transition = Transition((4, 8), (4, 8, 16)).eval()
    fine, coarse = torch.randn(1, 4, 8, 8), torch.randn(1, 8, 4, 4)
    out = transition([fine, coarse])
    assert out[0] is fine
    assert out[1] is coarse
    torch.testing.assert_close(out[2], transition[2](coarse))
    assert out[2].shape == (1, 16, 2, 2)


def test_neck_stacks_at_the_finest_resolution():
    neck = ConcatNeck((1, 2), (4, 8), align_corners=True)
    fine, coarse = torch.randn(1, 1, 3, 3), torch.randn(1, 2, 2, 2)
    (out,) = neck([fine, coarse])
    assert (neck.channels, neck.strides) == ((3,), (4,))
    torch.testing.assert_close(out[:, :1], fine)
    torch.testing.assert_close(out[:, 1:, ::2, ::2], coarse)  # corners on corners


def test_a_stage_with_too_few_resolutions_is_refused():
    with pytest.raises(ValueError, match=r"stage 3 .*NUM_BLOCKS and NUM_CHANNELS.*\[1, 1\] and \[4, 8\]"):
        HRNet([*SPECS[:2], StageSpec(1, (1, 1), (4, 8)), SPECS[3]])
    with pytest.raises(UserError, match=r"MODEL\.SEED\.STAGE is 1.*2, 3 or 4"):
        HRNet(SPECS).make_tail(1)


def test_the_tail_of_a_published_network_is_the_published_one():
    """OVeNet's copies have one, three and two HR modules."""
    with meta_device():
        tail = build_segmentor("hrnet_w48", num_classes=19).backbone.make_tail(2)
    assert [len(tail.get_submodule(f"stage{n}")) for n in (2, 3, 4)] == [1, 3, 2]


def test_mmsegmentation_upsamples_twice():
    """By the nominal factor, then to the size that is there: the same where sides are multiples of 32."""
    torch.manual_seed(0)
    ours = HRNet(SPECS, align_corners=False).eval()
    theirs = HRNet(SPECS, align_corners=False, flavour="mmseg").eval()
    theirs.load_state_dict(ours.state_dict())
    for size, same in (((64, 96), True), ((65, 97), False)):
        image = torch.randn(1, 3, *size)
        difference = (ours(image)[0] - theirs(image)[0]).abs().max()
        assert (difference < 1e-5) == same
