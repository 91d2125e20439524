"""The ablations of the SRM/CRM network: what each leaves out, on each dataset, and nothing else."""

import pytest
import torch
from tests.shipped import EXPERIMENTS, shipped

from ovenet.builders import build_model
from ovenet.config import flat_settings, load_config
from ovenet.utils.meta import meta_device

FULL = {
    "cityscapes": ("srm_crm_mscan-s_160k_cityscapes-1024x1024", 19),
    "bdd100k": ("srm_crm_mscan-s_80k_bdd100k-512x1024", 19),
    "ade20k": ("srm_crm_mscan-s_160k_ade20k-512x512", 150),
}
UPSAMPLER, CONTEXT = "MODEL.NECK.UPSAMPLER", "MODEL.NECK.CONTEXT"
ABLATIONS = {
    "no-srm": {UPSAMPLER: "bilinear"},
    "no-crm": {CONTEXT: "none"},
    "no-srm-no-crm": {UPSAMPLER: "bilinear", CONTEXT: "none"},
    "no-contrast": {"MODEL.HEAD.EMBEDDING": None, "LOSS.CONTRAST.WEIGHT": 0.0},
    "fam": {UPSAMPLER: "fam"},
    "align-fa": {UPSAMPLER: "align_fa"},
    "ppm": {CONTEXT: "ppm"},
    "dappm": {CONTEXT: "dappm"},
    "ccam": {CONTEXT: "ccam"},
    "dam": {CONTEXT: "dam"},
}
MODULES = {
    "bilinear": "Bilinear", "srm": "SemanticRefinement", "fam": "FlowAlignment", "align_fa": "FeatureAlignment",
    "crm": "ContextualRefinement", "ppm": "PyramidPooling", "dappm": "AggregatedPyramidPooling",
    "ccam": "CrissCrossContext", "dam": "DualAttention",
}  # fmt: skip


@pytest.mark.parametrize("dataset", FULL)
def test_every_dataset_has_every_ablation(dataset):
    found = {p.stem.removeprefix("srm_crm_ablation_") for p in shipped(f"{dataset}/srm_crm_ablation_*")}
    assert found == set(ABLATIONS)


@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize("dataset", FULL)
def test_an_ablation_differs_in_what_its_name_says(dataset, ablation):
    file, num_classes = FULL[dataset]
    full = flat_settings(load_config(EXPERIMENTS / dataset / f"{file}.yaml"))
    cfg = load_config(EXPERIMENTS / dataset / f"srm_crm_ablation_{ablation}.yaml")
    settings = flat_settings(cfg)
    missing = object()
    names = {name for name in full.keys() | settings.keys() if full.get(name, missing) != settings.get(name, missing)}
    assert {name: settings.get(name) for name in names} == ABLATIONS[ablation]
    assert (full[UPSAMPLER], full[CONTEXT], full["MODEL.HEAD.EMBEDDING"]) == ("srm", "crm", 256)
    with meta_device():
        model = build_model(cfg)
    assert num_classes == cfg.DATASET.NUM_CLASSES
    built = {type(module).__name__ for module in model.neck.modules()} & set(MODULES.values())
    expected = (settings[UPSAMPLER], settings[CONTEXT])
    assert built == {MODULES[name] for name in expected if name != "none"}


@pytest.mark.parametrize("ablation", ABLATIONS)
def test_an_ablation_runs(ablation):
    """On one dataset, since those of the others differ in the number of classes alone."""
    with meta_device():
        model = build_model(load_config(EXPERIMENTS / "cityscapes" / f"srm_crm_ablation_{ablation}.yaml"))
        output = model(torch.zeros(2, 3, 64, 128))
    assert output.fused[-1].shape == (2, 19, 16, 32)
    assert (output.embedding is None) == (ablation == "no-contrast")
