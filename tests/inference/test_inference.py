"""The predictor with models whose answers are known in closed form."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ovenet.builders import build_model
from ovenet.data.info import LONG_SIDE, EvaluationRule
from ovenet.data.transforms import normalize_images
from ovenet.geometry import SRM
from ovenet.inference.backend import CpuBackend, best_class
from ovenet.inference.inferencer import InferenceSettings, SlidingWindowInferencer
from ovenet.inference.views import ScaledView, Tiling, window_starts
from ovenet.models import build_segmentor
from ovenet.models.conv_bn import fuse_conv_bn
from ovenet.models.displacement import Displacement
from ovenet.structures import Normalization, OVeNetOutput

CPU = torch.device("cpu")


class PixelModel(torch.nn.Module):
    """Scores are a fixed linear map of each pixel: no context, so that windows and flipping change nothing."""

    def __init__(self, stride: int = 1):
        super().__init__()
        self.stride = stride
        self.seen = []
        self.weight = torch.randn(4, 3, 1, 1, generator=torch.Generator().manual_seed(1))

    def forward(self, images):
        self.seen.append(tuple(images.shape))
        scores = F.conv2d(images, self.weight)[..., :: self.stride, :: self.stride]
        return OVeNetOutput((scores,), (), (scores,))


class LeftModel(torch.nn.Module):
    """Class 0 on the left half, class 1 on the right, with a logit of ±1."""

    def forward(self, images):
        scores = torch.ones(images.shape[0], 2, *images.shape[-2:])
        scores[:, 0, :, images.shape[3] // 2 :] = -1
        scores[:, 1, :, : images.shape[3] // 2] = -1
        return OVeNetOutput((scores,), (), (scores,))


def settings(**options):
    return InferenceSettings(**{"base_size": 40, "window_size": (100, 100), **options})


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (30, 40, 3)).astype(np.uint8)


def expected_probabilities(image, model):
    pixels = normalize_images(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    return torch.einsum("kc,chw->khw", model.weight[..., 0, 0], pixels[0]).softmax(0)


@pytest.mark.parametrize("window", [(100, 100), (30, 40), (16, 16), (7, 40), (13, 17)])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_windows_and_flipping_agree_with_the_whole(image, window, flip, batch_size):
    model = PixelModel()
    predictor = SlidingWindowInferencer(model, settings(window_size=window, flip=flip, batch_size=batch_size), CPU)
    scores = predictor.predict_scores(image)
    assert set(scores) == {"fused"}
    torch.testing.assert_close(scores["fused"], expected_probabilities(image, model), atol=1e-5, rtol=0)
    assert all(shape[2] <= window[0] and shape[3] <= window[1] and shape[0] <= batch_size for shape in model.seen)


def test_flipped_views_are_averaged_as_scores():
    """±1 and its flipped image cancel: the average score is 0 everywhere, a probability of one half."""
    image = np.zeros((8, 10, 3), np.uint8)
    plain = SlidingWindowInferencer(LeftModel(), settings(base_size=10), CPU).predict_scores(image)["fused"]
    flipped = SlidingWindowInferencer(LeftModel(), settings(base_size=10, flip=True), CPU).predict_scores(image)[
        "fused"
    ]
    assert plain[0, 0, 0].item() == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    torch.testing.assert_close(flipped, torch.full((2, 8, 10), 0.5))


def test_scales_are_averaged_and_come_back_to_the_images_size():
    image = np.full((30, 40, 3), 90, np.uint8)
    model = PixelModel(stride=4)
    scores = SlidingWindowInferencer(model, settings(scales=(0.5, 1.0, 1.75)), CPU).predict_scores(image)["fused"]
    assert [shape[-2:] for shape in model.seen] == [(15, 20), (30, 40), (52, 70)]
    torch.testing.assert_close(scores, expected_probabilities(image, model), atol=1e-5, rtol=0)


def test_base_size_is_the_long_side_of_portrait_images_too():
    model = PixelModel()
    SlidingWindowInferencer(model, settings(base_size=20), CPU).predict_scores(np.zeros((40, 30, 3), np.uint8))
    assert model.seen[0][-2:] == (20, 15)


def test_exp_sums_exponentials_over_scales():
    image = np.full((30, 40, 3), 90, np.uint8)
    model = PixelModel()
    scores = SlidingWindowInferencer(model, settings(scales=(0.5, 1.0), score="exp"), CPU).predict_scores(image)[
        "fused"
    ]
    pixels = normalize_images(torch.full((1, 3, 1, 1), 90, dtype=torch.uint8))
    expected = 2 * F.conv2d(pixels, model.weight).exp()[0]
    torch.testing.assert_close(scores, expected.expand(4, 30, 40), rtol=1e-4, atol=1e-5)


def test_labels_are_the_best_class(image):
    predictor = SlidingWindowInferencer(PixelModel(), settings(), CPU)
    expected = expected_probabilities(image, predictor.model).argmax(0)
    assert (predictor.predict(image).labels["fused"] == expected).float().mean() > 0.999


@pytest.mark.parametrize("size", [(33, 47), (1, 1), (64, 3)])
def test_ovenet_predicts_all_three_maps_at_any_size(tiny_cfg, size):
    predictor = SlidingWindowInferencer(
        build_model(tiny_cfg()), settings(scales=(0.5, 1.0), flip=True, window_size=(24, 24)), CPU
    )
    scores = predictor.predict_scores(np.zeros((*size, 3), np.uint8))
    assert set(scores) == {"initial", "seed", "fused"}
    for s in scores.values():
        assert s.shape == (11, *size)
        torch.testing.assert_close(s.sum(0), torch.ones(size), atol=1e-5, rtol=0)


def test_probability_fusion_needs_no_second_softmax(tiny_cfg, image):
    model = build_model(tiny_cfg("MODEL.EXTRA.LOGITS", False)).eval()
    with torch.no_grad():
        raw = model(normalize_images(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])).fused[-1]
    expected = F.interpolate(raw, (30, 40), mode="bilinear", align_corners=True)[0]
    torch.testing.assert_close(SlidingWindowInferencer(model, settings(), CPU).predict_scores(image)["fused"], expected)


def test_the_auxiliary_map_can_be_scored(tiny_cfg, image):
    model = build_model(tiny_cfg(name="seg_hrnet_ocr", offset_branch=0))
    final = SlidingWindowInferencer(model, settings(), CPU).predict_scores(image)["fused"]
    auxiliary = SlidingWindowInferencer(model, settings(output_index=0), CPU).predict_scores(image)["fused"]
    assert not torch.allclose(final, auxiliary)


@pytest.mark.parametrize(
    ("length", "window", "expected"),
    [(10, 10, [0]), (20, 10, [0, 10]), (25, 10, [0, 10, 15]), (11, 10, [0, 1]), (5, 1, [0, 1, 2, 3, 4])],
)
def test_windows_lie_side_by_side_and_the_last_is_shifted(length, window, expected):
    assert list(window_starts(length, window, window)) == expected


@pytest.mark.parametrize(
    ("length", "window", "stride", "expected"),
    [
        (10, 10, 7, [0]),
        (20, 10, 7, [0, 7, 10]),
        (24, 10, 7, [0, 7, 14]),
        (25, 10, 7, [0, 7, 14, 15]),
        (12, 10, 1, [0, 1, 2]),
    ],
)
def test_overlapping_windows_cover_all(length, window, stride, expected):
    """mmsegmentation's: a window every `stride` pixels until the end is reached, the last one shifted inward."""
    count = max(length - window + stride - 1, 0) // stride + 1
    assert [min(index * stride, length - window) for index in range(count)] == expected
    assert list(window_starts(length, window, stride)) == expected


