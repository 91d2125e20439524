"""MODEL.BACKBONE, NECK, HEAD and SEED: names and arguments."""

import pytest

from ovenet.config import check_parts, load_config
from ovenet.errors import UserError


def model(**parts):
    return {"MODEL": {part.upper(): settings for part, settings in parts.items()}}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (model(backbone={"NAME": "hrnet_w84"}), r"MODEL\.BACKBONE\.NAME.*'hrnet_w84'.*hrnet_w48"),
        (model(head={"NAME": "orc"}), r"MODEL\.HEAD\.NAME.*'orc'.*ocr"),
        (model(neck={"NAME": "fnp"}), r"MODEL\.NECK\.NAME.*'fnp'.*fpn"),
        (model(seed={"NAME": "forked"}), r"MODEL\.SEED\.NAME.*'forked'.*fork\b"),
        (
            model(head={"NAME": "ocr", "MID_CHANELS": 3}),
            r"MODEL\.HEAD\.MID_CHANELS.*MID_CHANNELS",
        ),
        (
            model(backbone={"NAME": "mit_b0", "OUTPUT_STRIDE": 8}),
            r"OUTPUT_STRIDE.*mit_b0",
        ),
        (
            model(backbone={"NAME": "resnet50_v1c", "OUTPUT_STRIDE": 9}),
            r"OUTPUT_STRIDE is 9.*one of 8, 16, 32",
        ),
        (
            model(head={"NAME": "ocr", "DROPOUT": "some"}),
            r"HEAD\.DROPOUT.*'some'.*a number or nothing",
        ),
        (model(seed={"NAME": "shared", "FUSE_LOGITS": 1}), r"SEED\.FUSE_LOGITS is 1.*True or False"),
        (model(seed={"MAX_OFFSET": 0.2}), r"MODEL\.SEED\.MAX_OFFSET .*MODEL\.SEED\.NAME.*'none'"),
        (model(backbone={"NAME": "hrnet"}), r"MODEL\.BACKBONE\.STAGES is not set.*hrnet"),
        (
            model(backbone={"NAME": "hrnet_w18", "ALIGN_CORNERS": True}),
            r"ALIGN_CORNERS.*hrnet_w18",
        ),
        (model(frozen=["tail"]), r"MODEL\.FROZEN .*\['tail'\].*backbone, neck, head, seed"),
        (
            model(backbone={"NAME": "mit_b0"}) | {"TRAIN": {"CHECKPOINT_ACTIVATIONS": True}},
            r"TRAIN\.CHECKPOINT_ACTIVATIONS.*True.*False.*mit_b0",
        ),
        *(
            (model(seed={"NAME": name}) | {"LOSS": loss}, rf"LOSS\.{key} is .*{name}")
            for name in ("crf", "dysample", "point_rend", "segfix")
            for key, loss in (
                ("CONFIDENCE_TARGET", {"CONFIDENCE_TARGET": "better_scores"}),
                ("INTERIOR", {"INTERIOR": 0.3}),
            )
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
