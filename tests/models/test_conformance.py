"""Every part, by the one suite; and every pair of backbone and head, with each seed."""

import itertools
import math

import pytest
import tests.models.small_timm  # noqa: F401  registers small networks
import torch
from tests.models.conformance import BackboneConformance, HeadConformance, NeckConformance
from torch.utils.flop_counter import FlopCounterMode

import ovenet
from ovenet.models import build_segmentor
from ovenet.models.interfaces import ForkableBackbone
from ovenet.utils.meta import meta_device


class TestHRNet(BackboneConformance):
    name, num_parameters = "hrnet_w18_small_v1", 1_477_920


class TestResNet(BackboneConformance):
    name = "resnet50_v1c"


class TestMiT(BackboneConformance):
    name, num_parameters = "mit_b0", 3_319_392


class TestMSCAN(BackboneConformance):
    name, num_parameters = "mscan_t", 3_903_584


class TestVAN(BackboneConformance):
    name = "van_s"


class TestEfficientNetLite0(BackboneConformance):
    name = "efficientnet_lite0_imagenet"


class TestConvNeXt(BackboneConformance):
    name = "convnext_atto"


class TestDilatedTimm(BackboneConformance):
    name, args = "resnet18", {"output_stride": 8}


class TestMaxViT(BackboneConformance):
    name, args, odd_sizes = "maxvit_pico_rw_256", {"img_size": [64, 96]}, [(64, 96), (33, 47)]  # of one size alone


class TestEfficientFormerV2(BackboneConformance):
    name, args, num_parameters = "efficientformerv2_s0", {"resolution": 64}, None


class TestEfficientFormerV2AsPublished(BackboneConformance):
    name, args, num_parameters = "efficientformerv2_s0", {"bias_mode": "official"}, 3_259_152


class TestSwin(BackboneConformance):
    name, num_parameters = "swin_t", 27_520_698


class TestDINOv2(BackboneConformance):
    name, size = "small_dinov2", (56, 84)


class TestDINOv3(BackboneConformance):
    name = "small_dinov3"


class TestEVA02(BackboneConformance):
    name, size = "small_eva02", (56, 84)


class TestSigLIP(BackboneConformance):
    name = "small_siglip"


class TestSwinOfTimm(BackboneConformance):
    name = "small_swin"


class TestHiera(BackboneConformance):
    name, args, odd_sizes = "small_hiera", {"img_size": [64, 96]}, [(64, 96), (33, 47)]  # of one size alone


class TestFCNHead(HeadConformance):
    name = "fcn"


class TestConvHead(HeadConformance):
    name = "conv1x1"


class TestLinearHead(HeadConformance):
    name, args = "conv1x1", {"batch_norm": True, "dropout": 0.1}


class TestOCRHead(HeadConformance):
    name, args = "ocr", {"mid_channels": 16, "key_channels": 8}
    strides = (4, 4, 4, 4)


class TestOCRHeadOfMMSegmentation(HeadConformance):
    name, args = "ocr", {"flavour": "mmseg", "mid_channels": 16, "key_channels": 8}
    strides = (4, 4, 4, 4)


class TestSegFormerHead(HeadConformance):
    name, args = "segformer", {"channels": 16}


class TestLightHamHead(HeadConformance):
    name, args = "light_ham", {"channels": 32}


class TestSegFormerHeadWithOffsetLearning(HeadConformance):
    name, args = "segformer", {"channels": 16, "classifier": "offset_learning"}
    even_start, rounding = False, math.floor  # of the pooling, as published


class TestLightHamHeadWithOffsetLearning(HeadConformance):
    name, args, even_start = "light_ham", {"channels": 32, "classifier": "offset_learning"}, False


class TestOffsetLearningHead(HeadConformance):
    name, args, even_start = "offset_learning", {"channels": 32}, False


MASK2FORMER = {"channels": 32, "num_queries": 6, "num_layers": 3, "num_pixel_layers": 1}


class TestMask2FormerHead(HeadConformance):
    name, args, even_start = "mask2former", MASK2FORMER, False


class TestMask2FormerHeadWithoutOffsetLearning(TestMask2FormerHead):
    name, args = "mask2former", {**MASK2FORMER, "offset_learning": False}


