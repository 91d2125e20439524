"""Published weights by name: downloaded from a server on this machine, and used by the commands."""

import gzip
import hashlib
import logging
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.file_server import file_server

import ovenet
from ovenet.builders import build_model
from ovenet.builders.models import initialize_model
from ovenet.commands import app
from ovenet.config import load_config
from ovenet.models import pretrained
from ovenet.models.pretrained import pretrained_models
from ovenet.predictor.predictor import Predictor

NAME = "ocrnet_hr18s_4xb4-160k_ade20k-512x512"
KEYS = Path(__file__).parents[1] / "models/published_keys/mmseg_ocrnet_hr18s_cityscapes.txt.gz"


def published_tensors() -> dict[str, torch.Tensor]:
    """Random numbers under the published names, with the shapes of ADE20K's 150 classes."""
    random = torch.Generator().manual_seed(0)
    tensors = {}
    for line in gzip.decompress(KEYS.read_bytes()).decode().splitlines():
        key, *shape = line.split()
        size = [int(n) for n in shape[0].split("x")] if shape else []
        size = [150, *size[1:]] if ".conv_seg." in key else size
        if len(size) == 4:
            tensors[key] = torch.randn(size, generator=random) / (size[1] * size[2] * size[3]) ** 0.5
        else:
            tensors[key] = torch.ones(size) if key.endswith(("weight", "var")) else torch.zeros(size)
    return tensors


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    """The bytes of the file, as mmsegmentation saves it."""
    path = tmp_path_factory.mktemp("published") / "file.pth"
    torch.save({"meta": {"CLASSES": ("wall",), "PALETTE": [[120, 120, 120]]}, "state_dict": published_tensors()}, path)
    return path.read_bytes()


@pytest.fixture
def server(content, tmp_path, monkeypatch):
    """A mirror that has the model, and an empty cache."""
    model = pretrained_models()[NAME]
    digest = hashlib.sha256(content).hexdigest()[:8]
    address = model.address.replace(model.sha256, digest)
    model = replace(model, file=model.file.replace(model.sha256, digest), address=address)
    monkeypatch.setitem(pretrained_models(), NAME, model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    with file_server() as server:
        monkeypatch.setenv(pretrained.MIRROR, server.address + "/")
        server.files[address.removeprefix("https://download.openmmlab.com")] = content
        yield server


def photo(path: Path) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save(path)
    return path


def test_a_name_is_downloaded_once_and_used_by_every_command(server, content, tmp_path, capsys, run_tool):
    server.cuts = [10**7]
    predictor = ovenet.load(NAME, long_side=64)
    told = capsys.readouterr().err
    assert told.count("\n") == 2
    assert all(word in told for word in ("ADE20K", "37.19 %", "Apache-2.0", "non-commercial", server.address))
    assert server.requests == [None, "bytes=10000000-"]
    file = pretrained_models()[NAME].find()
    assert file.parent == tmp_path / "torch/hub/checkpoints"
    assert file.read_bytes() == content

    image = photo(tmp_path / "photo.png")
    (tmp_path / "other.pth").write_bytes(content)
    by_file = Predictor.from_checkpoint(tmp_path / "other.pth", config=f"ade20k/{NAME}", long_side=64)
    mask = predictor(image).mask
    np.testing.assert_array_equal(mask, by_file(image).mask)
    assert len(np.unique(mask)) > 2
    assert predictor.info.class_names[:2] == ("wall", "building")

    server.server_close()  # from here on without a network
    result = run_tool("infer", NAME, image, "--long-side", 64, "--output", tmp_path / "infer", "--save", "ids")
    assert (result.code, "downloaded" in result.err, "Apache" in result.err) == (0, False, False), result.err
    (ids,) = (tmp_path / "infer").rglob("photo.png")
    np.testing.assert_array_equal(np.asarray(Image.open(ids)), mask + 1)  # ADE20K counts from 1
    assert app.sound_models()[0] == NAME
    row = next(line for line in run_tool("list_models", "--pretrained").out.splitlines() if NAME in line)
    assert row == f"| {NAME} | ADE20K | 37.19, 38.4 | Apache-2.0 | {len(content) / 1e6:.0f} | {file} |"


def test_training_takes_all_but_the_classifier(server, caplog):
    overrides = ["DATASET.NUM_CLASSES", "7", "MODEL.BACKBONE.PRETRAINED"]
    logs, states = [], []
    for source in (NAME, None):
        source = source or str(pretrained_models()[NAME].find())
        cfg = load_config("ade20k/" + NAME, [*overrides, source])
        model = build_model(cfg)
        torch.manual_seed(1)
        with caplog.at_level(logging.INFO, logger="ovenet"):
            caplog.clear()
            (report,) = initialize_model(model, cfg)
        logs.append([record.getMessage().replace(source, "FILE") for record in caplog.records])
        states.append(model.state_dict())
    assert logs[0] == logs[1]
    assert logs[0][-1].endswith(": all but head.auxiliary.layers.4, head.classifier, which are drawn at random")
    names = {"head.auxiliary.layers.4.weight", "head.auxiliary.layers.4.bias"}
    names |= {"head.classifier.weight", "head.classifier.bias"}
    assert {entry.split(":")[0] for entry in report.mismatched} == names
    assert report.missing == report.unexpected == ()
    assert all(torch.equal(states[0][name], states[1][name]) for name in report.loaded)
    stem = published_tensors()["backbone.conv1.weight"]
    assert torch.equal(states[0]["backbone.conv1.weight"], stem)


@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        ("infer", (NAME, "photo.png")),
        ("test", (NAME, "DATASET.ROOT", "data")),
        ("export", (NAME,)),
        ("test", ("--cfg", f"ade20k/{NAME}", "TEST.MODEL_FILE", NAME)),
    ],
)
def test_what_cannot_be_had_is_one_line(server, tmp_path, run_tool, tool, arguments):
    photo(tmp_path / "photo.png")
    file = tmp_path / "torch/hub/checkpoints" / pretrained_models()[NAME].file
    server.status = 404
    result = run_tool(tool, *arguments)
    *_, line = result.err.splitlines()
    assert result.code == 2
    assert line.startswith(f"error: {server.address}/mmsegmentation/v0.5/ocrnet/")
    assert all(word in line for word in ("HTTP 404", str(file))), line
    assert not file.exists()


def test_bad_names_and_files_are_one_line(server, tmp_path, run_tool, monkeypatch):
    image = photo(tmp_path / "photo.png")
    for name, words in {
        NAME.replace("hr18s", "hr19s"): (NAME, "ovenet models --pretrained"),
        "hrnet_ade20k_4312_torch04": ("https://github.com/HRNet/", "pretrained_models/hrnet_ade20k_4312_torch04.pth"),
    }.items():
        result = run_tool("infer", name, image)
        assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
        assert all(word in result.err for word in (name, *words)), result.err
    result = run_tool("list_models", "--pretrained", "nothing*")
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    monkeypatch.setenv(pretrained.MIRROR, "mirror.example")
    result = run_tool("infer", NAME, image)
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert "http://" in result.err
    os.makedirs("pretrained_models")
    (tmp_path / "pretrained_models" / pretrained_models()[NAME].file).write_bytes(b"cut")
    result = run_tool("infer", NAME, image)
    assert (result.code, len(result.err.splitlines())) == (2, 1), result.err
    assert "sha256" in result.err
    assert NAME not in app.sound_models()
