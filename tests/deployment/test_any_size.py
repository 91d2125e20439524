"""Files of ``--size dynamic``, run as another program would: ONNX Runtime or OpenVINO, and images of odd sizes."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import openvino
import pytest
import torch
from tests.engine.families import EXPERIMENTS, FAMILIES, RIVALS, family_config

from ovenet import UserError
from ovenet.builders import build_model
from ovenet.builders.loading import load_model
from ovenet.config import load_config
from ovenet.deployment import ExportableNetwork, FileNetwork
from ovenet.deployment.about import LABELS, TENSORS
from ovenet.deployment.formats import read_about, write_onnx
from ovenet.deployment.onnx_graph import operators
from ovenet.deployment.parity import EXACT
from ovenet.geometry import average_pool
from ovenet.models.conv_bn import fuse_conv_bn
from ovenet.predictor.export import EXAMPLE_SIZE, ExportOptions, _traced_size, export
from ovenet.predictor.sources import find_weights
from ovenet.utils.meta import meta_device

SIZES = [(64, 96), (97, 131), (75, 33), (66, 94), (34, 161)]  # one of multiples of 32, others with all remainders by 4
OTHERS = {
    "resized_twice": "cityscapes/ocrnet_hr18s_4xb2-40k_cityscapes-512x1024.yaml",
    "fork": "camvid/ovenet_hrnet_w18_small_v2.yaml",
    "lite0_ocr": "camvid/lite0_ocr.yaml",
    "segformer": "ade20k/segformer_mit-b0_offset_learning_8xb2-160k_ade20k-512x512.yaml",
    "pyramid": "ade20k/srm_crm_ablation_ppm.yaml",
    "criss_cross": "ade20k/srm_crm_ablation_ccam.yaml",
}


def documented_operators(family):
    """Operators that docs/deployment.md lists for a network: those of the unnamed rows, and its own."""
    text = (Path(__file__).parents[2] / "docs/deployment.md").read_text().split("### Operators")[1].split("## ")[0]
    rows = re.findall(r"^\| (.+) \| ([A-Z][\w ]+|none more) \|$", text, flags=re.MULTILINE)
    assert any(f"`{family}`" in names for names, _ in rows)
    return {one for names, row in rows if "`" not in names or f"`{family}`" in names for one in row.split()}


def pixels(size, batch=2):
    noise = torch.randn(batch, 3, 9, 13, generator=torch.Generator().manual_seed(size[0]))
    return torch.nn.functional.interpolate(noise, size, mode="bicubic")


def settled(cfg):
    """A network whose BatchNorm has statistics of what it sees, so that no number of it is huge."""
    torch.manual_seed(0)
    model = build_model(cfg).train()
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    with torch.no_grad():
        model(pixels((128, 160)))
    return model.eval()


OF_CI = {"offseg", "srm_crm", "segfix"}
CASES = [
    *(
        pytest.param(name, marks=[pytest.mark.ci] if name in OF_CI else [])
        for name in (*FAMILIES, "segfix", "lite0_ocr")
    ),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("resized_twice", "fork", "segformer", "pyramid", "criss_cross")  # hrnet_ocr_fork has a fork too
    ),
]


@pytest.mark.parametrize("family", CASES)
def test_a_file_gives_what_torch_gives_at_every_size(tiny_cfg, tmp_path, family):
    """Batches of two, too, and OpenVINO where it costs little."""
    if family in {**FAMILIES, **RIVALS}:
        cfg = family_config(tiny_cfg, family)
    else:
        cfg = load_config(EXPERIMENTS / OTHERS[family], ["DEVICE", "cpu", "MODEL.BACKBONE.PRETRAINED", ""])
    model, path = settled(cfg), tmp_path / "any.onnx"
    tensors = ("fused",) if model.max_offset is None else TENSORS
    align_corners = cfg.MODEL.ALIGN_CORNERS
    network = ExportableNetwork(fuse_conv_bn(model), tensors, align_corners=align_corners, gathers=True).eval()
    write_onnx(network, torch.zeros(1, 3, *EXAMPLE_SIZE), path, tensors, is_dynamic=True)
    assert set(operators(path)) <= documented_operators(family)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    compiled = openvino.Core().compile_model(str(path), "CPU") if family == "hrnet_ocr_fork" else None
    for size in SIZES:
        images = pixels(size)
        with torch.no_grad():
            output = model(images)
        scores = output.predictions(-1)
        maps = {**scores, "offset": output.offset, "confidence": output.confidence}
        runs = [session.run(None, {"images": images.numpy()})]
        if compiled is not None:
            runs.append(list(compiled(images.numpy()).values()))
        for name, *given in zip(tensors, *runs, strict=True):
            limit = 1e-4 * maps[name].abs().max().item()
            for values in given:
                torch.testing.assert_close(torch.from_numpy(values), maps[name], rtol=0, atol=limit)


def options(images, **changed):
    usual = {"size": None, "tensors": TENSORS, "normalize": True, "precision": "float32", "opset": 18, "limits": EXACT}
    return ExportOptions(**{**usual, "images": [str(images)], "num_images": 3, **changed})


@pytest.fixture(scope="module")
def trained():
    return load_model(find_weights("scenes-lite0"))


def test_an_export_is_compared_at_odd_sizes_too_and_needs_no_padding(trained, images, tmp_path, monkeypatch):
    from ovenet.predictor import export as module

    seen = []

    def compare(plain, written, classes, samples, *rest, **named):
        samples = list(samples)
        seen.extend(image.shape[:2] for image, _ in samples)
        return real(plain, written, classes, samples, *rest, **named)

    real = module.compare
    monkeypatch.setattr(module, "compare", compare)
    parity = export(trained, tmp_path / "any.onnx", options(images))
    assert parity.difference < 1e-4
    assert len({(height % 32, width % 32) for height, width in seen[:3]}) == 3
    assert len(seen) == 5
    assert len({round(width / height, 1) for height, width in (seen[0], *seen[3:])}) == 3  # two other aspects
    assert any(height % 2 for height, _ in seen)
    assert any(width % 2 for _, width in seen)
    assert read_about(tmp_path / "any.onnx").multiple == 1
    odd = pixels((45, 71), batch=1)
    with torch.no_grad():
        expected = trained.model(odd).fused[-1]
    torch.testing.assert_close(FileNetwork(tmp_path / "any.onnx")(odd).fused[0], expected, rtol=0, atol=1e-3)


@pytest.mark.ci
def test_a_file_that_is_wrong_at_odd_sizes_is_not_written(trained, images, tmp_path, monkeypatch):
    """Traced from an image of a good size, a network has no padding in it."""
    from ovenet.predictor import export as module

    monkeypatch.setattr(module, "EXAMPLE_SIZE", (320, 448))
    with pytest.raises(UserError):
        export(trained, tmp_path / "any.onnx", options(images))
    assert not list(tmp_path.iterdir())


def test_labels_have_the_size_of_the_image(tiny, images, tmp_path):
    export(tiny, tmp_path / "labels.onnx", options(images, tensors=(LABELS,), normalize=False))
    odd = pixels((45, 71))
    (labels,) = onnxruntime.InferenceSession(str(tmp_path / "labels.onnx")).run(None, {"images": odd.numpy()})
    with torch.no_grad():
        scores = tiny.model(odd).fused[-1]
    expected = torch.nn.functional.interpolate(scores, (45, 71), mode="bilinear", align_corners=True).argmax(dim=1)
    assert labels.shape == (2, 45, 71)
    assert (labels != expected.numpy()).mean() < 1e-3


@pytest.mark.ci
def test_other_sizes_than_that_of_a_file_are_refused_by_the_runtimes(tiny, images, tmp_path):
    export(tiny, tmp_path / "fixed.onnx", options(images, size=(64, 96), num_images=1))
    session = onnxruntime.InferenceSession(str(tmp_path / "fixed.onnx"))
    for shape in ((1, 3, 65, 96), (2, 3, 64, 96), (1, 64, 96, 3)):
        with pytest.raises(Exception, match="Got invalid dimensions for input: images"):
            session.run(None, {"images": np.zeros(shape, np.float32)})
    with pytest.raises(Exception, match="Unexpected input data type"):
        session.run(None, {"images": np.zeros((1, 3, 64, 96), np.uint8)})


def test_what_cannot_be_traced_is_one_line(tmp_path, capsys):
    class Smooth(torch.nn.Module):
        def forward(self, images):
            return (torch.nn.functional.interpolate(images, (7, 9), mode="bicubic", antialias=True),)

    with pytest.raises(UserError, match="bicubic"):
        write_onnx(Smooth(), torch.zeros(1, 3, 20, 30), tmp_path / "any.onnx", ("fused",), is_dynamic=True)
    assert capsys.readouterr().out == ""


@pytest.mark.ci
def test_mask2former_has_a_size():
    cfg = load_config(EXPERIMENTS / "synthetic/mask2former_lite0.yaml", ["MODEL.BACKBONE.PRETRAINED", ""])

    class Trained:
        with meta_device():
            model = build_model(cfg)

    Trained.cfg = cfg
    with pytest.raises(UserError, match=r"--size dynamic: .*mask2former.*--size HxW"):
        _traced_size(Trained)


@pytest.mark.slow
@pytest.mark.parametrize("family", [name for name in [*RIVALS, "mask2former"] if name != "segfix"])  # the others: above
def test_no_network_is_written_with_a_grid_sample(tiny_cfg, tmp_path, family):
    if family == "mask2former":
        cfg = load_config(EXPERIMENTS / "synthetic/mask2former_lite0.yaml", ["MODEL.BACKBONE.PRETRAINED", ""])
    else:
        cfg = family_config(tiny_cfg, family)
    model, path, size = settled(cfg), tmp_path / "network.onnx", (64, 96)
    tensors = ("fused",) if model.max_offset is None else TENSORS
    network = ExportableNetwork(model, tensors, align_corners=cfg.MODEL.ALIGN_CORNERS, gathers=True).eval()
    is_dynamic = family not in ("mask2former", "vit")  # their positions are those of one size
    write_onnx(
        network, torch.zeros(1, 3, *(EXAMPLE_SIZE if is_dynamic else size)), path, tensors, is_dynamic=is_dynamic
    )
    assert set(operators(path)) <= documented_operators(family) | {"BatchNormalization"}  # not fused here
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for images in (pixels(size, 1), *([pixels((97, 131)), pixels((161, 34))] if is_dynamic else [])):
        with torch.no_grad():
            expected = model(images).fused[-1]
        fused = session.run([session.get_outputs()[tensors.index("fused")].name], {"images": images.numpy()})[0]
        limit = 1e-4 * expected.abs().max().item()
        torch.testing.assert_close(torch.from_numpy(fused), expected, rtol=0, atol=limit)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (6, 6), (5, 7)])
def test_traced_means_are_those_of_torch(size):
    """`adaptive_avg_pool2d`, which the exporter does not know for sizes that change."""
    traced = torch.jit.trace(lambda x: average_pool(x, size), torch.rand(1, 2, 12, 14))
    x = torch.rand(2, 3, 11, 9)
    rows, columns = (
        [slice(i * n // parts, -(-(i + 1) * n // parts)) for i in range(parts)]
        for n, parts in zip((11, 9), size, strict=True)
    )
    means = [torch.stack([x[..., r, c].mean((2, 3)) for c in columns], dim=-1) for r in rows]
    torch.testing.assert_close(traced(x), torch.stack(means, dim=-2))