class TestFreqFusionNeck(NeckConformance):
    name, args = "freqfusion", {"projections": [32, 32, 64, 64]}


class TestFPN(NeckConformance):
    name, args = "fpn", {"channels": 16}


class TestSRMAndCRM(NeckConformance):
    name, args = "fpn", {"channels": 16, "upsampler": "srm", "context": "crm"}


class TestConcatNeck(NeckConformance):
    name = "concat"


class TestProjectedConcatNeck(NeckConformance):
    name, args = "concat", {"projection": 6}


class TestAddedNeck(NeckConformance):
    name, args = "concat_added", {"projection": 8}


class TestSimpleFPN(NeckConformance):
    name, args = "simple_fpn", {"channels": 16}
    channels, strides, sizes = (24,), (16,), [(64, 96), (48, 80)]  # of whole patches, as a backbone pads images


class TestSimpleFPNOfStride14(NeckConformance):
    name, args = "simple_fpn", {"channels": 16, "scale_factors": [2.0, 1.0], "joined": True}
    channels, strides, sizes = (24,), (14,), [(56, 84), (42, 70)]


class TestPixelShuffle(NeckConformance):
    name, args = "pixel_shuffle", {"channels": 8}
    channels, strides, sizes = (24, 24), (16, 16), [(64, 96), (48, 80)]


class TestIdentityNeck(NeckConformance):
    name = "none"


FAMILIES = ["hrnet_w18_small_v1", "resnet50_v1c", "mit_b0", "mscan_t", "efficientnet_lite0_imagenet", "convnext_atto"]
FAMILIES += ["efficientformerv2_s0", "small_dinov2"]
ALL = [*ovenet.list_backbones(timm=False), "convnext_tiny", "swin_tiny_patch4_window7_224", "maxvit_pico_rw_256"]


def check_pair(backbone, head):
    args = {"stages": [{"NUM_MODULES": 1, "NUM_BLOCKS": [1] * n, "NUM_CHANNELS": [8] * n} for n in range(1, 5)]}
    options = {"num_classes": 7, "head": head, "backbone_args": args if backbone == "hrnet" else {}}
    with meta_device():
        baseline = build_segmentor(backbone, **options)
        seeds = ["shared", "neck", *(["fork"] if isinstance(baseline.backbone, ForkableBackbone) else [])]
        names = set(baseline.state_dict())
        for seed in seeds:
            model = build_segmentor(backbone, seed=seed, **options)
            assert names < set(model.state_dict())
            assert all(name.startswith("seed.") for name in set(model.state_dict()) - names)
        assert sum(p.numel() for p in model.parameters()) > sum(p.numel() for p in baseline.parameters())


@pytest.mark.parametrize(("backbone", "head"), [*itertools.product(FAMILIES, ovenet.list_heads())])
def test_every_pair_of_a_family_and_a_head_builds(backbone, head):
    check_pair(backbone, head)


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "head"), [*itertools.product(ALL, ovenet.list_heads())])
def test_every_pair_builds(backbone, head):
    check_pair(backbone, head)


@pytest.mark.parametrize(
    ("backbone", "num_parameters"),
    [
        ("hrnet_w18_small_v2", 3_860_720),
        ("hrnet_w18", 9_562_260),
        ("hrnet_w48", 65_325_120),
        ("resnet101_v1c", 42_519_392),
        ("mit_b1", 13_151_424),
        ("mit_b2", 24_196_288),
        ("mit_b3", 44_072_128),
        ("mscan_s", 13_450_176),
        ("mscan_b", 26_277_824),
        ("efficientformerv2_s1", 5_748_360),
        ("efficientformerv2_s2", 12_151_408),
        ("efficientformerv2_l", 25_578_016),
    ],
)
def test_backbones_have_the_published_size(backbone, num_parameters):
    with meta_device():
        body = build_segmentor(backbone, num_classes=2, head="conv1x1").backbone
    assert sum(p.numel() for p in body.parameters()) == num_parameters


def num_parameters(backbone, **options):
    with meta_device():
        return sum(p.numel() for p in build_segmentor(backbone, **options).parameters())


