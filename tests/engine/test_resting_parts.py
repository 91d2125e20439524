"""Parts that rest for the first epochs (``TRAIN.FREEZE_LAYERS``), or for good (``MODEL.FROZEN``)."""

import pytest
import torch
from tests.engine.families import EXPERIMENTS, FAMILIES, batch_of, family_config, family_step
from tests.recorded_graph import RecordedGraph

from ovenet.config import load_config

CPU = torch.device("cpu")
PARTS = {  # of each family, as FREEZE_LAYERS names them
    "hrnet_ocr_fork": "layer1,bn1,stage4,head,seed.tail",
    "hrnet_fcn": "conv1,bn1,layer1,stage3",
    "timm_neck": "backbone",
    "offseg": "backbone,head",
    "srm_crm": "backbone",
}
WAYS = [(family, ()) for family in FAMILIES] + [
    ("hrnet_ocr_fork", ("TRAIN.OPTIMIZER", "adamw")),
    ("hrnet_ocr_fork", ("TRAIN.EMA", 0.9, "TRAIN.CLIP_GRAD_NORM", 1.0)),
    ("hrnet_ocr_fork", ("TRAIN.CHECKPOINT_ACTIVATIONS", True)),
]


def resting_names(step, parts):
    places = [
        p if p.split(".")[0] in ("backbone", "neck", "head", "seed") else f"backbone.{p}" for p in parts.split(",")
    ]
    return {n for n in step.model.state_dict() if n.startswith(tuple(f"{place}." for place in places))}


def copy_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def moved(model, before):
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def kinds(names):
    return {name.rsplit(".", 1)[1] for name in names}


@pytest.mark.parametrize(("family", "settings"), WAYS)
def test_nothing_of_a_resting_part_moves_until_it_learns_again(tiny_cfg, family, settings):
    cfg = family_config(tiny_cfg, family, "TRAIN.FREEZE_LAYERS", PARTS[family], "TRAIN.WD", 0.1, *settings)
    step = family_step(cfg, CPU, graphs=False, dropout=True)
    resting = resting_names(step, PARTS[family])
    assert "running_mean" in kinds(resting)
    before = copy_of(step.model)
    for number in range(3):
        if number:  # as the loop does: a validation, then the next epoch
            step.model.eval()
            step.parallel.train()
        assert step([batch_of(number)], rest=True).loss is not None
    changed = moved(step.model, before)
    assert not changed & resting
    assert {"weight", "bias"} <= kinds(changed)
    assert {"running_mean", "running_var"} & kinds(set(before) - resting) <= kinds(changed)
    names = {p: n for n, p in step.model.named_parameters()}
    for parameter, state in step.optimizer.state.items():
        if names[parameter] in resting:
            assert all(not torch.as_tensor(value).any() for value in state.values())
    if step.ema is not None:
        assert not moved(step.ema.module, before) & resting
    step([batch_of(3)], rest=False)
    released = moved(step.model, before) & resting
    assert {"weight", "running_mean", "running_var"} <= kinds(released)
    assert all(module.training for module in step.model.modules())


@pytest.mark.parametrize("key", ["MODEL.FROZEN", "TRAIN.FREEZE_LAYERS"])
def test_a_head_of_queries_that_rests_still_teaches_the_backbone(key):
    value = "[head]" if key == "MODEL.FROZEN" else "head"
    settings = ("DEVICE", "cpu", "MODEL.BACKBONE.PRETRAINED", "", "TRAIN.LR", "0.001", key, value)
    step = family_step(load_config(EXPERIMENTS / "synthetic/mask2former_lite0.yaml", list(settings)), CPU, graphs=False)
    before = copy_of(step.model)
    assert step([batch_of(0)], rest=True).loss is not None
    changed = moved(step.model, before)
    assert {name.split(".")[0] for name in changed} == {"backbone"}


def test_a_frozen_part_stays_frozen_when_another_one_learns_again(tiny_cfg):
    cfg = family_config(
        tiny_cfg, "hrnet_ocr_fork", "MODEL.FROZEN", "[backbone.layer1]", "TRAIN.FREEZE_LAYERS", "stage2"
    )
    step = family_step(cfg, CPU, graphs=False)
    before = copy_of(step.model)
    for number, rest in enumerate((True, True, False, False)):
        step([batch_of(number)], rest=rest)
    changed = moved(step.model, before)
    assert not [name for name in changed if name.startswith("backbone.layer1.")]
    assert [name for name in changed if name.startswith("backbone.stage2.") and name.endswith("running_var")]


def test_activations_of_resting_parts_are_not_kept_either(tiny_cfg):
    """With ``CHECKPOINT_ACTIVATIONS``: gradients go through them all the same."""

    def kept(*settings):
        step = family_step(family_config(tiny_cfg, "hrnet_fcn", *settings), CPU, graphs=False)
        step.model.rest(step.resting_parts)
        numbers = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: numbers.append(x.numel()) or x, lambda x: x):
            step.model(torch.zeros(2, 3, 64, 96))
        return sum(numbers)

    again = ("TRAIN.CHECKPOINT_ACTIVATIONS", True)
    assert kept(*again, "TRAIN.FREEZE_LAYERS", "stage3,stage4") <= kept(*again) < kept()


def test_a_graph_is_captured_for_the_resting_step_and_another_for_the_whole_one(tiny_cfg):
    cfg = family_config(tiny_cfg, "hrnet_fcn", "TRAIN.FREEZE_LAYERS", "layer1,bn1")
    eager = family_step(cfg, CPU, graphs=False)
    graphed = family_step(cfg, CPU, graphs=True, new_graph=RecordedGraph)
    for number, rest in enumerate((True, True, True, False, False, False)):
        for step in (eager, graphed):
            step([batch_of(number)], rest=rest)
    assert graphed.passes.graphed.num_graphs == 2
    ours, theirs = copy_of(graphed.model), copy_of(eager.model)
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-5, atol=1e-6)
