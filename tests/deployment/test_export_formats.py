"""Exported files against torch: each format, each runtime."""

import json

import numpy as np
import onnx
import openvino
import pytest
import torch
from PIL import Image

import ovenet
from ovenet import UserError
from ovenet.builders.loading import load_model, predictor_for_test
from ovenet.deployment import ConvertedNetwork, FileNetwork, Limits, choose_runtime
from ovenet.deployment.about import KEY, LABELS, TENSORS
from ovenet.deployment.parity import EXACT, Parity
from ovenet.deployment.runtimes import open_session
from ovenet.predictor.export import ExportOptions, export
from ovenet.predictor.sources import find_weights
from ovenet.synthetic.scenes import draw_scene

MODEL = "scenes-lite0"
SIZE = (96, 128)
FILES = {  # suffix and size of each file
    "fixed": ("fixed.onnx", SIZE),
    "dynamic": ("dynamic.onnx", None),
    "openvino": ("network.xml", SIZE),
    "pt2": ("network.pt2", SIZE),
}
if tuple(map(int, torch.__version__.split(".")[:2])) < (
    2,
    7,
):  # torch 2.6 cannot read its own files of these networks, and says so
    del FILES["pt2"]
WAYS = [
    ("fixed", "onnxruntime"),
    ("fixed", "openvino"),
    ("dynamic", "onnxruntime"),
    ("dynamic", "openvino"),
    ("openvino", "openvino"),
    *([("pt2", "torch")] if "pt2" in FILES else []),
]


def scene(size, seed):
    """A drawn street, such as the model was trained on."""
    return draw_scene(size, np.random.default_rng(seed))[0]


def options(images, **changed):
    usual = {
        "tensors": TENSORS,
        "normalize": True,
        "precision": "float32",
        "opset": 18,
        "limits": EXACT,
        "num_images": 3,
    }
    return ExportOptions(**{"size": SIZE, "images": [str(images)], "num_images": 3, **usual, **changed})


@pytest.fixture(scope="module")
def trained():
    return load_model(find_weights(MODEL))


@pytest.fixture(scope="module")
def exported(trained, images, tmp_path_factory):
    """A folder with a file of each format."""
    folder = tmp_path_factory.mktemp("exported")
    for name, size in FILES.values():
        parity = export(trained, folder / name, options(images, size=size))
        assert parity.num_images == 3
        assert parity.changed < 1e-4  # rounding may tip a pixel
        assert parity.difference < 1e-4
        assert parity.mean_iou is None  # no labels
    return folder


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize(("name", "runtime"), WAYS)
def test_every_tensor_is_that_of_torch(trained, exported, pixels, name, runtime):
    network = FileNetwork(exported / FILES[name][0], runtime)
    with torch.no_grad():
        expected, output = trained.model(pixels), network(pixels)
    for kind in TENSORS:
        ours, theirs = getattr(expected, kind), getattr(output, kind)
        ours, theirs = (x[-1] if isinstance(x, tuple) else x for x in (ours, theirs))
        torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4 * ours.abs().max().item())


@pytest.mark.parametrize(("name", "runtime"), WAYS)
def test_masks_are_those_of_torch(exported, name, runtime):
    """With a flipped view."""
    image = scene((96, 128), 7)
    changed = {"long_side": 128, "scales": [1.0], "flip": True}
    expected = ovenet.load(MODEL, device="cpu", **changed)(image)
    result = ovenet.load(exported / FILES[name][0], runtime=runtime, **changed)(image)
    assert len(np.unique(expected.mask)) >= 3
    assert (result.mask != expected.mask).mean() < 1e-3
    np.testing.assert_allclose(result.seed, expected.seed, atol=1e-2)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.ci
