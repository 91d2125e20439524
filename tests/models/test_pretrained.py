"""The table of trained models that others publish, and what it says about the files."""

import re
from dataclasses import replace

import pytest
import torch
from tests.shipped import shipped

import ovenet
from ovenet.builders import build_model
from ovenet.config import load_config
from ovenet.config.loading import find_experiment
from ovenet.data.catalog import CATALOG
from ovenet.errors import UserError
from ovenet.models import pretrained
from ovenet.models.pretrained import MODELS, bundled_models, pretrained_models, pretrained_of, weights_path
from ovenet.models.weights import load_weights
from ovenet.predictor.sources import is_shared, models_here, name_of
from ovenet.utils.meta import meta_device

WITH_ADDRESS = [model for model in pretrained_models().values() if model.address]


@pytest.fixture(autouse=True)
def _nothing_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def test_every_model_has_an_experiment_and_a_file_of_its_own():
    assert len(WITH_ADDRESS) == 24 + 6 + 3
    assert len({model.file for model in pretrained_models().values()}) == len(pretrained_models())
    for model in pretrained_models().values():
        assert find_experiment(model.experiment).is_file(), model.name
        assert CATALOG[model.experiment.split("/")[0]], model.name
        assert all(score is None or 30 < score < 90 for score in model.mean_iou), model.name
        assert pretrained_of(MODELS / model.file) == model
        assert model.page.startswith("https://github.com/")


def test_addresses_say_which_model_and_how_its_digest_begins():
    assert len({model.sha256 for model in WITH_ADDRESS}) == len(WITH_ADDRESS)
    for model in WITH_ADDRESS:
        base = re.escape("https://download.openmmlab.com/mmsegmentation/v0.5/")
        match = re.fullmatch(rf"{base}(\w+)/([\w-]+)/\2_\d{{8}}_\d{{6}}-([0-9a-f]{{8}})\.pth", model.address)
        assert match, model.address
        assert (match[1], match[3]) == (model.name.split("_")[0], model.sha256)
        for word in re.findall(r"hr\d+s?|r101|mit-b\d|mscan-\w|\d+k(?=_)|ade20k|cityscapes|voc12aug", model.name):
            assert re.search(rf"(?<![a-z\d]){word}(?![a-z\d])", match[2]), (model.name, match[2])


def test_models_without_an_address_say_where_to_get_them_and_where_to_put_them():
    for model in pretrained_models().values():
        if not model.address:
            with pytest.raises(UserError) as error:
                ovenet.load(model.name)
            assert all(word in str(error.value) for word in (model.page, f"pretrained_models/{model.file}"))
            assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "keys", "classifier"),
    [
        ("ocrnet_hr18s_4xb4-160k_ade20k-512x512", "mmseg_ocrnet_hr18s_cityscapes", ()),
        ("segformer_mit-b0_8xb2-160k_ade20k-512x512", "segformer_b0_ol_ade20k", ("offset_learning",)),
        ("segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512", "segnext_t_ol_ade20k", ("offset_learning",)),
    ],
)
def test_published_tensors_load_whole(name, keys, classifier):
    """Without offset learning, files have the same tensors but its own; OCRNets differ by the number of classes."""
    from tests.models.test_weights import published

    model = pretrained_models()[name]
    with meta_device():
        network = build_model(load_config(model.experiment))
    state = {
        key: torch.empty((150, *tensor.shape[1:]), device="meta") if ".conv_seg." in key else tensor
        for key, tensor in published(keys).items()
        if not any(word in key for word in classifier)
    }
    report = load_weights(network, state, name, whole=True)
    assert report.missing == report.mismatched == report.unexpected == ()
    assert report.unused == 0


def test_segformers_are_tested_whole_as_published():
    for model in WITH_ADDRESS:
        overrides = [text for setting in model.settings.items() for text in setting]
        assert load_config(model.experiment, overrides).TEST.STRIDE == [], model.name


def test_names_stand_for_files(tmp_path):
    name = "hrnet_cs_8090_torch11"
    (tmp_path / name).write_text("a file of that name wins")
    assert weights_path(name).read_text() == "a file of that name wins"
    (tmp_path / name).unlink()
    (tmp_path / "pretrained_models").mkdir()
    (tmp_path / f"pretrained_models/{name}.pth").write_bytes(b"")
    assert weights_path(name).name == f"{name}.pth"
    assert name_of(weights_path(name)) == name
    assert is_shared(weights_path(name))
    assert weights_path("nowhere/model.pth").name == "model.pth"
    assert weights_path("camvid-lite0") == MODELS / "camvid-lite0.safetensors"
    with pytest.raises(UserError, match=r"ocrnet_hr18s_ade20k: .*ocrnet_hr18s_4xb4-160k_ade20k-512x512.*scenes-lite0"):
        weights_path("ocrnet_hr18s_ade20k")


def test_a_file_put_there_by_hand_is_checked(tmp_path, monkeypatch):
    name = "ocrnet_hr18s_4xb4-160k_ade20k-512x512"
    monkeypatch.setitem(pretrained_models(), name, replace(pretrained_models()[name], file="a-ba7816bf.pth"))
    for folder in (tmp_path / "pretrained_models", tmp_path / "torch/hub/checkpoints"):
        folder.mkdir(parents=True)
        path = folder / "a-ba7816bf.pth"
        path.write_bytes(b"abc")  # its SHA-256 is the example of FIPS 180
        assert weights_path(name).resolve() == path
        path.write_bytes(b"abcd")
        with pytest.raises(UserError, match=r"a-ba7816bf\.pth: not .*sha256 begins with ba7816bf.*--cfg ade20k/ocrnet"):
            weights_path(name)
        path.unlink()


def test_lists(tmp_path):
    assert ovenet.list_models("*-lite0", pretrained=True) == ["camvid-lite0", "scenes-lite0"]
    assert ovenet.list_models("segnext*_1xb16*", pretrained=True) == [m.name for m in WITH_ADDRESS[-3:]]
    names = {f"{path.relative_to(path.parents[1]).parts[0]}/{path.stem}" for path in shipped("*/[!_]*.yaml")}
    assert names - {name for name in names if name.startswith("_base_/")} <= set(ovenet.list_models())
    assert "ade20k/segformer_mit-b0_8xb2-160k_ade20k-512x512" in ovenet.list_models("ade20k/segformer*")
    assert all(find_experiment(name).is_file() for name in ovenet.list_models())


def test_general_models_come_before_those_of_streets(tmp_path):
    assert models_here() == ["camvid-lite0", "scenes-lite0"]
    names = [
        "segformer_mit-b5_8xb2-160k_ade20k-512x512", "hrnet_ade20k_4312_torch04", "hrnet_cocostuff_3617_torch04",
        "ocrnet_hr48_4xb2-160k_cityscapes-512x1024", "hrnet_cs_8090_torch11",
    ]  # fmt: skip
    (tmp_path / "pretrained_models").mkdir()
    for name in reversed(names):
        (tmp_path / "pretrained_models" / pretrained_models()[name].file).write_bytes(b"")
    assert models_here() == [*names, "camvid-lite0", "scenes-lite0"]


def test_bundled_models_are_in_the_table():
    table = pretrained._table()["bundled"]
    assert sorted(table) == sorted(path.stem for path in shipped("*.safetensors", MODELS))
    for name, model in bundled_models().items():
        card = (MODELS / f"{name}.md").read_text(encoding="utf-8")
        (row,) = [line for line in card.splitlines() if line.startswith("| mIoU |")]
        assert all(row.endswith(f" {score:.2f} |") for score in model.mean_iou if score), name  # S_f is the last column
