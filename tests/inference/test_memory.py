"""The memory guard against what the operating system measures."""

import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tests.tools.conftest import ROOT

from ovenet import build_model, builders
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.inference.memory import MemoryGuard, available_bytes


@pytest.fixture
def guard(tiny_cfg):
    predictor = SlidingWindowInferencer(build_model(tiny_cfg()), InferenceSettings(None, (64, 64)), torch.device("cpu"))
    return lambda gb, **options: MemoryGuard(predictor, 11, gb, **options)


def test_an_image_needs_at_least_its_decoded_pixels(guard):
    pixels = 3000 * 4000
    assert guard(8).image_bytes((3000, 4000)) >= 7 * pixels
    assert guard(8).image_bytes((3000, 4000)) <= 8 * pixels
    assert guard(8, max_seed_side=4096).image_bytes((3000, 4000)) > 7 * pixels


def test_images_are_refused_by_their_header(guard, tmp_path):
    Image.fromarray(np.zeros((50, 70, 3), np.uint8)).save(tmp_path / "a.png")
    assert guard(100).check(tmp_path / "a.png") == 3500
    assert guard(None).check(tmp_path / "a.png") == 3500
    tight = guard(100)
    tight.max_bytes = tight.base_bytes + 1000
    with pytest.raises(ValueError, match=r"a\.png: 70 x 50 .* GB .*--max-memory"):
        tight.check(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"b\.png: "):
        tight.check(tmp_path / "b.png")


def test_a_cap_below_the_model_itself_is_refused(guard):
    with pytest.raises(ValueError, match=r"--max-memory 0\.01: .*64 x 64 .* GB; .*TEST\.IMAGE_SIZE"):
        guard(0.01)


@pytest.mark.slow
def test_the_process_stays_below_its_cap(tiny_cfg, tmp_path):
    cfg = tiny_cfg("TEST.IMAGE_SIZE", "[1024,1024]")
    content = {"model": build_model(cfg).state_dict(), "config": cfg.dump()}
    torch.save(content | {"dataset_info": builders.dataset_info(cfg).as_dict()}, tmp_path / "best.pth")
    noise = np.random.default_rng(0).integers(0, 256, (10000, 10000, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.jpg")
    cap_gb = 1.7  # decoding alone takes 0.7
    command = [
        sys.executable,
        "tools/infer.py",
        tmp_path / "best.pth",
        tmp_path / "large.jpg",
        "--output",
        tmp_path / "o",
    ]
    command += ["--long-side", "native", "--max-memory", str(cap_gb)]
    subprocess.run([str(part) for part in command], cwd=ROOT, check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 <= cap_gb * 1e9
    assert Image.open(tmp_path / "o/overlay/large.png").size == (10000, 10000)


def test_memory_that_only_holds_cached_files_is_free(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 24000 kB\nMemFree: 10 kB\nMemAvailable: 20000 kB\n")
    assert available_bytes(tmp_path / "meminfo") == 20000 * 1024
    assert available_bytes(tmp_path / "none") > 10**8  # where the system does not say: all that there is