def test_a_checkpoint_in_another_runtime(tiny_file, runtime):
    """Two sizes, of which neither is a multiple of 32, whole and in windows."""
    options = {"scales": [0.5, 1.0], "long_side": "native", "overrides": ["TEST.IMAGE_SIZE", "[120, 90]"]}
    for size in ((90, 120), (96, 200)):
        image = scene(size, 5)
        expected = ovenet.load(tiny_file, device="cpu", **options)(image)
        result = ovenet.load(tiny_file, device="cpu", runtime=runtime, **options)(image)
        assert len(np.unique(expected.mask)) >= 3
        assert (result.mask != expected.mask).mean() < 1e-3


def test_a_smaller_image_is_padded_and_cut(trained, exported):
    """What a padded network predicts is what torch predicts of the padded image; seeds are counted in the small one."""
    network = FileNetwork(exported / "fixed.onnx")
    small = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        output = network(small)
        whole = trained.model(torch.nn.functional.pad(small, (0, 32, 0, 32)))
    assert output.fused[0].shape[-2:] == (16, 24)
    torch.testing.assert_close(output.fused[0], whole.fused[-1][..., :16, :24], rtol=0, atol=1e-4)
    spans = torch.tensor([(32 - 1) / (24 - 1), (24 - 1) / (16 - 1)]).view(2, 1, 1)
    torch.testing.assert_close(output.offset, whole.offset[..., :16, :24] * spans, rtol=0, atol=1e-4)


def test_a_larger_image_is_named(exported):
    with pytest.raises(UserError, match=r"fixed\.onnx: .*128x96 .*160x96.*--size"):
        FileNetwork(exported / "fixed.onnx")(torch.zeros(1, 3, 96, 160))


def test_the_files_say_what_they_are(trained, exported):
    model = onnx.load(exported / "fixed.onnx")
    carried = json.loads({item.key: item.value for item in model.metadata_props}[KEY])
    info = openvino.Core().read_model(exported / "network.xml").get_rt_info(KEY).astype(str)
    assert json.loads(info)["source_sha256"] == carried["source_sha256"]
    assert carried["class_names"] == list(trained.info.class_names)
    assert carried["colors"][3] == list(trained.info.palette[3])
    assert carried["size"] == list(SIZE)
    assert carried["normalization"]["mean"] == [127 / 255] * 3  # EfficientNet-Lite's
    assert [output.name for output in model.graph.output] == list(TENSORS)


@pytest.mark.ci
def test_classes_at_the_size_of_the_image(tiny, images, tmp_path):
    export(tiny, tmp_path / "labels.onnx", options(images, tensors=(LABELS,)))
    pixels = torch.from_numpy(scene(SIZE, 9).transpose(2, 0, 1)[None].astype(np.float32))
    (labels,) = open_session(tmp_path / "labels.onnx", "onnxruntime")(pixels.numpy())
    mean, std = (255 * torch.tensor(x).view(3, 1, 1) for x in ((0.5, 0.25, 0.75), (0.5, 1.0, 0.25)))
    with torch.no_grad():
        scores = tiny.model((pixels - mean) / std).fused[-1]
        expected = torch.nn.functional.interpolate(scores, SIZE, mode="bilinear", align_corners=True).argmax(dim=1)
    assert len(np.unique(expected)) >= 3
    assert labels.dtype == np.uint8
    assert (labels != expected.numpy()).mean() < 1e-3
    with pytest.raises(UserError, match=r"labels\.onnx: .*--output scores"):
        ovenet.load(tmp_path / "labels.onnx")


@pytest.mark.ci
def test_normalised_pixels_from_outside(tiny, images, pixels, tmp_path):
    export(tiny, tmp_path / "outside.onnx", options(images, normalize=False, tensors=("fused",)))
    (fused,) = open_session(tmp_path / "outside.onnx", "onnxruntime")(pixels[:1].numpy())
    with torch.no_grad():
        expected = tiny.model(pixels[:1]).fused[-1]
    torch.testing.assert_close(torch.from_numpy(fused), expected, rtol=0, atol=1e-4)
    result = ovenet.load(tmp_path / "outside.onnx")(scene(SIZE, 2))
    assert result.seed is None


def test_offsets_without_confidence_are_no_seed(tiny, images, tmp_path):
    export(tiny, tmp_path / "part.onnx", options(images, tensors=("fused", "offset")))
    result = ovenet.load(tmp_path / "part.onnx")(scene(SIZE, 2))
    assert result.seed is None
    assert result.confidence is None


