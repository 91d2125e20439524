"""One suite that every composition of backbone, head and fusion passes."""

import pytest
import torch

import ovenet
from ovenet.builders import build_criterion, build_model
from ovenet.errors import UserError
from ovenet.models import build_segmentor
from ovenet.models.segmentor import to_sync_batchnorm

COMPOSITIONS = [
    (name, branch) for name in ("seg_hrnet", "seg_hrnet_ocr", "branched_seg_hrnet") for branch in (0, 2, 3, 4)
]


@pytest.fixture(params=COMPOSITIONS, ids=lambda p: f"{p[0]}-{p[1]}")
def composition(request, tiny_cfg):
    name, branch = request.param
    return tiny_cfg(name=name, offset_branch=branch)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (33, 47), (1, 1)])
def test_any_size_gives_maps_at_stride_4(composition, size):
    model = build_model(composition).eval()
    with torch.no_grad():
        output = model(torch.randn(2, 3, *size))
    h, w = (-(-n // 4) for n in size)
    num_outputs = 2 if composition.MODEL.HEAD.NAME == "ocr" else 1
    is_ovenet = composition.MODEL.SEED.NAME == "fork"
    assert [tuple(s.shape) for s in output.initial] == [(2, 11, h, w)] * num_outputs
    assert [tuple(s.shape) for s in output.fused] == [(2, 11, h, w)] * num_outputs
    assert len(output.seed) == (num_outputs if is_ovenet else 0)
    if is_ovenet:
        assert output.offset.shape == (2, 2, h, w)
        assert output.offset.abs().max() <= 0.5
        assert output.confidence.shape == (2, 1, h, w)
        assert ((output.confidence >= 0) & (output.confidence <= 1)).all()
    else:
        assert output.fused is output.initial
        assert output.offset is None
        assert output.confidence is None


def test_every_parameter_gets_a_gradient(composition):
    model = build_model(composition).train()
    loss = build_criterion(composition)(model(torch.randn(2, 3, 64, 64)), torch.randint(0, 11, (2, 64, 64)))
    loss.total.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_images_of_a_batch_do_not_influence_each_other(composition):
    model = build_model(composition).eval()
    images = torch.randn(3, 3, 40, 56)
    with torch.no_grad():
        together, alone = model(images).fused[-1][1:2], model(images[1:2]).fused[-1]
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_ovenet_starts_as_its_baseline(tiny_cfg):
    """Fresh offsets are tiny: seed and fused scores are those of the pixel itself, up to a small share of a pixel."""
    model = build_model(tiny_cfg()).eval()
    with torch.no_grad():
        output = model(torch.randn(1, 3, 64, 64))
    assert output.offset.abs().max() < 0.05
    assert (output.confidence - 0.5).abs().max() < 0.05


def test_offset_threshold_bounds_the_offset(tiny_cfg):
    model = build_model(tiny_cfg("MODEL.EXTRA.OFFSET_THRESHOLD", 0.2)).eval()
    torch.nn.init.normal_(model.seed.head.layers[-1].weight, std=100)
    with torch.no_grad():
        offset = model(torch.randn(1, 3, 64, 64)).offset
    assert offset.abs().max() == pytest.approx(0.2, abs=1e-4)


def test_names_do_not_depend_on_the_composition(tiny_cfg):
    baseline = set(build_model(tiny_cfg(offset_branch=0)).state_dict())
    ovenet = set(build_model(tiny_cfg(offset_branch=3)).state_dict())
    assert baseline < ovenet
    assert all(name.startswith("seed.") for name in ovenet - baseline)


@pytest.mark.parametrize("name", ["branched_seg_hrnet", "seg_hrnet_ocr"])
def test_freezing_leaves_everything_but_the_offset_branch_untouched(tiny_cfg, name):
    cfg = tiny_cfg("MODEL.FREEZED_PAR", True, name=name)
    model = build_model(cfg).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    criterion = build_criterion(cfg)
    for _ in range(2):
        optimizer.zero_grad()
        criterion(model(torch.randn(2, 3, 64, 64) + 3), torch.randint(0, 11, (2, 64, 64))).total.backward()
        optimizer.step()
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith("seed.") for key in changed)
    assert any(key.endswith("running_mean") for key in changed)
    assert not model.head.training


def test_a_baseline_cannot_be_frozen(tiny_cfg):
    with pytest.raises(UserError, match="backbone, neck, head"):
        build_model(tiny_cfg(offset_branch=0)).freeze(["backbone", "neck", "head"])


@pytest.mark.parametrize("part", ["sead", "backbone.layer9", "seed"])
def test_only_parts_that_are_there_can_be_frozen(tiny_cfg, part):
    with pytest.raises(UserError, match=rf"'{part}'.*backbone, neck, head"):
        build_model(tiny_cfg(offset_branch=0)).freeze([part])


def test_refinement_and_probability_fusion_run(tiny_cfg):
    cfg = tiny_cfg("MODEL.EXTRA.ITERATIVE_REFINEMENT", 2, "MODEL.EXTRA.LOGITS", False)
    output = build_model(cfg).eval()(torch.randn(1, 3, 48, 64))
    assert output.score_kind == "probabilities"
    for maps in (output.initial, output.seed, output.fused):
        torch.testing.assert_close(maps[0].sum(1), torch.ones(1, 12, 16), atol=1e-5, rtol=0)


def test_norms_of_timm_keep_their_activations_when_they_are_synchronised():
    model = build_segmentor("tf_efficientnet_lite0", num_classes=4, head="fcn").eval()
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = model(images).fused[-1]
        together = to_sync_batchnorm(model)
        assert sum(isinstance(m, torch.nn.SyncBatchNorm) for m in together.modules()) > 30
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in together.modules())
        torch.testing.assert_close(together(images).fused[-1], expected)


@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu(composition):
    model = build_model(composition).eval()
    images = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        here, there = model(images).fused[-1], model.cuda()(images.cuda()).fused[-1].cpu()
    torch.testing.assert_close(here, there, atol=5e-3, rtol=5e-3)


@pytest.mark.parametrize(
    ("backbone", "head", "seed", "expected"),
    [
        ("hrnet_w18_small_v1", "fcn", None, False),
        ("hrnet_w18_small_v1", "fcn", "fork", False),
        ("hrnet_w18_small_v1", "ocr", None, True),
        ("efficientnet_lite0_imagenet", "fcn", None, True),
    ],
)
def test_maps_are_resized_as_where_the_network_was_published(backbone, head, seed, expected):
    """HRNet and OVeNet without OCR have half-pixel centres; what is on other backbones here was trained without."""
    images = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))

    def scores(**options):
        with torch.random.fork_rng([]), torch.no_grad():
            torch.manual_seed(0)
            options |= {"num_classes": 3, "head": head, "seed": seed, "pretrained": False}
            return ovenet.create_model(backbone, **options).eval()(images).fused[-1]

    assert torch.equal(scores(), scores(align_corners=expected))
    assert not torch.equal(scores(), scores(align_corners=not expected))
