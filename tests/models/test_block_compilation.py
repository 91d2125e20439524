"""Blocks that are compiled in place."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from ovenet.models import build_segmentor
from ovenet.models.backbones.blocks import block_chain, conv_bn
from ovenet.models.block_compilation import compile_blocks, compiler_problem, repeated_blocks
from ovenet.utils.meta import meta_device


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def blocks_of_two_sizes():
    torch.manual_seed(0)
    return nn.Sequential(
        block_chain("BASIC", 8, 8, 4),
        *(conv_bn(8, 8) for _ in range(2)),
        *(conv_bn(8, 8, kernel=1, relu=False) for _ in range(2)),
        block_chain("BOTTLENECK", 8, 4, 3),
    ).train()


def outcome(model, x):
    """What a step reads of it: output, gradients, statistics."""
    x = x.clone().requires_grad_()
    y = model(x)
    y.square().mean().backward()
    return [y, x.grad, *(p.grad for p in model.parameters()), *model.buffers()]


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_compiled_blocks_do_the_same(backend):
    plain = blocks_of_two_sizes()
    compiled = copy.deepcopy(plain)
    names = list(compiled.state_dict())
    assert compile_blocks(compiled, backend=backend) == 4 + 2 + 2 + 2  # the first bottleneck alone has a shortcut
    assert list(compiled.state_dict()) == names
    x = torch.randn(2, 8, 12, 20)
    for own, expected in zip(outcome(compiled, x), outcome(plain, x), strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
    num_kinds = counters["stats"]["unique_graphs"]  # one for each kind, not for each block
    assert num_kinds in (3, 4)  # torch 2.6 compiles the norm of a unit alone, which is the same in both kinds
    compiled.eval()(x.requires_grad_())
    assert counters["stats"]["unique_graphs"] == 2 * num_kinds


def test_a_network_has_few_kinds_of_blocks():
    with meta_device():
        model = build_segmentor("hrnet_w18_small_v1", num_classes=5, head="ocr", seed="fork")
    kinds = {(type(b), *(p.shape for p in b.parameters())) for b in repeated_blocks(model)}
    blocks = [b for b in repeated_blocks(model) if type(b).__name__ in ("BasicBlock", "Bottleneck")]
    inside = sum(p.numel() for b in blocks for p in b.parameters())
    assert inside > 0.5 * sum(p.numel() for p in model.backbone.parameters())
    assert len(kinds) < 20


@pytest.mark.parametrize("name", ["convnext_atto", "resnet18", "efficientnet_lite0", "mit_b0"])
def test_other_backbones_have_blocks_too(name):
    with meta_device():
        model = build_segmentor(name, num_classes=5)
    assert len(repeated_blocks(model.backbone)) >= 2


def test_copies_are_not_compiled():
    model = blocks_of_two_sizes()
    compile_blocks(model, backend="aot_eager")
    x = torch.randn(2, 8, 12, 20)
    model.eval()
    copied = copy.deepcopy(model)
    loaded = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    assert torch.equal(copied(x), loaded(x))
    numbers = counters["stats"]["unique_graphs"]
    assert not torch.equal(copied(x), model(x))
    assert counters["stats"]["unique_graphs"] - numbers in (4, 5)  # the first block's input has no gradient


def test_batchnorm_over_all_processes_is_left_out():
    assert repeated_blocks(nn.SyncBatchNorm.convert_sync_batchnorm(blocks_of_two_sizes())) == []


@pytest.mark.parametrize(
    ("error", "text"),
    [(RuntimeError("no\nC++ compiler"), "RuntimeError: no C++ compiler"), (OSError(), "OSError: OSError")],
)
def test_a_compiler_that_fails_is_told(monkeypatch, error, text):
    def fails(*_, **__):
        raise error

    monkeypatch.setattr(torch, "compile", fails)
    assert compiler_problem(torch.device("cpu")) == text