def test_no_statistics_are_sent(tiny, images, tmp_path, monkeypatch):
    """`openvino.convert_model` sends some, and waits for an answer."""
    telemetry = pytest.importorskip("openvino_telemetry").Telemetry
    sent = []
    monkeypatch.setattr(telemetry, "send_event", lambda *event, **more: sent.append(event))
    export(tiny, tmp_path / "quiet.xml", options(images, tensors=("fused", "offset"), num_images=1))
    assert sent == []


@pytest.mark.parametrize(("suffix", "runtime"), [(".onnx", "onnxruntime"), (".xml", "openvino")])
@pytest.mark.ci
def test_eight_bits(trained, exported, images, suffix, runtime):
    path = (exported / "int8").with_suffix(suffix)
    parity = export(trained, path, options(images, precision="int8", limits=Limits(changed=0.1, mean_iou=1.0)))
    whole = (exported / "fixed.onnx").stat().st_size
    assert path.with_suffix(".bin" if suffix == ".xml" else suffix).stat().st_size < 0.5 * whole
    assert 0 < parity.changed < 0.1
    image = scene(SIZE, 4)
    result = ovenet.load(path, runtime=runtime, long_side=128)(image)
    expected = ovenet.load(MODEL, device="cpu", long_side=128)(image)
    assert (result.mask == expected.mask).mean() > 0.9
    if suffix == ".onnx":  # the same on CPUs without VNNI, where two products of 8 bits overflow
        weights = [x for x in onnx.load(path).graph.initializer if x.data_type == onnx.TensorProto.INT8]
        largest = [int(np.abs(onnx.numpy_helper.to_array(x).astype(int)).max()) for x in weights if x.dims]
        assert len(largest) > 10
        assert max(largest) == 64


@pytest.mark.ci
def test_a_network_that_differs_gets_no_file(tiny, images, tmp_path, monkeypatch):
    """The gate sees what was written, not what was meant: the fused network is spoilt on its way."""
    from ovenet.predictor import export as module

    def spoilt(model):
        fast = real(model)
        with torch.no_grad():
            fast.head.layers[-1].bias[3] += 20.0
        return fast

    real = module.fuse_conv_bn
    monkeypatch.setattr(module, "fuse_conv_bn", spoilt)
    for name in ("spoilt.onnx", "spoilt.xml"):
        with pytest.raises(UserError, match=r"spoilt.*\d % .* at most 0\.1 %.*--max-changed"):
            export(tiny, tmp_path / name, options(images))
    assert not list(tmp_path.iterdir())


def test_images_are_spread_over_the_list(tiny, tmp_path, monkeypatch):
    """The first ones are often neighbours in a film, and know little of the ranges of values."""
    from ovenet.predictor import export as module

    calibrated, compared = [], []

    def compare(plain, written, classes, samples, *rest, **options):
        compared.extend(int(image.mean()) for image, _ in samples)
        return Parity(num_images=3, difference=0.0, changed=0.0, mean_iou=None)

    (tmp_path / "images").mkdir()
    for index in range(9):
        Image.new("RGB", (32, 32), (10 * index,) * 3).save(tmp_path / f"images/{index}.png")
    monkeypatch.setattr(module, "compare", compare)
    monkeypatch.setattr(module, "quantize_onnx", lambda _, images: calibrated.extend(int(i.mean()) for i in images))
    kept = options(tmp_path / "images", tensors=("fused", "offset"), precision="int8", num_calibration=3)
    export(tiny, tmp_path / "a.onnx", kept)
    assert calibrated == compared == [0, 40, 80]


def test_the_limits():
    parity = Parity(num_images=4, difference=0.1, changed=0.02, mean_iou=(0.700, 0.694))
    assert "2.000 % of the pixels" in parity.problem(Limits(changed=0.01, mean_iou=1.0))
    assert "0.600 points of mIoU" in parity.problem(Limits(changed=0.05, mean_iou=0.005))
    assert not parity.problem(Limits(changed=0.05, mean_iou=0.01))


