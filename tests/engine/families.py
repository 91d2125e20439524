"""Small models of each family, and a few training steps of them on any device."""

from dataclasses import replace
from pathlib import Path

import torch

from ovenet.builders import build_model, build_train_step
from ovenet.config import load_config
from ovenet.engine.step import TrainStep
from ovenet.structures import Batch
from ovenet.utils.cuda_graph import CudaGraph

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
TINY, EXPERIMENT = "tiny", "experiment"
OHEM = ("LOSS.USE_OHEM", True)
FAMILIES = {
    "hrnet_ocr_fork": (TINY, "seg_hrnet_ocr", (*OHEM, "MODEL.SEED.NAME", "fork")),
    "hrnet_fcn": (TINY, "seg_hrnet", ()),
    "timm_neck": (EXPERIMENT, "camvid/ovenet_lite0_fcn.yaml", OHEM),
    "offseg": (EXPERIMENT, "camvid/ovenet_offseg-t.yaml", ()),
    "srm_crm": (EXPERIMENT, "camvid/srm_crm_lite0.yaml", ()),
}
RIVALS = {
    name: (EXPERIMENT, "camvid/lite0_fcn.yaml", ("MODEL.SEED.NAME", name))
    for name in ("carafe", "corrected", "crf", "dysample", "freqfusion", "point_rend", "segfix")
}
RIVALS |= {
    "guided": (EXPERIMENT, "camvid/lite0_stride16.yaml", ("MODEL.SEED.NAME", "guided", "MODEL.SEED.CORRECTION", True)),
    "vit": (EXPERIMENT, "camvid/dinov3_linear_seed.yaml", ("MODEL.BACKBONE.NAME", "test_vit2")),
}
HEIGHT, WIDTH = 64, 96
TOLERANCE = {"fp32": 2e-3, "bf16": 3e-2, "fp16": 1e-2}  # relative, of a loss after up to two steps


def family_config(tiny_cfg, family, *overrides):
    kind, name, own = {**FAMILIES, **RIVALS}[family]
    overrides = ("TRAIN.LR", 0.001, "MODEL.BACKBONE.PRETRAINED", "", *own, *overrides)
    if kind == TINY:
        return tiny_cfg(*overrides, name=name)
    return load_config(EXPERIMENTS / name, [str(value) for value in ("DEVICE", "cpu", *overrides)])


def batch_of(number):
    generator = torch.Generator().manual_seed(number)
    images = torch.randint(0, 255, (2, HEIGHT, WIDTH, 3), generator=generator, dtype=torch.uint8).permute(0, 3, 1, 2)
    labels = torch.randint(0, 11, (2, HEIGHT // 16, WIDTH // 16), generator=generator, dtype=torch.int16)
    labels = labels.repeat_interleave(16, dim=1).repeat_interleave(16, dim=2)
    changes = torch.tensor([[0.0, 4.0], [1.0, -9.0]])
    batch = Batch(images, labels, ("a", "b"), changes=changes)
    return batch.pin_memory() if torch.cuda.is_available() else batch


def family_step(cfg, device, *, graphs, new_graph=CudaGraph, num_warmup=1, dropout=False):
    """A step; without dropout it is the same on every device."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    for module in () if dropout else model.modules():
        for name in ("drop_prob", "p"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    model = model.to(device, memory_format=torch.channels_last)
    step = build_train_step(model, cfg, device, [50])
    settings = replace(step.settings, cuda_graph="auto" if graphs else "off")
    step = TrainStep(
        model, step.criterion, step.optimizer, step.schedule, device, settings, resting_parts=step.resting_parts,
        new_graph=new_graph if graphs else None,
    )  # fmt: skip
    if step.passes.graphed is not None:
        step.passes.graphed.num_warmup = num_warmup
    return step


def num_graphs(step):
    return 0 if step.passes.graphed is None else step.passes.graphed.num_graphs


def losses_of(cfg, device, *, num_steps=3, **options):
    """Total losses of some steps, the first eager and the others replayed where there are graphs; and the step."""
    step = family_step(cfg, device, **options)
    results = [step([batch_of(number)]) for number in range(num_steps)]
    return [None if r.loss is None else r.loss.total.item() for r in results], step