@pytest.mark.parametrize(
    ("length", "window", "starts", "padded"),
    # two thirds of 10 is 6: 10 + 6 + 6 covers 22
    [(3, 10, [0], 10), (10, 10, [0], 10), (11, 10, [0, 6], 16), (16, 10, [0, 6], 16), (17, 10, [0, 6, 12], 22)],
)
def test_padded_windows_are_two_thirds_apart(length, window, starts, padded):
    tiling = Tiling.padded_windows((length, window), (window, window))
    assert tiling.corners == [(top, 0) for top in starts]
    assert (tiling.padded, tiling.window) == ((padded, window), (window, window))


class PlaceModel(torch.nn.Module):
    """Logits that depend on where in its window a pixel lies."""

    def forward(self, images):
        batch, _, height, width = images.shape
        y, x = torch.meshgrid(torch.arange(height) / 10, torch.arange(width) / 7, indexing="ij")
        scores = torch.stack((y, x, y * x)).expand(batch, -1, -1, -1) * images[:, :1]
        return OVeNetOutput((scores,), (), (scores,))


@pytest.mark.parametrize("rule", [LONG_SIDE, EvaluationRule("short_side", 8)])
def test_logits_of_overlapping_windows_are_averaged(image, rule):
    """Whatever the dataset's rule says of windows."""
    chosen = settings(base_size=None, window_size=(16, 20), stride=(10, 12), rule=rule)
    ours = SlidingWindowInferencer(PlaceModel(), chosen, CPU).predict_scores(image)["fused"]
    pixels = normalize_images(torch.from_numpy(image.transpose(2, 0, 1).copy())[None])
    total, counts = torch.zeros(3, 30, 40), torch.zeros(30, 40)
    for top in (0, 10, 14):
        for left in (0, 12, 20):
            box = np.s_[..., top : top + 16, left : left + 20]
            total[box] += PlaceModel()(pixels[box]).fused[0][0]
            counts[box] += 1
    torch.testing.assert_close(ours, (total / counts).softmax(0), atol=1e-5, rtol=0)
    probabilities = settings(base_size=None, window_size=(16, 20), rule=LONG_SIDE)
    assert not torch.allclose(
        SlidingWindowInferencer(PlaceModel(), probabilities, CPU).predict_scores(image)["fused"], ours
    )


