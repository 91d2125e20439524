"""Every backend against the plain way in float64, which torch alone computes here."""

import importlib
import os
import re
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from ovenet.losses import OhemSettings, SegmentationCriterion, blocked, fused
from ovenet.losses.settings import LossSettings
from ovenet.losses.targets import Targets
from ovenet.losses.upsampled import upsampled_cross_entropy
from ovenet.structures import OVeNetOutput

IGNORE = 255
SIZES = [  # map, labels
    ((5, 7), (19, 26)),
    ((33, 18), (130, 70)),
    ((9, 12), (9, 12)),
    ((12, 9), (7, 5)),
    ((1, 40), (3, 70)),
    ((2, 3), (1, 1)),
]
OHEM = [None, OhemSettings(0.3, 20), OhemSettings(1e-6, 30), OhemSettings(0.5, 10**9)]


def plain_loss(scores, labels, kind, ohem, align_corners, class_weights=None):
    """Sum and divisor from a whole upsampled map and a sorted list, in float64."""
    values = scores.double()
    if values.shape[-2:] != labels.shape[-2:]:
        values = F.interpolate(values, size=labels.shape[-2:], mode="bilinear", align_corners=align_corners)
    logs = values.log_softmax(1) if kind == "logits" else values.log()
    losses = F.nll_loss(logs.contiguous(), labels, ignore_index=IGNORE, reduction="none")
    valid = labels != IGNORE
    weights = (
        torch.ones_like(losses)
        if class_weights is None
        else class_weights.double()[labels.clamp_max(len(class_weights) - 1)]
    )
    if ohem is None:
        return (losses * weights)[valid].sum(), weights[valid].sum()
    probabilities = (-losses[valid]).exp()
    ordered = probabilities.sort().values
    limit = max(ohem.threshold, ordered[min(ohem.min_kept, len(ordered) - 1)])
    kept = probabilities < limit
    return (losses * weights)[valid][kept].sum(), kept.sum().double()


def example(size, out, num_classes, kind, dtype=torch.float32, batch=2):
    scores = 3 * torch.randn(batch, num_classes, *size, dtype=dtype)
    if kind == "probabilities":
        scores = scores.softmax(1)
    labels = torch.randint(0, num_classes, (batch, *out))
    labels[torch.rand(batch, *out) < 0.2] = IGNORE
    labels[0, 0, 0] = 1
    return scores.contiguous(memory_format=torch.channels_last).requires_grad_(), labels


def assert_equal_to_plain(scores, labels, kind, ohem, align_corners, cross_entropy, class_weights=None):
    targets = Targets.from_labels(labels, ignore_label=IGNORE, class_weights=class_weights, dtype=scores.dtype)
    (total,), (weight,) = cross_entropy([scores], targets, kind, ohem=[ohem], align_corners=align_corners)
    expected, divisor = plain_loss(scores, labels, kind, ohem, align_corners, class_weights)
    torch.testing.assert_close(total.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(weight.double(), divisor, rtol=1e-5, atol=0)
    gradient, expected_gradient = (torch.autograd.grad(x, scores)[0] for x in (total, expected))
    scale = expected_gradient.abs().max().item()
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-5 * max(scale, 1e-3))


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("ohem", OHEM)
@pytest.mark.parametrize(("size", "out"), SIZES)
@pytest.mark.parametrize("backend", ["plain", "blocked"])
def test_engines_equal_the_plain_way(backend, size, out, ohem, kind):
    cross_entropy = partial(upsampled_cross_entropy, backend=backend)
    dtype = torch.float64 if backend == "plain" else torch.float32  # torch places its float32 samples less exactly
    for align_corners in (True, False):
        scores, labels = example(size, out, 5, kind, dtype)
        assert_equal_to_plain(scores, labels, kind, ohem, align_corners, cross_entropy)


def test_a_map_of_one_pixel():
    scores, labels = example((1, 1), (4, 5), 3, "logits")
    assert_equal_to_plain(scores, labels, "logits", None, True, upsampled_cross_entropy)


