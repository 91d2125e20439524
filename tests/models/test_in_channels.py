"""Images with other numbers of channels than three, in every family of backbones."""

import pytest
import torch

import ovenet
from ovenet import Normalization, UserError
from ovenet.models.factory import initialize_backbone
from ovenet.utils.meta import meta_device

FAMILIES = (
    "hrnet_w18_small_v1", "resnet50_v1c", "mit_b0", "mscan_t", "van_s", "efficientformerv2_s0", "swin_t",
    "efficientnet_lite0_imagenet", "convnext_atto",
)  # fmt: skip
THREE_STAGES = [{"NUM_MODULES": 1, "NUM_BLOCKS": [1] * n, "NUM_CHANNELS": [4, 8, 12, 16][:n]} for n in (2, 3, 4)]
TINY = {"stages": [{"NUM_MODULES": 1, "NUM_BLOCKS": [1], "NUM_CHANNELS": [4], "BLOCK": "BOTTLENECK"}, *THREE_STAGES]}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_takes_them(name):
    with meta_device():
        model = ovenet.create_model(name, num_classes=4, in_channels=5, pretrained=False).eval()
        plain = ovenet.create_model(name, num_classes=4, pretrained=False)
        maps = model.backbone(torch.empty(1, 5, 64, 96))
    assert [x.shape[1] for x in maps] == list(model.backbone.channels)
    own, other = model.state_dict(), plain.state_dict()
    changed = [key for key, value in own.items() if value.shape != other[key].shape]
    assert len(changed) == 1  # the first convolution
    assert own[changed[0]].shape == (len(other[changed[0]]), 5, *other[changed[0]].shape[2:])


@pytest.mark.parametrize("num_channels", [1, 2, 4])
def test_weights_for_three_channels_are_adapted_as_timm_does(num_channels, tmp_path):
    source = ovenet.create_model("hrnet", num_classes=4, backbone_args=TINY)
    torch.save(source.state_dict(), tmp_path / "rgb.pth")
    args = {**TINY, "in_channels": num_channels}
    model = ovenet.models.build_segmentor("hrnet", num_classes=4, backbone_args=args)
    (report,) = initialize_backbone(model, str(tmp_path / "rgb.pth"))
    assert report.adapted == ("backbone.conv1.weight",)
    assert report.matched_share == 1
    assert "backbone.conv1.weight: adapted" in str(report)
    rgb, adapted = source.backbone.conv1.weight, model.backbone.conv1.weight
    for o in range(3):
        for c in range(num_channels):
            expected = sum(rgb[o, k] for k in range(3)) if num_channels == 1 else rgb[o, c % 3] * 3 / num_channels
            torch.testing.assert_close(adapted[o, c], expected)
    assert torch.equal(model.backbone.conv2.weight, source.backbone.conv2.weight)


def test_the_weights_that_come_with_a_backbone_are_adapted():
    """A grey image looks the same to the network of one channel and, three times, to that of three."""
    one = ovenet.create_model("efficientnet_lite0_imagenet", num_classes=3, in_channels=1).eval()
    three = ovenet.create_model("efficientnet_lite0_imagenet", num_classes=3).eval()
    grey = torch.randn(1, 1, 64, 96)
    with torch.no_grad():
        maps = zip(one.backbone(grey), three.backbone(grey.expand(-1, 3, -1, -1)), strict=True)
    for a, b in maps:
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_normalization_has_the_length_of_the_channels():
    assert ovenet.create_model("hrnet", backbone_args=TINY).normalization == Normalization()
    four = ovenet.create_model("hrnet", in_channels=4, backbone_args=TINY).normalization
    assert (four.mean, four.std) == ((0.485, 0.456, 0.406, 0.485), (0.229, 0.224, 0.225, 0.229))
    one = ovenet.create_model("hrnet", in_channels=1, backbone_args=TINY).normalization
    assert one.mean == (pytest.approx((0.485 + 0.456 + 0.406) / 3),)
    own = Normalization((0.1, 0.2), (0.3, 0.4))
    assert ovenet.create_model("hrnet", in_channels=2, normalization=own, backbone_args=TINY).normalization == own
    with pytest.raises(UserError, match=r"2 means and 2 deviations.*5 channels"):
        ovenet.create_model("hrnet", in_channels=5, normalization=own, backbone_args=TINY)
    with pytest.raises(UserError, match=r"in_channels is 0; expected at least 1"):
        ovenet.create_model("hrnet", in_channels=0, backbone_args=TINY)
    with pytest.raises(UserError, match=r"the seed crf .*4 channels"):
        ovenet.create_model("hrnet", in_channels=4, seed="crf", backbone_args=TINY)
