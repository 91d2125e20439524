"""What is exported for other hardware: float16, TensorRT and Core ML."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from tests.four_convolutions import write_checkpoint  # noqa: F401 - a fixture
from tests.traced import traced_once

from ovenet.deployment import FileNetwork
from ovenet.deployment.formats import read_about
from ovenet.deployment.onnx_graph import operators
from ovenet.deployment.runtimes import open_session

TOOLS = Path(__file__).parents[2] / "tools/deployment"
SUFFIX_FORMATS = {".onnx": "onnx", ".pt2": "pt2"}


@pytest.fixture(scope="module", autouse=True)
def _traced_once():
    with traced_once():
        yield


@pytest.fixture(scope="module")
def weights(write_checkpoint, tmp_path_factory):  # noqa: F811
    return write_checkpoint(tmp_path_factory.mktemp("weights") / "w.pth")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    Image.fromarray(small).resize((96, 64), Image.Resampling.BICUBIC).save(folder / "a.png")
    return folder


@pytest.fixture
def exported(run_tool, weights, photos, tmp_path):
    """A function that exports a file of one size."""

    def make(name, *arguments):
        done = run_tool("export", weights, tmp_path / name, "--size", "64x96", "--images", photos, *arguments)
        assert done.code == 0, done.err
        return tmp_path / name

    return make


@pytest.mark.ci
def test_the_seed_is_sampled_as_asked(exported):
    """An earlier version wrote GridSample; both run in every runtime, and give the same."""
    gathers, samples = exported("new.onnx"), exported("old.onnx", "--seed-sampling", "grid_sample")
    assert "GridSample" not in operators(gathers)
    assert "GridSample" in operators(samples)
    pixels = torch.randn(1, 3, 64, 96)
    for runtime in ("onnxruntime", "openvino"):
        new, old = (FileNetwork(path, runtime)(pixels).fused[0] for path in (gathers, samples))
        torch.testing.assert_close(new, old, rtol=0, atol=1e-4 * old.abs().max().item())


def test_float16_keeps_positions_scores_and_the_outside_in_float32(exported):
    path = exported("half.onnx", "--precision", "fp16", "--max-changed", "2")
    graph, types = onnx.load(path).graph, onnx.TensorProto
    assert read_about(path).precision == "float16"
    assert "GridSample" not in operators(path)
    assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {types.FLOAT}
    makers = {value: node for node in graph.node for value in node.output}
    kinds = {one.name: one.data_type for one in graph.initializer}
    convolutions = [kinds[node.input[1]] for node in graph.node if node.op_type == "Conv"]
    assert types.FLOAT16 in convolutions
    assert types.FLOAT in convolutions  # the last ones
    for node in graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == types.FLOAT:
            maker = makers.get(node.input[0])
            assert maker is None or maker.op_type != "Cast" or maker.attribute[0].i != types.FLOAT16
    pixels = torch.randn(1, 3, 64, 96)
    half, whole = (FileNetwork(one)(pixels).offset for one in (path, exported("whole.onnx")))
    width = half.shape[3]
    assert (half - whole).abs().max() < 0.1 * 2 / (width - 1)  # a tenth of a pixel


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("a.pt2", ("--format", "pt2", "--precision", "fp16"), ("fp16", "--format onnx")),
        ("a.onnx", ("--precision", "fp8"), ("--precision", "fp16")),
        ("a.onnx", ("--seed-sampling", "nearest"), ("--seed-sampling", "gather")),
    ],
)
def test_bad_precisions(run_tool, weights, photos, tmp_path, name, arguments, words):
    done = run_tool("export", weights, tmp_path / name, "--size", "64x96", "--images", photos, *arguments)
    assert done.code == 2
    assert all(word in done.err.splitlines()[-1] for word in words)
    assert not list(tmp_path.iterdir())


def test_an_engine_is_compared_with_its_file(exported):
    spec = importlib.util.spec_from_file_location("build_tensorrt", TOOLS / "build_tensorrt.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    path = exported("network.onnx")
    about, run = read_about(path), open_session(path, "onnxruntime")

    def wrong(pixels):
        """The least likely class everywhere in the left half."""
        maps = dict(zip(about.tensors, run(pixels), strict=True))
        half = maps["fused"].shape[3] // 2
        maps["fused"][:, maps["fused"].mean((0, 2, 3)).argmin(), :, :half] = 1e3
        return list(maps.values())

    image = np.random.default_rng(1).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    same, other = (tool.compare_runs(about, run, given, [image]) for given in (run, wrong))
    assert same.changed == same.difference == 0
    assert same.num_images == 1
    assert other.changed > 0.3


@pytest.mark.parametrize(
    ("tool", "package", "name", "made", "arguments"),
    [
        ("deployment/build_tensorrt", "tensorrt", "a.onnx", "a.plan", True),
        ("deployment/to_coreml", "coremltools", "a.pt2", "a.mlpackage", False),
    ],
)
def test_without_its_package_a_tool_says_so(
    run_tool, exported, photos, tmp_path, monkeypatch, tool, package, name, made, arguments
):
    monkeypatch.setitem(sys.modules, package, None)
    path = exported(name, "--format", SUFFIX_FORMATS[Path(name).suffix])
    done = run_tool(tool, path, tmp_path / made, *(("--images", photos) if arguments else ()))
    assert done.code == 2
    assert package in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not (tmp_path / made).exists()


def test_an_engine_has_one_size(run_tool, weights, photos, tmp_path):
    done = run_tool("export", weights, tmp_path / "any.onnx", "--size", "dynamic", "--images", photos)
    assert done.code == 0, done.err
    done = run_tool("deployment/build_tensorrt", tmp_path / "any.onnx", tmp_path / "a.plan", "--images", photos)
    assert done.code == 2
    assert "--size HxW" in done.err
