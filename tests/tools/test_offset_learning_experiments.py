"""Experiments with offset learning, as a user runs them: train, test in overlapping windows, submission, infer."""

import json
import zipfile

import numpy as np
import pytest
import torch
from tests.drawn_scenes import write_dataset
from tests.shipped import EXPERIMENTS, experiment_name, shipped

from ovenet.config import load_config
from ovenet.models.heads.light_ham import MatrixFactorization
from ovenet.preparation.prepare import prepare_dataset

SHORT = (
    "WORKERS", 0, "DEVICE", "cpu", "MODEL.BACKBONE.PRETRAINED", "",
    "TRAIN.BATCH_SIZE_PER_GPU", 2, "TRAIN.IMAGE_SIZE", "[64,64]", "TRAIN.BASE_BOX", "[128,64]", "TRAIN.ITERATIONS", 2,
    "TEST.IMAGE_SIZE", "[64,64]", "TEST.BASE_BOX", "[128,64]", "TEST.STRIDE", "[48,48]",
)  # fmt: skip
CITYSCAPES = ("DATASET.DATASET", "cityscapes", "DATASET.NUM_CLASSES", 19)
LISTS = ("DATASET.TRAIN_SET", "list/cityscapes/train.lst", "DATASET.TEST_SET", "list/cityscapes/val.lst")
SEED = ("MODEL.SEED.NAME", "shared")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    write_dataset(root / "cityscapes", {"train": 4, "val": 2, "test": 1}, size=(64, 128), seed=0)
    prepare_dataset("cityscapes", root)
    return root


@pytest.mark.parametrize(
    ("experiment", "options"),
    [
        ("cityscapes/offseg-t_cityscapes_160k-1024x1024", ("MODEL.BACKBONE.RESOLUTION", 64, *SEED)),
        ("cityscapes/segnext_mscan-t_offset_learning_160k_cityscapes-1024x1024", ()),
        ("ade20k/segformer_mit-b0_offset_learning_8xb2-160k_ade20k-512x512", (*CITYSCAPES, *LISTS)),
    ],
)
@pytest.mark.ci
def test_an_experiment_from_training_to_prediction(run_tool, scenes, tmp_path, experiment, options):
    file = EXPERIMENTS / f"{experiment}.yaml"
    arguments = ("--cfg", file, "DATASET.ROOT", scenes, "OUTPUT_DIR", tmp_path, *SHORT, *options)
    trained = run_tool("train", *arguments)
    assert trained.code == 0, trained.err
    run = tmp_path / "cityscapes" / file.stem
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if line["kind"] == "val"] == [2]
    tested = run_tool("test", *arguments)
    assert tested.code == 0, tested.err
    results = json.loads(next(run.glob("test/*/results.json")).read_text())
    assert set(results["results"]) == ({"initial", "seed", "fused"} if "MODEL.SEED.NAME" in options else {"fused"})
    assert results["evaluation_settings"]["TEST.STRIDE"] == [48, 48]
    submitted = run_tool("make_submission", "--dry-run", *arguments)
    assert submitted.code == 0, submitted.err
    with zipfile.ZipFile(next(run.glob("submission/*.zip"))) as archive:
        assert len(archive.namelist()) == 2
    photo = next((scenes / "cityscapes/leftImg8bit/val").rglob("*.png"))
    predicted = run_tool("infer", run / "final_state.pth", photo, "--output", tmp_path / "predicted", "--device", "cpu")
    assert predicted.code == 0, predicted.err
    assert list((tmp_path / "predicted").rglob("*.png"))


SEGNEXT = shipped("**/segnext_*.yaml")


@pytest.mark.parametrize("file", SEGNEXT, ids=experiment_name)
def test_segnext_draws_its_bases_anew_as_published(file):
    assert load_config(file).MODEL.HEAD.BASES == "official"


def test_new_bases_for_every_prediction():
    """As mmsegmentation's LightHamHead with ``rand_init``, which is its default: written out image by image."""
    cfg = load_config(SEGNEXT[0])
    rank, steps = 16, 7
    part = MatrixFactorization(5, rank=rank, bases=cfg.MODEL.HEAD.BASES).eval()
    x = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    first, second = part(x), part(x)
    torch.manual_seed(1)
    drawn = torch.rand(2, 5, rank).double().numpy()
    for image, bases, result in zip(x.flatten(2).double().numpy(), drawn, first.flatten(2).numpy(), strict=True):
        bases = bases / np.sqrt((bases**2).sum(0))
        powers = np.exp(image.T @ bases)
        coefficients = powers / powers.sum(1, keepdims=True)
        for _ in range(steps):
            coefficients *= (image.T @ bases) / (coefficients @ bases.T @ bases + 1e-6)
            bases *= (image @ coefficients) / (bases @ coefficients.T @ coefficients + 1e-6)
        coefficients *= (image.T @ bases) / (coefficients @ bases.T @ bases + 1e-6)
        np.testing.assert_allclose(result, bases @ coefficients.T, atol=1e-5)
    assert (first - second).abs().max() > 1e-3
