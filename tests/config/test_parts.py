"""MODEL.BACKBONE, NECK, HEAD and SEED: names and arguments."""

import pytest

from ovenet.config import check_parts, load_config
from ovenet.errors import UserError


def model(**parts):
    return {"MODEL": {part.upper(): settings for part, settings in parts.items()}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (model(backbone={"NAME": "hrnet_w84"}), r"MODEL\.BACKBONE\.NAME is 'hrnet_w84': .*the nearest are hrnet_w48"),
        (model(head={"NAME": "orc"}), r"MODEL\.HEAD\.NAME is 'orc': there is no head 'orc'; the nearest are ocr"),
        (model(neck={"NAME": "fnp"}), r"MODEL\.NECK\.NAME is 'fnp': there is no neck"),
        (model(seed={"NAME": "forked"}), r"MODEL\.SEED\.NAME is 'forked': there is no seed 'forked'; .*fork"),
        (
            model(head={"NAME": "ocr", "MID_CHANELS": 3}),
            r"MODEL\.HEAD\.MID_CHANELS: the head ocr has no .*MID_CHANNELS",
        ),
        (
            model(backbone={"NAME": "mit_b0", "OUTPUT_STRIDE": 8}),
            r"OUTPUT_STRIDE: the backbone mit_b0 has no",
        ),
        (
            model(backbone={"NAME": "resnet50_v1c", "OUTPUT_STRIDE": 9}),
            r"OUTPUT_STRIDE is 9; expected one of 8, 16, 32",
        ),
        (
            model(head={"NAME": "ocr", "DROPOUT": "some"}),
            r"HEAD\.DROPOUT is 'some'; expected a number or nothing",
        ),
        (model(seed={"NAME": "shared", "FUSE_LOGITS": 1}), r"SEED\.FUSE_LOGITS is 1; expected True or False"),
        (model(seed={"MAX_OFFSET": 0.2}), r"MODEL\.SEED\.MAX_OFFSET is set, but MODEL\.SEED\.NAME is 'none'"),
        (model(backbone={"NAME": "hrnet"}), r"MODEL\.BACKBONE\.STAGES is not set; the backbone hrnet needs it"),
        (
            model(backbone={"NAME": "hrnet_w18", "ALIGN_CORNERS": True}),
            r"ALIGN_CORNERS: the backbone hrnet_w18 has",
        ),
        (model(frozen=["tail"]), r"MODEL\.FROZEN .* is \['tail'\]; expected parts among backbone, neck, head and seed"),
        (
            model(backbone={"NAME": "mit_b0"}) | {"TRAIN": {"CHECKPOINT_ACTIVATIONS": True}},
            r"TRAIN\.CHECKPOINT_ACTIVATIONS is True; expected False: the backbone mit_b0 cannot",
        ),
    ],
)
def test_bad_parts_are_named(write_config, settings, message):
    with pytest.raises(UserError, match=message) as error:
        check_parts(load_config(write_config(settings)))
    assert "\n" not in str(error.value)


def test_another_part_begins_without_arguments(write_config):
    base = write_config(
        model(backbone={"NAME": "resnet50_v1c", "OUTPUT_STRIDE": 16}, head={"NAME": "ocr"}), "base.yaml"
    )
    child = write_config({"_BASE_": base.name} | model(backbone={"NAME": "mit_b0"}), "child.yaml")
    assert dict(load_config(child).MODEL.BACKBONE) == {"NAME": "mit_b0"} | {"PRETRAINED": ""}
    same = write_config({"_BASE_": base.name} | model(backbone={"PRETRAINED": "a.pth"}), "same.yaml")
    assert load_config(same).MODEL.BACKBONE.OUTPUT_STRIDE == 16
    assert "OUTPUT_STRIDE" not in load_config(same, ["MODEL.BACKBONE.OUTPUT_STRIDE", "None"]).MODEL.BACKBONE


def test_arguments_on_the_command_line(write_config):
    path = write_config(model(seed={"NAME": "neck"}))
    cfg = load_config(path, ["MODEL.SEED.PROJECTION", "32", "MODEL.BACKBONE.NAME", "timm/convnext_tiny"])
    assert cfg.MODEL.SEED.PROJECTION == 32
    assert cfg.MODEL.BACKBONE.NAME == "timm/convnext_tiny"