@pytest.mark.parametrize(
    ("size", "scale", "seen"),
    # Short side to 24 x scale, both up to the next multiple of 8: 24 x 40 -> 24 x 40; 30 x 51 -> 24 x 40.8 = 41 -> 48
    [((24, 40), 1.0, (24, 40)), ((30, 51), 1.0, (24, 48)), ((51, 30), 1.0, (48, 24)), ((30, 51), 1.5, (40, 64))],
)
def test_short_side_rule_runs_the_padded_image_whole(size, scale, seen):
    model = PixelModel()
    rule = EvaluationRule("short_side", 8)
    image = np.full((*size, 3), 90, np.uint8)
    predictor = SlidingWindowInferencer(
        model, settings(base_size=24, window_size=(16, 16), scales=(scale,), rule=rule), CPU
    )
    scores = predictor.predict_scores(image)["fused"]
    assert model.seen == [(1, 3, *seen)]
    torch.testing.assert_close(scores, expected_probabilities(image, model), atol=1e-5, rtol=0)


def test_padding_is_cut_off_before_scores_come_back(image):
    """Without resizing, every pixel's scores must be its own: padding that stayed would shift and squeeze them."""
    model = PixelModel()
    rule = EvaluationRule("short_side", 32)
    scores = SlidingWindowInferencer(model, settings(base_size=30, rule=rule), CPU).predict_scores(image)["fused"]
    assert model.seen == [(1, 3, 32, 64)]
    torch.testing.assert_close(scores, expected_probabilities(image, model), atol=1e-5, rtol=0)


def test_stretching_rule(image):
    model = PixelModel()
    rule = EvaluationRule("stretch")
    SlidingWindowInferencer(model, settings(window_size=(20, 12), scales=(1.0, 1.5), rule=rule), CPU).predict_scores(
        image
    )
    assert model.seen == [(1, 3, 20, 12), (1, 3, 30, 18)]


def test_flipped_views_of_left_and_right_are_exchanged(image):
    """A model that names what is on its left: flipped, it calls left what is right."""
    plain = SlidingWindowInferencer(LeftModel(), settings(flip=True), CPU).predict_scores(image)["fused"]
    aware = SlidingWindowInferencer(LeftModel(), settings(flip=True, flip_pairs=((0, 1),)), CPU).predict_scores(image)[
        "fused"
    ]
    alone = SlidingWindowInferencer(LeftModel(), settings(), CPU).predict_scores(image)["fused"]
    torch.testing.assert_close(plain, torch.full_like(plain, 0.5))
    torch.testing.assert_close(aware, alone)