@pytest.mark.parametrize("ohem", OHEM)
def test_class_weights(ohem):
    scores, labels = example((9, 11), (33, 47), 19, "logits")
    weights = torch.rand(19) + 0.5
    assert_equal_to_plain(scores, labels, "logits", ohem, True, upsampled_cross_entropy, weights)


def test_blocks_of_every_size_give_the_same(monkeypatch):
    scores, labels = example((33, 18), (130, 70), 5, "logits")
    targets = Targets.from_labels(labels, ignore_label=IGNORE)
    results = []
    for elements in (1, 5 * 70, 7 * 5 * 70, 10**9):
        monkeypatch.setattr(blocked, "_CPU_BLOCK_ELEMENTS", elements)
        loss, gradient = blocked.loss_and_gradient(
            scores, targets, "logits", None, align_corners=False, with_gradient=True
        )
        results.append((loss.nll, gradient))
    for nll, gradient in results[1:]:
        torch.testing.assert_close(nll, results[0][0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, results[0][1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("ohem", [None, OhemSettings(0.6, 3)])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("align_corners", [True, False])
def test_gradcheck(kind, ohem, align_corners):
    scores, labels = example((3, 4), (10, 9), 4, kind, torch.float64)
    targets = Targets.from_labels(labels, ignore_label=IGNORE, dtype=torch.float64)

    def loss(s):
        return upsampled_cross_entropy([s], targets, kind, ohem=[ohem], align_corners=align_corners)[0]

    assert torch.autograd.gradcheck(loss, (scores,))


def test_half_precision_is_computed_in_float32():
    scores, labels = example((9, 11), (33, 47), 19, "logits")
    targets = Targets.from_labels(labels, ignore_label=IGNORE)
    half = scores.detach().bfloat16().requires_grad_()
    total, _ = upsampled_cross_entropy([half], targets, "logits")
    expected, _ = upsampled_cross_entropy([scores], targets, "logits", backend="plain")
    torch.testing.assert_close(total, expected, rtol=1e-2, atol=0)
    (gradient,), (expected_gradient,) = (torch.autograd.grad(x, s) for x, s in ((total, half), (expected, scores)))
    assert gradient.dtype == torch.bfloat16
    assert (gradient - expected_gradient).abs().max() < 1e-2 * expected_gradient.abs().max()


def test_autocast_around_the_loss_changes_nothing():
    scores, labels = example((9, 11), (33, 47), 19, "logits")
    targets = Targets.from_labels(labels, ignore_label=IGNORE)
    total, _ = upsampled_cross_entropy([scores], targets, "logits")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        same, _ = upsampled_cross_entropy([scores], targets, "logits")
    assert torch.equal(total, same)


def test_gradients_repeat_to_the_bit():
    scores, labels = example((33, 18), (130, 70), 19, "logits")
    targets = Targets.from_labels(labels, ignore_label=IGNORE)
    first, second = (
        torch.autograd.grad(upsampled_cross_entropy([scores], targets, "logits")[0], scores)[0] for _ in "ab"
    )
    assert torch.equal(first, second)


@pytest.mark.parametrize("backend", ["plain", "blocked"])
def test_nan_and_large_logits_are_told(backend):
    scores, labels = example((5, 7), (19, 26), 3, "logits")
    targets = Targets.from_labels(labels, ignore_label=IGNORE)
    large, _ = upsampled_cross_entropy([scores.detach() * 1e4], targets, "logits", backend=backend)
    assert torch.isfinite(large)
    broken = scores.detach().clone()
    broken[0, 1, 2, 3] = torch.nan
    assert upsampled_cross_entropy([broken], targets, "logits", backend=backend)[0].isnan()


def criterion_and_output(backend, term):
    def maps(channels=7):
        return tuple(torch.randn(2, channels, 6, 9).requires_grad_() for _ in range(2))

    torch.manual_seed(1)
    output = OVeNetOutput(maps(), maps(), maps(), torch.rand(2, 2, 6, 9) - 0.5, torch.rand(2, 1, 6, 9).requires_grad_())
    settings = LossSettings(terms=(term,), backend=backend)
    return SegmentationCriterion(settings, ignore_label=IGNORE, output_weights=(0.4, 1)), output


@pytest.mark.parametrize("term", [{"NAME": "cross_entropy"}, {"NAME": "ohem", "THRESHOLD": 0.5, "MIN_KEPT": 50}])
def test_the_whole_criterion_is_the_same_with_every_engine(term):
    labels = torch.randint(0, 7, (2, 21, 33))
    results = []
    for backend in ("plain", "blocked"):
        criterion, output = criterion_and_output(backend, term)
        loss = criterion(output, labels)
        inputs = (*output.initial, *output.seed, *output.fused, output.confidence)
        results.append((loss.total, loss.terms, *torch.autograd.grad(loss.total, inputs)))
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_triton_needs_cuda():
    scores, labels = example((3, 4), (10, 9), 4, "logits")
    with pytest.raises(ValueError, match=r"LOSS\.BACKEND is triton.*CUDA"):
        upsampled_cross_entropy([scores], Targets.from_labels(labels, ignore_label=IGNORE), "logits", backend="triton")


@pytest.fixture
def fused_triton(monkeypatch):
    """The kernels, run by Triton's interpreter on the CPU in place of the blocked loss."""
    pytest.importorskip("triton")
    if "TRITON_INTERPRET" not in os.environ:
        pytest.skip("with CUDA the tests marked gpu run the kernels")
    monkeypatch.setattr("ovenet.losses.upsampled._fits_kernels", lambda _: True)
    monkeypatch.setattr(fused, "_failed", set())
    monkeypatch.setattr(fused, "_checked", set())
    return importlib.import_module("ovenet.losses.fused_triton")


@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize(
    ("size", "out", "num_classes", "ohem", "align_corners"),
    [
        ((3, 5), (10, 14), 3, None, True),
        ((2, 33), (5, 67), 5, OhemSettings(0.3, 20), False),
        ((1, 66), (2, 68), 3, None, True),  # more than one block of columns
        ((2, 3), (3, 5), 37, OhemSettings(1e-6, 5), True),  # more than one block of classes
        ((4, 5), (4, 5), 3, None, False),
        ((6, 5), (3, 2), 3, None, True),
        ((1, 1), (3, 4), 2, None, True),
    ],
)
def test_interpreted_kernels_equal_the_plain_way(fused_triton, size, out, num_classes, ohem, align_corners, kind):
    scores, labels = example(size, out, num_classes, kind, batch=1)
    assert_equal_to_plain(scores, labels, kind, ohem, align_corners, upsampled_cross_entropy)
    assert fused._checked
    assert not fused._failed


def test_interpreted_kernels_take_all_maps_in_one_pass(fused_triton, monkeypatch):
    """Maps with and without mining, those of another size apart; class weights; both layouts."""
    launches = []
    run = fused_triton.pixel_losses
    monkeypatch.setattr(fused_triton, "pixel_losses", lambda s, *a, **k: launches.append(len(s)) or run(s, *a, **k))
    ohem = OhemSettings(0.3, 5)
    mining = [None, ohem, None, None]
    examples = [example((2, 3), (5, 7), 5, "logits") for _ in range(3)] + [example((3, 2), (5, 7), 5, "logits")]
    maps, labels, class_weights = [scores for scores, _ in examples], examples[0][1], torch.rand(5) + 0.5
    maps[0] = maps[0].detach().contiguous().requires_grad_()
    targets = Targets.from_labels(labels, ignore_label=IGNORE, class_weights=class_weights)
    for _ in range(2):
        launches.clear()
        totals, weights = upsampled_cross_entropy(maps, targets, "logits", ohem=mining)
    assert launches == [3 * 2, 2]  # images: three maps of one size, and the fourth
    factors = torch.rand(4)
    gradients = torch.autograd.grad((totals * factors).sum(), maps)
    for i, scores in enumerate(maps):
        total, weight = plain_loss(scores, labels, "logits", mining[i], True, class_weights)
        torch.testing.assert_close(totals[i].double(), total, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(weights[i].double(), weight, rtol=1e-5, atol=0)
        (expected,) = torch.autograd.grad(factors[i] * total, scores)
        torch.testing.assert_close(gradients[i], expected.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("failing", ["pixel_losses", "gradient"])
def test_a_kernel_that_fails_at_any_call_is_replaced(fused_triton, monkeypatch, caplog, failing):
    """From its third call on, that is after the check and a first step: one line, and the same losses and gradients."""
    calls = 0
    run = getattr(fused_triton, failing)

    def fail(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls >= 3:
            raise RuntimeError("PassManager::run failed")
        return run(*args, **kwargs)

    monkeypatch.setattr(fused_triton, failing, fail)
    ohem = OhemSettings(0.3, 5)
    scores, labels = example((2, 3), (5, 7), 5, "logits", batch=1)
    other, _ = example((3, 2), (5, 7), 5, "logits", batch=1)
    for _ in range(4):
        assert_equal_to_plain(scores, labels, "logits", ohem, True, upsampled_cross_entropy)
    assert calls == 3
    (record,) = caplog.records
    assert re.search(r"5 classes, 2x3 to 5x7 .*RuntimeError: PassManager::run failed", record.getMessage())
    assert_equal_to_plain(other, labels, "logits", ohem, True, upsampled_cross_entropy)  # another shape is another try
    assert calls == 4
    assert len(caplog.records) == 2


@pytest.mark.parametrize("factor", [1.01, torch.nan])
def test_kernels_whose_results_differ_are_not_used(fused_triton, monkeypatch, caplog, factor):
    run = fused_triton.gradient
    monkeypatch.setattr(fused_triton, "gradient", lambda *args, **kwargs: factor * run(*args, **kwargs))
    scores, labels = example((2, 3), (5, 7), 5, "logits", batch=1)
    assert_equal_to_plain(scores, labels, "logits", None, True, upsampled_cross_entropy)
    assert re.search(r"RuntimeError: .*differ", caplog.text)


def test_scores_that_are_not_finite_are_no_reason_to_give_the_kernels_up(fused_triton):
    scores, labels = example((2, 3), (5, 7), 5, "logits", batch=1)
    scores = scores.detach()
    scores[0, 2, 1, 2] = torch.nan
    targets = Targets.from_labels(labels, ignore_label=IGNORE)
    assert upsampled_cross_entropy([scores.requires_grad_()], targets, "logits")[0].isnan().all()
    assert not fused._failed


def test_without_triton_the_log_says_so(fused_triton, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "ovenet.losses.fused_triton", None)
    monkeypatch.delattr("ovenet.losses.fused_triton")
    scores, labels = example((2, 3), (5, 7), 5, "logits", batch=1)
    for _ in range(2):
        assert_equal_to_plain(scores, labels, "logits", None, True, upsampled_cross_entropy)
    assert len(caplog.records) == 1


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["blocked", "triton"])
@pytest.mark.parametrize("kind", ["logits", "probabilities"])
@pytest.mark.parametrize("ohem", OHEM)
@pytest.mark.parametrize(("size", "out"), [*SIZES, ((128, 256), (512, 1024))])
def test_engines_equal_the_plain_way_on_cuda(backend, size, out, ohem, kind):
    scores, labels = example(size, out, 19, kind)
    scores, labels = scores.detach().cuda().requires_grad_(), labels.cuda()
    cross_entropy = partial(upsampled_cross_entropy, backend=backend)
    assert_equal_to_plain(scores, labels, kind, ohem, True, cross_entropy)
    targets = Targets.from_labels(labels, ignore_label=IGNORE)
    first, second = (torch.autograd.grad(cross_entropy([scores], targets, kind)[0], scores)[0] for _ in "ab")
    assert torch.equal(first, second)
    assert not fused._failed  # or the blocked loss would have taken the kernels' place