def test_a_shared_seed_adds_what_its_head_has():
    """D features: D² + D of the first convolution, 2 D of BatchNorm, 3 D + 3 of the last one."""
    for head, expected in (("fcn", 522_723), ("segformer", 67_075)):  # D is 720 and 256
        options = {"num_classes": 19, "head": head}
        added = num_parameters("hrnet_w48", seed="shared", **options) - num_parameters("hrnet_w48", **options)
        assert added == expected


@pytest.mark.parametrize(
    ("backbone", "head", "expected"),
    [
        ("mit_b0", "segformer", 3_884_940),
        ("mit_b1", "segformer", 13_848_044),
        ("mit_b2", "segformer", 24_892_908),
        ("mit_b3", "segformer", 44_768_748),
        ("mscan_t", "light_ham", 4_394_636),
        ("mscan_s", "light_ham", 14_064_108),
    ],
)
def test_segformer_and_segnext_have_the_published_size(backbone, head, expected):
    """Offset learning has 169,772 parameters for 150 classes, the classifier in its place 38,550."""
    options = {"num_classes": 150, "head": head}
    assert num_parameters(backbone, **options, head_args={"classifier": "offset_learning"}) == expected
    assert num_parameters(backbone, **options) == expected - 169_772 + 38_550


@pytest.mark.parametrize(
    ("num_classes", "backbone", "expected"),
    [
        (19, "hrnet_w18_small_v2", 6_378_496), (19, "hrnet_w18", 12_080_036), (19, "hrnet_w48", 70_371_446),
        (150, "hrnet_w18_small_v2", 6_481_200), (150, "hrnet_w18", 12_182_740), (150, "hrnet_w48", 70_533_100),
        (21, "hrnet_w18_small_v2", 6_380_064), (21, "hrnet_w18", 12_081_604), (21, "hrnet_w48", 70_373_914),
    ],
)  # fmt: skip
def test_ocrnets_of_mmsegmentation_have_the_published_size(num_classes, backbone, expected):
    options = {"num_classes": num_classes, "head": "ocr", "head_args": {"flavour": "mmseg"}}
    assert num_parameters(backbone, **options) == expected


def test_segnext_b_has_the_published_size():
    head = {"channels": 512, "classifier": "offset_learning"}
    assert num_parameters("mscan_b", num_classes=150, head="light_ham", head_args=head) == 28_160_748


UNUSED_CLASSIFIER = 38_550  # the published files carry it, and the paper counts it


@pytest.mark.parametrize(
    ("size", "projections", "expected", "published"),
    [
        ("s1", (32, 32, 64, 128), 6_183_626, 6_222_176),
        ("s2", (32, 64, 128, 256), 12_916_850, 12_955_400),
        ("l", (32, 64, 128, 256), 26_375_458, 26_414_008),
    ],
)
def test_offseg_has_the_published_size(size, projections, expected, published):
    options = {"head": "offset_learning", "neck": "freqfusion", "neck_args": {"projections": projections}}
    assert num_parameters(f"efficientformerv2_{size}", num_classes=150, **options) == expected
    assert expected + UNUSED_CLASSIFIER == published


@pytest.mark.parametrize(
    ("size", "projections", "expected", "total"),
    [
        ("s1", (32, 32, 64, 128), 3.335 + 1.951, 8.07),
        ("s2", (32, 64, 128, 256), 6.405 + 3.813, 13.34),
        ("l", (32, 64, 128, 256), 13.188 + 3.834, 20.48),
    ],
)
def test_convolutions_of_offseg_have_the_published_cost(size, projections, expected, total):
    """Giga multiply-adds at 512x512: backbone and decoder; in all they are fewer than published, see docs/models.md."""
    options = {"head": "offset_learning", "neck": "freqfusion", "neck_args": {"projections": projections}}
    with meta_device(), FlopCounterMode(display=False) as counter, torch.no_grad():
        build_segmentor(f"efficientformerv2_{size}", num_classes=150, **options).eval()(torch.zeros(1, 3, 512, 512))
    convolutions = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    assert convolutions / 2e9 == pytest.approx(expected, abs=0.0015)
    assert counter.get_total_flops() / 2e9 == pytest.approx(total, abs=0.005)