def test_mmsegmentation_averages_the_probabilities_of_flipped_views(image):
    """±1 and its flipped image: probabilities p and 1 - p are the average of both classes, and pairs change places."""
    chosen = {"flip": True, "score": "mmseg"}
    plain = SlidingWindowInferencer(LeftModel(), settings(**chosen), CPU).predict_scores(image)["fused"]
    aware = SlidingWindowInferencer(LeftModel(), settings(**chosen, flip_pairs=((0, 1),)), CPU).predict_scores(image)
    alone = SlidingWindowInferencer(LeftModel(), settings(), CPU).predict_scores(image)["fused"]
    torch.testing.assert_close(plain, torch.full_like(plain, 0.5))
    torch.testing.assert_close(aware["fused"], alone)


@pytest.mark.parametrize("score", ["exp", "mmseg"])
def test_seeds_are_those_of_the_unflipped_view(image, score):
    chosen = settings(score=score, flip=True, scales=(0.5, 1.0))
    prediction = SlidingWindowInferencer(RampModel(), chosen, CPU).predict(image, seeds=True)
    torch.testing.assert_close(prediction.confidence[0, 7], torch.linspace(0, 1, 40))


class RampModel(torch.nn.Module):
    """Stride 4; the offset and the confidence say where in the window a pixel lies."""

    def forward(self, images):
        h, w = (n // 4 for n in images.shape[-2:])
        y, x = torch.meshgrid(torch.linspace(0, 0.5, h), torch.linspace(0, 0.5, w), indexing="ij")
        offset = torch.stack((-x, -y)).expand(len(images), 2, h, w)
        scores = (images.mean(1, keepdim=True)[..., ::4, ::4] * torch.tensor([1.0, -1.0]).view(2, 1, 1),)
        return OVeNetOutput(scores, scores, scores, offset, x.expand(len(images), 1, h, w) * 2)


def test_offsets_and_confidence_come_at_the_size_of_the_image(image):
    prediction = SlidingWindowInferencer(RampModel(), settings(), CPU).predict(image, seeds=True)
    assert prediction.offset.shape == (2, 30, 40)
    assert prediction.confidence.shape == (1, 30, 40)
    ramp = torch.linspace(0, 1, 40)
    torch.testing.assert_close(prediction.confidence[0, 7], ramp)
    torch.testing.assert_close(prediction.offset[0, 11], -ramp / 2)
    torch.testing.assert_close(prediction.offset[1, :, 5], -torch.linspace(0, 0.5, 30))


def test_offsets_of_windows_are_in_units_of_the_image(image):
    """Windows of 16 x 16 on 30 x 40: the middle column's start at 16, the last one's, shifted inward, at 24."""
    prediction = SlidingWindowInferencer(RampModel(), settings(window_size=(16, 16)), CPU).predict(image, seeds=True)
    ramp = torch.linspace(0, 0.5, 16)
    torch.testing.assert_close(prediction.offset[0, 3, :16], -ramp * 15 / 39)
    torch.testing.assert_close(prediction.offset[0, 3, 24:], -ramp * 15 / 39)  # the last window wins
    torch.testing.assert_close(prediction.offset[0, 3, 16:24], -ramp[:8] * 15 / 39)
    torch.testing.assert_close(prediction.confidence[0, 29, 24:], ramp * 2)


def test_seeds_are_those_of_the_scale_nearest_to_one(image):
    class Sized(RampModel):
        def forward(self, images):
            output = super().forward(images)
            confidence = torch.full_like(output.confidence, images.shape[3] / 100)
            return OVeNetOutput(output.initial, output.seed, output.fused, output.offset, confidence)

    prediction = SlidingWindowInferencer(Sized(), settings(scales=(0.5, 1.25, 2.0), flip=True), CPU).predict(
        image, seeds=True
    )
    torch.testing.assert_close(prediction.confidence, torch.full((1, 30, 40), 0.5))


class SlidingModel(PixelModel):
    """Has a field that moves everything by two pixels to the right and one up, at half the resolution."""

    def __init__(self):
        super().__init__()
        self.displacement = Displacement("slide", SRM)

    def forward(self, images):
        height, width = images.shape[-2:]
        field = torch.tensor([1.0, -0.5]).view(1, 2, 1, 1).expand(len(images), 2, height // 2, width // 2)
        self.displacement(field)
        return super().forward(images)


@pytest.mark.parametrize("window", [(30, 40), (16, 20)])
def test_other_displacements_come_in_units_of_the_image(image, window):
    """Windows or not: 2 of 39 and 1 of 29 pixels, of which the image spans 2."""
    predictor = SlidingWindowInferencer(SlidingModel(), settings(window_size=window, scales=(0.5, 1.0), flip=True), CPU)
    prediction = predictor.predict(image, score_side=10)
    assert list(prediction.fields) == ["slide, stride 2"]
    (field,) = prediction.fields.values()
    assert field.shape == (2, 8, 10)
    spans = [(w - 1) / w * n / (n - 1) for w, n in zip(window[::-1], (40, 30), strict=True)]  # edges against centres
    for axis, pixels, size in ((0, 2, 40), (1, -1, 30)):
        expected = torch.full((8, 10), pixels * 2 / size * spans[axis])
        torch.testing.assert_close(field[axis], expected, atol=1e-5, rtol=0)
    assert set(prediction.scores) == set(prediction.labels) == {"fused"}
    assert predictor.predict(image).fields == {}


@pytest.mark.parametrize(
    ("neck", "args", "titles"),
    [
        ("fpn", {"upsampler": "srm"}, ["SRM, stride 16", "SRM, stride 8", "SRM, stride 4"]),
        (
            "fpn",
            {"upsampler": "align_fa"},
            [f"AlignFA, {w} map, stride {s}" for s in (16, 8, 4) for w in ("fine", "coarse")],
        ),
        (
            "freqfusion",
            {"projections": (32, 32, 32, 32)},
            ["FreqFusion, stride 16", "FreqFusion, stride 8", "FreqFusion, stride 4"],
        ),
        ("concat", {}, []),
    ],
)
def test_necks_show_their_displacements(neck, args, titles):
    model = fuse_conv_bn(
        build_segmentor("hrnet_w18_small_v1", num_classes=3, neck=neck, neck_args=args, head="conv1x1")
    )
    photo = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    prediction = SlidingWindowInferencer(model, settings(base_size=96, window_size=(64, 96)), CPU).predict(
        photo, score_side=24
    )
    assert list(prediction.fields) == titles


def test_thinned_out_maps_are_every_nth_pixel(image):
    predictor = SlidingWindowInferencer(RampModel(), settings(window_size=(16, 16)), CPU)
    whole, thin = predictor.predict(image, seeds=True), predictor.predict(image, seeds=True, seed_stride=3)
    assert torch.equal(thin.offset, whole.offset[:, ::3, ::3])
    scores = predictor.predict_scores(image)["fused"]
    some = predictor.predict(image, score_side=10)  # 40 columns: every 4th
    assert torch.equal(some.scores["fused"], scores[:, ::4, ::4])
    assert torch.equal(some.labels["fused"].long(), scores.argmax(dim=0))


def test_the_height_of_the_bands_changes_nothing_but_rounding(image):
    options = settings(window_size=(16, 16), scales=(0.5, 1.0, 1.75), flip=True)
    whole = SlidingWindowInferencer(PixelModel(stride=4), options, CPU).predict_scores(image)["fused"]
    model = PixelModel(stride=4)
    one_row = CpuBackend(band_elements=1)
    rows = SlidingWindowInferencer(model, options, CPU, one_row).predict_scores(image)["fused"]
    torch.testing.assert_close(rows, whole, atol=1e-6, rtol=1e-5)
    assert len(model.seen) == 2 * (1 * 2 + 2 * 3 + 4 * 5)  # each window once, and flipped


def test_only_what_is_asked_for_is_given(tiny_cfg):
    predictor = SlidingWindowInferencer(build_model(tiny_cfg()), settings(), CPU)
    prediction = predictor.predict(np.zeros((20, 30, 3), np.uint8), names=("fused",))
    assert list(prediction.labels) == ["fused"]
    assert prediction.labels["fused"].dtype == torch.uint8
    assert prediction.offset is None


def test_windows_are_forgotten_when_their_rows_are_done(image, monkeypatch):
    kept = []
    store = ScaledView.store

    def watched(view, corner, maps):
        store(view, corner, maps)
        kept.append(view.num_kept)

    monkeypatch.setattr(ScaledView, "store", watched)
    predictor = SlidingWindowInferencer(PixelModel(), settings(window_size=(4, 20)), CPU, CpuBackend(band_elements=1))
    predictor.predict(image)
    assert len(kept) == 16  # 8 rows of 2 windows
    assert max(kept) <= 4


def test_windows_at_a_padded_border_go_into_one_batch(image):
    """30 x 40 pixels padded to 32 x 48: the last windows hold less of the image than the others."""
    rule = EvaluationRule(resize="long_side", multiple_of=16)
    expected = SlidingWindowInferencer(PixelModel(), settings(), CPU).predict_scores(image)["fused"]
    padded = SlidingWindowInferencer(PixelModel(), settings(window_size=(16, 24), batch_size=3, rule=rule), CPU)
    torch.testing.assert_close(padded.predict_scores(image)["fused"], expected)


@pytest.mark.parametrize("num_classes", [2, 19, 255, 256, 300])
def test_the_best_class_is_the_first_of_the_best(num_classes):
    scores = torch.randint(0, 4, (5, num_classes, 7)).float()  # with many ties
    found = best_class(scores)
    for i in range(5):
        for j in range(7):
            column = scores[i, :, j].tolist()
            assert found[i, j] == column.index(max(column))


def test_scores_that_are_nan_still_give_a_class():
    assert best_class(torch.full((1, 3, 2), torch.nan)).max() < 3


def test_flipped_views_in_one_batch_give_the_same(image):
    alone, together = (
        SlidingWindowInferencer(PixelModel(), settings(flip=True, batch_size=n, window_size=(16, 16)), CPU)
        for n in (1, 6)
    )
    a, b = (p.predict_scores(image)["fused"] for p in (alone, together))
    torch.testing.assert_close(a, b)
    assert {shape[0] for shape in alone.model.seen} == {1}
    assert max(shape[0] for shape in together.model.seen) == 6
    assert len(together.model.seen) == 2


def test_lower_precision_is_for_the_network_alone(image):
    exact, fast = (SlidingWindowInferencer(PixelModel(), settings(precision=p), CPU) for p in ("fp32", "bf16"))
    a, b = (p.predict_scores(image)["fused"] for p in (exact, fast))
    assert b.dtype == torch.float32
    assert not torch.equal(a, b)
    torch.testing.assert_close(a, b, atol=0.02, rtol=0)


def test_images_may_be_scaled_ahead(image):
    predictor = SlidingWindowInferencer(PixelModel(), settings(scales=(0.5, 1.0)), CPU)
    a, b = predictor.predict(image), predictor.predict(image, scaled=predictor.scaled_images(image))
    assert torch.equal(a.labels["fused"], b.labels["fused"])


def test_a_box_runs_the_image_whole(image):
    """Within 80x24: the short side of 30 pixels limits, and no window is cut."""
    model = PixelModel()
    predictor = SlidingWindowInferencer(model, settings(base_box=(80, 24), window_size=(8, 8)), torch.device("cpu"))
    assert predictor.predict_scores(image)["fused"].shape[1:] == (30, 40)
    assert model.seen == [(1, 3, 24, 32)]


def test_pixels_are_normalised_as_the_model_wants_them(image):
    model = PixelModel()
    own = Normalization((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "BGR")
    scores = SlidingWindowInferencer(model, settings(normalization=own), torch.device("cpu")).predict_scores(image)[
        "fused"
    ]
    blue_first = (image[..., ::-1].astype(np.float64) / 255 - own.mean) / own.std
    logits = torch.einsum("kc,hwc->khw", model.weight[..., 0, 0].double(), torch.from_numpy(blue_first.copy()))
    torch.testing.assert_close(scores.double(), logits.softmax(0), atol=1e-5, rtol=1e-5)
