"""What every backbone, neck and head promises. A test class inherits one of these and names its part.

To check your own: ``class TestMine(BackboneConformance): name = "mine"``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ovenet.models import Segmentor, build_segmentor
from ovenet.models.cost import count_multiply_adds
from ovenet.models.interfaces import ForkableBackbone
from ovenet.models.registry import HEADS, NECKS
from ovenet.utils.meta import meta_device

NUM_CLASSES = 5
CHANNELS, STRIDES = (8, 16, 24, 32), (4, 8, 16, 32)


def random_maps(size=(64, 96), channels=CHANNELS, strides=STRIDES, *, batch=2) -> list[torch.Tensor]:
    """Feature maps of an image of `size`, whose sides need not be multiples of the strides."""
    return [torch.randn(batch, c, *(-(-n // s) for n in size)) for c, s in zip(channels, strides, strict=True)]


def is_reached(parameter: nn.Parameter) -> bool:
    return parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())


def compiles_in_one_graph(module: nn.Module, *inputs: Any) -> Any:
    """What torch.compile gives for it; any break of the graph is an error."""
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="eager")(*inputs)


class BackboneConformance:
    """Set `name`, and what else the backbone needs."""

    name: ClassVar[str]
    args: ClassVar[dict[str, Any]] = {}
    size: ClassVar[tuple[int, int]] = (64, 96)
    odd_sizes: ClassVar[list[tuple[int, int]]] = [(65, 97), (33, 47)]
    num_parameters: ClassVar[int | None] = None
    has_dropout: ClassVar[bool] = False

    def build(self, **options) -> Segmentor:
        torch.manual_seed(0)
        return build_segmentor(self.name, num_classes=NUM_CLASSES, backbone_args=self.args, **options)

    def images(self, size=None, *, batch=2) -> torch.Tensor:
        return torch.randn(batch, 3, *(size or self.size), generator=torch.Generator().manual_seed(1))

    def test_channels_and_strides_are_as_promised(self):
        backbone = self.build().backbone.eval()
        with torch.no_grad():
            maps = backbone(self.images())
        assert len(maps) == len(backbone.channels) == len(backbone.strides)
        assert list(backbone.strides) == sorted(backbone.strides)
        for x, channels, stride in zip(maps, backbone.channels, backbone.strides, strict=True):
            assert x.shape == (2, channels, self.size[0] // stride, self.size[1] // stride)

    def test_any_size_gives_scores_of_its_size(self):
        model = self.build(seed="shared").eval()
        for size in self.odd_sizes:
            with torch.no_grad():
                output = model(self.images(size, batch=1))
            expected = tuple(-(-n // model.head.stride) for n in size)
            assert output.fused[-1].shape == (1, NUM_CLASSES, *expected)
            assert output.offset.shape == (1, 2, *expected)

    def test_an_image_is_not_influenced_by_others_of_its_batch(self):
        model = self.build().eval()
        images = self.images()
        with torch.no_grad():
            together, alone = model(images).fused[-1][:1], model(images[:1]).fused[-1]
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-3)

    def test_every_parameter_gets_a_gradient(self):
        model = self.build(head="fcn", seed="shared").train()
        output = model(self.images())
        (output.fused[-1].square().mean() + output.confidence.mean()).backward()
        assert [name for name, p in model.named_parameters() if not is_reached(p)] == []

    def test_names_do_not_depend_on_the_composition(self):
        states = [set(self.build(**options).backbone.state_dict()) for options in ({}, {"head": "ocr", "seed": "neck"})]
        assert states[0] == states[1]

    def test_the_segmentor_leaves_the_initial_weights(self):
        """A pretrained backbone would be lost, silently."""
        torch.manual_seed(0)
        model = self.build()
        before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
        Segmentor(model.backbone, model.neck, model.head)
        assert all(torch.equal(value, before[name]) for name, value in model.backbone.state_dict().items())

    def test_bfloat16_is_close(self):
        model = self.build().eval()
        images = self.images(batch=1)
        with torch.no_grad():
            exact = model.backbone(images)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = model.backbone(images)
        for a, b in zip(exact, rough, strict=True):
            assert torch.isfinite(b).all()
            assert (a - b.float()).norm() < 0.15 * a.norm()

    @pytest.mark.slow
    def test_it_compiles_in_one_graph(self):
        model = self.build(head="conv1x1", seed="neck").eval()
        images = self.images(batch=1)
        with torch.no_grad():
            compiled, eager = compiles_in_one_graph(model, images), model(images)
        torch.testing.assert_close(compiled.fused[-1], eager.fused[-1], atol=1e-4, rtol=1e-3)

    def test_zero_offsets_give_the_scores_of_the_baseline(self):
        model = self.build(seed="shared").eval()
        nn.init.zeros_(model.seed.head.layers[-1].weight)
        baseline = Segmentor(model.backbone, model.neck, model.head).eval()
        images = self.images(batch=1)
        with torch.no_grad():
            output, expected = model(images), baseline(images).fused[-1]
        assert (output.fused[-1] - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max())

    def test_a_fork_reads_what_the_main_network_reads(self):
        backbone = self.build().backbone.eval()
        if not isinstance(backbone, ForkableBackbone):
            pytest.skip("cannot be forked")
        for stage in range(2, backbone.num_stages + 1):
            before = backbone.run([self.images(batch=1)], 0, stage - 1)
            maps = backbone.run(before, stage - 1, backbone.num_stages)
            tail = backbone.make_tail(stage).eval()
            copied = tail(before)
            assert [x.shape[1] for x in copied] == list(tail.channels)
            assert [x.shape for x in copied] == [x.shape for x in maps[-len(copied) :]]

    def test_number_of_parameters(self):
        with meta_device():
            backbone = self.build().backbone
        count = sum(p.numel() for p in backbone.parameters())
        assert count == (self.num_parameters or count) > 0


class HeadConformance:
    """Set `name`, and what else the head needs."""

    name: ClassVar[str]
    args: ClassVar[dict[str, Any]] = {}
    channels: ClassVar[tuple[int, ...]] = CHANNELS
    strides: ClassVar[tuple[int, ...]] = STRIDES
    even_start: ClassVar[bool] = True
    rounding: ClassVar[Callable[[float], int]] = math.ceil

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        options = {"in_channels": self.channels, "in_strides": self.strides, "num_classes": NUM_CLASSES}
        return HEADS[self.name](**options, **self.args)

    def maps(self, size=(64, 96)) -> list[torch.Tensor]:
        return random_maps(size, self.channels, self.strides)

    def test_scores_are_as_promised(self):
        head = self.build().eval()
        for size in ((64, 96), (65, 97)):
            output = head(self.maps(size))
            expected = tuple(type(self).rounding(n / head.stride) for n in size)
            assert [tuple(s.shape) for s in output.scores] == [(2, NUM_CLASSES, *expected)] * head.num_outputs
            assert output.features.shape == (2, head.feature_channels, *expected)

    def test_classes_begin_about_equally_likely(self):
        if not self.even_start:
            pytest.skip("scores are normalised over the classes")
        for scores in self.build().eval()(self.maps()).scores:
            assert (scores.softmax(1) - 1 / NUM_CLASSES).abs().max() < 0.2

    def test_every_parameter_and_every_map_that_is_read_gets_a_gradient(self):
        head = self.build().train()
        maps = [x.requires_grad_() for x in self.maps()]
        sum(s.square().mean() for s in head(maps).scores).backward()
        assert [name for name, p in head.named_parameters() if not is_reached(p)] == []
        first = range(len(maps))[head.first_read]
        assert [x.grad is not None for x in maps] == [i >= first for i in range(len(maps))]

    def test_maps_that_are_not_read_get_a_gradient_of_zero_in_a_model(self):
        """Gradients are averaged over all parameters of all processes."""
        strides_differ = len(set(self.strides[-2:])) > 1
        backbone, neck = ("mit_b0", "none") if strides_differ else ("hrnet_w18_small_v1", None)
        model = build_segmentor(backbone, num_classes=NUM_CLASSES, head=self.name, neck=neck, head_args=self.args)
        sum(s.square().mean() for s in model.train()(torch.randn(2, 3, 64, 64)).fused).backward()
        assert [name for name, p in model.named_parameters() if not is_reached(p)] == []

    def test_it_repeats(self):
        head, maps = self.build().eval(), self.maps()
        for a, b in zip(head(maps).scores, head(maps).scores, strict=True):
            assert torch.equal(a, b)

    def test_bfloat16_is_close(self):
        head, maps = self.build().eval(), self.maps()
        with torch.no_grad():
            exact = head(maps).scores
            with torch.autocast("cpu", dtype=torch.bfloat16):
                rough = head(maps).scores
        for a, b in zip(exact, rough, strict=True):
            assert (a - b.float()).norm() < 0.1 * a.norm()

    def test_its_operations_can_be_counted(self):
        head, maps = self.build().eval(), self.maps()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            head(maps)
        assert counter.get_total_flops() > 0

    @pytest.mark.parametrize("seed", [None, "shared"])
    def test_its_cost_can_be_counted_without_memory(self, seed):
        options = {"num_classes": NUM_CLASSES, "head": self.name, "head_args": self.args, "seed": seed}
        with meta_device():
            model = build_segmentor("hrnet_w18_small_v1", **options).eval()
        assert count_multiply_adds(model, 64, 96) > 0

    @pytest.mark.slow
    def test_it_compiles_in_one_graph(self):
        head, maps = self.build().eval(), self.maps()
        with torch.no_grad():
            compiled = compiles_in_one_graph(head, maps)
            torch.testing.assert_close(compiled.scores, head(maps).scores, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize("seed", ["shared", "neck", "fork"])
    def test_it_goes_with_every_seed(self, seed):
        model = build_segmentor(
            "hrnet_w18_small_v1", num_classes=NUM_CLASSES, head=self.name, head_args=self.args, seed=seed
        ).eval()
        with torch.no_grad():
            output = model(torch.randn(1, 3, 65, 97))
        size = output.fused[-1].shape[-2:]
        assert len(output.seed) == len(output.fused) == model.head.num_outputs
        assert output.offset.shape == (1, 2, *size)
        assert output.confidence.shape == (1, 1, *size)


class NeckConformance:
    """Set `name`, and what else the neck needs."""

    name: ClassVar[str]
    args: ClassVar[dict[str, Any]] = {}
    channels: ClassVar[tuple[int, ...]] = CHANNELS
    strides: ClassVar[tuple[int, ...]] = STRIDES
    sizes: ClassVar[list[tuple[int, int]]] = [(64, 96), (65, 97)]

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        options: dict[str, Any] = {"in_channels": self.channels, "in_strides": self.strides}
        return NECKS[self.name](**options, **self.args)

    def maps(self, size=(64, 96)) -> list[torch.Tensor]:
        return random_maps(size, self.channels, self.strides)

    def test_channels_and_strides_are_as_promised(self):
        neck = self.build().eval()
        for size in self.sizes:
            maps = neck(self.maps(size))
            assert len(maps) == len(neck.channels)
            for x, channels, stride in zip(maps, neck.channels, neck.strides, strict=True):
                assert x.shape == (2, channels, *(-(-n // stride) for n in size))

    def test_every_parameter_and_every_map_gets_a_gradient(self):
        neck = self.build().train()
        maps = [x.requires_grad_() for x in self.maps()]
        sum(x.square().mean() for x in neck(maps)).backward()
        assert all(is_reached(p) for p in neck.parameters())
        assert all(x.grad is not None for x in maps)

    @pytest.mark.slow
    def test_it_compiles_in_one_graph(self):
        neck, maps = self.build().eval(), self.maps()
        torch.testing.assert_close(compiles_in_one_graph(neck, maps), neck(maps), atol=1e-5, rtol=1e-4)
