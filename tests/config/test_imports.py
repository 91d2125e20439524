"""A config is read without torch and the parts of a model, in a fraction of the second that torch takes."""

import subprocess
import sys

import pytest

LIMIT_S = 1.0  # of processor time, whatever else the machine does; over 2.5 s with the models imported

LOAD = """
import sys
import ovenet
cfg = ovenet.load_config({path!r})
assert cfg.MODEL.SEED.NAME == {seed!r}, cfg.MODEL.SEED
print(*sorted(name for name in sys.modules if name.split(".")[0] in ("torch", "timm", "ovenet", "numpy")))
"""


def imported_by(code: str) -> list[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(
    ("path", "seed"),
    [
        ("camvid/ovenet_hrnet_w18_small_v2", "fork"),
        ("cityscapes/seg_hrnet_ocr_w48_train_512x1024_sgd_lr1e-2_wd5e-4_bs_12_epoch484", "none"),
        ("camvid/ovenet_lite0_fcn", "neck"),
    ],
)
def test_a_config_is_read_without_torch(path, seed):
    modules = imported_by(LOAD.format(path=path, seed=seed))
    assert "ovenet.config.loading" in modules
    assert not {"torch", "timm"} & set(modules)
    assert not [name for name in modules if name.startswith("ovenet.models.backbones")]


def test_a_published_file_is_translated_without_torch(tmp_path):
    path = tmp_path / "published.yaml"
    path.write_text(
        "MODEL: {NAME: seg_hrnet_ocr, OFFSET_PRETRAINED: a.pth, EXTRA: {OFFSET_BRANCH: 3, OFFSET_THRESHOLD: 0.2,\n"
        "  ITERATIVE_REFINEMENT: 1, LOGITS: false, STAGE4_2: {NUM_MODULES: 1}}}\n"
    )
    assert "torch" not in imported_by(LOAD.format(path=str(path), seed="fork"))


def test_it_is_quick():
    code = LOAD.format(path="camvid/ovenet_hrnet_w18_small_v2", seed="fork") + "import time; print(time.process_time())"
    assert min(float(imported_by(code)[-1]) for _ in range(3)) < LIMIT_S


def test_parts_are_there_when_they_are_looked_up():
    found = imported_by(
        "from ovenet.models.registry import BACKBONES, HEADS, NECKS, SEEDS\n"
        "from ovenet.losses.registry import LOSSES\n"
        "@HEADS.register('mine')\n"
        "class Mine: pass\n"
        "print('mit_b0' in BACKBONES.names(), HEADS['ocr'].num_outputs, HEADS['mine'] is Mine)\n"
        "print('fpn' in NECKS.names(), SEEDS['corrected'].has_offsets, 'dice' in LOSSES.names())"
    )
    assert found == ["True", "2", "True", "True", "False", "True"]


def test_public_names_are_found():
    names = imported_by(
        "import ovenet.losses, ovenet.models\n"
        "from ovenet.models import heads, backbones, necks, seeds\n"
        "print(*(getattr(package, name).__name__ for package in (ovenet.models, ovenet.losses)\n"
        "        for name in package.__all__ if name != 'LOSSES'))"
    )
    assert {"Segmentor", "build_segmentor", "SegmentationCriterion", "build_losses"} <= set(names)
    assert "nothing" in imported_by(
        "import ovenet.models\nprint('nothing' if not hasattr(ovenet.models, 'no_such_name') else 'something')"
    )