def test_files_that_cannot_be_read(exported, tmp_path):
    for suffix in (".onnx", ".xml", ".pt2"):
        path = (tmp_path / "bad").with_suffix(suffix)
        path.write_bytes(b"nothing of the kind")
        with pytest.raises(UserError, match=rf"{path.name}: "):
            ovenet.load(path)
    model = onnx.load(exported / "fixed.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "silent.onnx")
    with pytest.raises(UserError, match=r"silent\.onnx: .*ovenet export"):
        ovenet.load(tmp_path / "silent.onnx")
    onnx.helper.set_model_props(model, {KEY: json.dumps({"version": 99})})
    onnx.save(model, tmp_path / "newer.onnx")
    with pytest.raises(UserError, match=r"newer\.onnx: .*99\b.*\b1\b"):
        ovenet.load(tmp_path / "newer.onnx")
    with pytest.raises(UserError, match=r"fixed\.onnx: .*torch.*onnx.*onnxruntime"):
        ovenet.load(exported / "fixed.onnx", runtime="torch")


def test_a_runtime_that_is_not_installed(monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "openvino":
            raise ImportError
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"openvino.*pip install .*\[export\]"):
        choose_runtime("openvino", torch.device("cpu"))


def test_auto_is_the_fastest_on_the_cpu():
    assert choose_runtime("auto", torch.device("cpu")) == "openvino"
    assert choose_runtime("auto", torch.device("cuda")) == "torch"
    with pytest.raises(UserError, match=r"openvino .*DEVICE cpu"):
        choose_runtime("openvino", torch.device("cuda"))


@pytest.mark.ci
def test_bfloat16_in_openvino(tiny_file):
    """As far as the processor has it; without, OpenVINO computes in float32."""
    image = scene((96, 128), 5)
    options = {"device": "cpu", "long_side": 128}
    expected = ovenet.load(tiny_file, **options)(image)
    result = ovenet.load(tiny_file, runtime="openvino", overrides=["TEST.PRECISION", "bf16"], **options)(image)
    assert len(np.unique(expected.mask)) >= 3
    assert (result.mask == expected.mask).mean() > 0.97


def test_precisions(trained):
    with pytest.raises(UserError, match=r"onnxruntime .*bf16.*TEST\.PRECISION fp32"):
        ConvertedNetwork(trained.model, "onnxruntime", precision="bf16")


def test_a_network_with_random_bases_is_written_with_the_same_ones_for_every_image(write_checkpoint, images, tmp_path):
    """SegNeXt's published head draws new ones for every prediction, which no file can be compared with."""
    head = {"NAME": "light_ham", "BASES": "official", "CHANNELS": 32}
    trained = load_model(write_checkpoint(tmp_path / "segnext.pth", parts={"HEAD": head}))
    with torch.no_grad():
        first, second = (trained.model(torch.zeros(1, 3, *SIZE)).fused[-1] for _ in range(2))
    assert not torch.equal(first, second)
    parity = export(trained, tmp_path / "segnext.onnx", options(images, num_images=1))
    assert parity.changed < 1e-4
    assert parity.difference < 1e-4


def test_a_test_of_a_file_follows_its_own_settings(exported):
    """Not those of the configuration in the file: results say which they were made with."""
    path = exported / FILES["dynamic"][0]
    tested = load_model(path, overrides=["TEST.IMAGE_SIZE", "[96,64]"])
    assert predictor_for_test(tested, torch.device("cpu")).settings.window_size == (64, 96)
    assert load_model(path).settings.window_size != (64, 96)
    with pytest.raises(UserError, match=r"onnxruntime.*bf16|bf16.*onnxruntime"):
        load_model(path, overrides=["TEST.PRECISION", "bf16"])


def test_a_file_has_no_segmentor(exported):
    with pytest.raises(UserError, match=FILES["fixed"][0]):
        _ = load_model(exported / FILES["fixed"][0]).model
