"""Three lines of Python, from a checkpoint alone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from tests.shipped import shipped

import ovenet
from ovenet import Predictor, UserError, build_model, builders
from ovenet.commands import pack
from ovenet.data.catalog import find_dataset
from ovenet.data.info import DatasetInfo
from ovenet.predictor.predictor import as_image
from ovenet.predictor.sources import MODELS
from ovenet.utils.environment import tf32


@pytest.fixture
def checkpoint(tiny_cfg, tmp_path):
    """A file as training writes it."""
    cfg = tiny_cfg("TEST.SCALE_LIST", "0.5,1.0", "TEST.FLIP_TEST", "True")
    info = builders.dataset_info(cfg)
    path = tmp_path / "best.pth"
    content = {"model": build_model(cfg).state_dict(), "config": cfg.dump(), "dataset_info": info.as_dict()}
    torch.save(content, path)
    return path


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (33, 47, 3)).astype(np.uint8)


def test_three_lines(checkpoint, pixels, tiny_cfg):
    predictor = Predictor.from_checkpoint(checkpoint)
    mask = predictor(pixels).mask
    assert mask.shape == (33, 47)
    assert mask.dtype == np.uint8
    assert predictor.info.class_names[mask[0, 0]]
    assert predictor.settings.scales == (0.5, 1.0)
    cfg = tiny_cfg("TEST.SCALE_LIST", "0.5,1.0", "TEST.FLIP_TEST", "True")
    same = builders.load_predictor(cfg, checkpoint, torch.device("cpu")).predict(pixels).labels["fused"]
    np.testing.assert_array_equal(mask, same)


def test_any_image(checkpoint, pixels, tmp_path):
    predictor = Predictor.from_checkpoint(checkpoint, scales=[1.0], flip=False)
    expected = predictor(pixels)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    alpha = np.dstack((pixels, np.full((33, 47), 9, np.uint8)))
    wide = pixels.astype(np.uint16) * 256 + 77
    for same in (tmp_path / "a.png", str(tmp_path / "a.png"), Image.fromarray(pixels), alpha, wide):
        np.testing.assert_array_equal(predictor(same), expected)
    grey = pixels[..., 0]
    np.testing.assert_array_equal(predictor(grey), predictor(np.dstack([grey] * 3)))


@pytest.mark.parametrize("bad", [np.zeros((4, 5), np.float32), np.zeros((4, 5, 2), np.uint8), np.zeros(4, np.uint8)])
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(ValueError, match=r"expected \(H, W\)"):
        as_image(bad)


def test_native_resolution_runs_in_windows(checkpoint):
    sizes = []
    predictor = Predictor.from_checkpoint(checkpoint, scales=[1.0], flip=False, long_side="native")
    predictor.model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    predictor(np.zeros((70, 130, 3), np.uint8))
    assert sizes == [(64, 64)] * 6  # 2 rows of 3 windows of TEST.IMAGE_SIZE


def test_another_long_side_keeps_the_padding_of_the_dataset(checkpoint):
    """20 x 30 up to multiples of 16."""
    content = torch.load(checkpoint)
    content["dataset_info"]["evaluation"] = {"resize": "long_side", "multiple_of": 16}
    torch.save(content, checkpoint)
    predictor = Predictor.from_checkpoint(checkpoint, scales=[1.0], flip=False, long_side="native")
    sizes = []
    predictor.model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    predictor(np.zeros((20, 30, 3), np.uint8))
    assert sizes == [(32, 32)]


def test_the_users_own_dataset_need_not_be_there(checkpoint, pixels):
    content = torch.load(checkpoint)
    names = [f"thing {i}" for i in range(11)]
    own = DatasetInfo("town", tuple(names), tuple((i, i, i) for i in range(11)), tuple(range(20, 31)), upright=True)
    content["dataset_info"] = json.loads(json.dumps(own.as_dict()))  # lists, as after any reading
    content["config"] = content["config"].replace("DATASET: camvid", "DATASET: town")
    torch.save(content, checkpoint)
    predictor = Predictor.from_checkpoint(checkpoint)
    assert list(predictor.info.class_names) == names
    assert predictor(pixels).shape == (33, 47)


def test_older_checkpoints_take_the_catalogs_classes(checkpoint):
    content = torch.load(checkpoint)
    del content["dataset_info"]
    torch.save(content, checkpoint)
    assert Predictor.from_checkpoint(checkpoint).info.class_names[0] == "sky"


def test_weights_alone_need_their_experiment_file(checkpoint, tmp_path, write_config):
    torch.save(torch.load(checkpoint)["model"], tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"weights\.pth: .*configuration.*--cfg FILE"):
        Predictor.from_checkpoint(tmp_path / "weights.pth")
    config = tmp_path / "branched_seg_hrnet_4.yaml"
    assert Predictor.from_checkpoint(tmp_path / "weights.pth", config=config).info.name == "camvid"


def test_weights_of_another_class_count_are_refused(checkpoint):
    content = torch.load(checkpoint)
    content["config"] = content["config"].replace("NUM_CLASSES: 11", "NUM_CLASSES: 19")
    torch.save(content, checkpoint)
    with pytest.raises(ValueError, match="11"):
        Predictor.from_checkpoint(checkpoint)


def test_infos_survive_the_checkpoint():
    for name in ("ade20k", "acdc", "lip"):
        info = find_dataset(name, None)
        back = DatasetInfo.from_dict(info.as_dict())
        assert back.evaluation == info.evaluation
        assert back.submission == info.submission
        assert back.flip_pairs == info.flip_pairs
        assert back.label_id_table().tolist() == info.label_id_table().tolist()


@pytest.mark.parametrize("allowed", [True, False])
def test_a_predictor_leaves_the_settings_of_torch_alone(tiny_cfg, tmp_path, allowed):
    cfg = tiny_cfg()
    path = tmp_path / "weights.pth"
    torch.save({"model": build_model(cfg).state_dict(), "config": cfg.dump()}, path)
    with tf32(allowed):
        seen = []
        predictor = Predictor.from_checkpoint(path, device="cpu", overrides=["TEST.TF32", str(not allowed)])
        predictor.model.register_forward_pre_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
        predictor(np.zeros((32, 48, 3), np.uint8))
        assert set(seen) == {not allowed}
        assert torch.backends.cudnn.allow_tf32 == torch.backends.cuda.matmul.allow_tf32 == allowed


def test_a_model_is_loaded_by_folder_file_or_name(checkpoint, pixels):
    expected = Predictor.from_checkpoint(checkpoint)(pixels)
    for source in (checkpoint, str(checkpoint), checkpoint.parent):
        np.testing.assert_array_equal(ovenet.load(source)(pixels), expected)
    np.testing.assert_array_equal(ovenet.load(checkpoint, flip=False, scales=[1.0])(pixels).shape, expected.shape)


@pytest.mark.parametrize("path", shipped("*.safetensors", MODELS), ids=lambda path: path.stem)
def test_models_that_come_along_predict_and_are_described(path, pixels):
    predictor = ovenet.load(path.stem)
    assert predictor(pixels).shape == (33, 47)
    assert predictor.max_offset is not None
    assert path.stat().st_size < 15e6
    card = path.with_suffix(".md").read_text(encoding="utf-8")
    assert all(word in card for word in ("Licence", "mIoU", "**Command**", "tools/"))
    assert all(name in card for name in predictor.info.class_names)


def test_an_unknown_model_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"camvid-hrnet: .*folder.*\(.*scenes-lite0"):
        ovenet.load("camvid-hrnet")
    with pytest.raises(ValueError, match=r"best\.pth .*final_state\.pth; train"):
        ovenet.load(tmp_path)


def test_packed_weights_predict_the_same(checkpoint, pixels, tmp_path, monkeypatch, capsys):
    content = torch.load(checkpoint, weights_only=True)
    info = DatasetInfo.from_dict(content["dataset_info"])
    content |= {"dataset": info.name, "class_names": list(info.class_names), "palette": list(map(list, info.palette))}
    content |= {"normalization": {"mean": [0.5] * 3, "std": [0.25] * 3, "channel_order": "BGR"}}
    torch.save(content, checkpoint)
    packed = tmp_path / "packed.safetensors"
    monkeypatch.setattr("sys.argv", ["ovenet pack", str(checkpoint), str(packed)])
    pack.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [str(packed), str(packed.with_suffix(".md"))]
    assert "Not tested" in packed.with_suffix(".md").read_text(encoding="utf-8")
    assert b"/" + str(tmp_path).encode()[1:] not in packed.read_bytes()  # no folder of this machine
    one, other = Predictor.from_checkpoint(checkpoint), ovenet.load(packed)
    assert one.settings.scales == other.settings.scales
    np.testing.assert_array_equal(one(pixels), other(pixels))
    with pytest.raises(ValueError, match=r"packed\.(safetensors|md) exists.*--overwrite"):
        pack.main()
    monkeypatch.setattr("sys.argv", ["ovenet pack", str(packed), str(tmp_path / "packed.md")])
    with pytest.raises(ValueError, match=r"packed\.md exists.*--overwrite"):
        pack.main()


def test_weights_without_a_configuration_are_not_packed(checkpoint, tmp_path, monkeypatch):
    torch.save(torch.load(checkpoint, weights_only=True)["model"], tmp_path / "bare.pth")
    monkeypatch.setattr("sys.argv", ["ovenet pack", str(tmp_path / "bare.pth"), str(tmp_path / "x.safetensors")])
    with pytest.raises(ValueError, match=r"bare\.pth: .* config; .*training"):
        pack.main()
    assert not (tmp_path / "x.safetensors").exists()


def test_any_tensor(checkpoint, pixels):
    predictor = Predictor.from_checkpoint(checkpoint, scales=[1.0], flip=False)
    expected = predictor(pixels).mask
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)
    for same in (tensor, tensor / 255, tensor.double() / 255, (tensor / 255).half()):
        assert (predictor(same).mask != expected).mean() < 0.01  # float16 rounds
    for bad, message in (
        (tensor[:2], "expected \\(3, H, W\\)"),
        (tensor.float(), "expected 0 to 1"),
        (tensor.long(), "int64"),
    ):
        with pytest.raises(UserError, match=message):
            predictor(bad)


def test_lists_and_iterators(checkpoint, pixels, tmp_path):
    predictor = Predictor.from_checkpoint(checkpoint, scales=[1.0], flip=False)
    images = [pixels, pixels[::-1].copy(), pixels[:20]]
    expected = [predictor(image).mask for image in images]
    batch = torch.from_numpy(np.stack(images[:2])).permute(0, 3, 1, 2)
    for results in (predictor(images), predictor(tuple(images)), list(predictor(iter(images))), predictor(batch)):
        assert [r.shape for r in results] == [e.shape for e in expected[: len(results)]]
        for result, mask in zip(results, expected, strict=False):
            np.testing.assert_array_equal(result.mask, mask)
    with pytest.raises(UserError, match="int is no image"):
        predictor(3)
    with pytest.raises(UserError, match="addresses are not fetched"):
        predictor("https://example.org/a.jpg")


def test_an_iterator_is_read_one_image_ahead(checkpoint, pixels):
    """Memory stays the same however many images come."""
    predictor = Predictor.from_checkpoint(checkpoint, scales=[1.0], flip=False)
    given = 0

    def images():
        nonlocal given
        for _ in range(6):
            given += 1
            yield pixels

    results = predictor(images())
    assert given == 0
    for taken in range(1, 5):
        next(results)
        assert given <= taken + 1
    results.close()


def test_a_broken_image_ends_an_iterator_with_its_name(checkpoint, pixels, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    results = Predictor.from_checkpoint(checkpoint)(iter([pixels, tmp_path / "broken.png"]))
    next(results)
    with pytest.raises(UserError, match=r"broken\.png"):
        next(results)


def test_seeds_confidence_and_scores(checkpoint, pixels):
    predictor = Predictor.from_checkpoint(checkpoint, scales=[1.0], flip=False)
    result = predictor(pixels, scores=True)
    assert result.scores.shape == (11, 33, 47)
    np.testing.assert_allclose(result.scores.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(result.scores.argmax(axis=0), result.mask)
    prediction = predictor.predict(pixels, seeds=True)
    y, x = 20, 30
    dx, dy = prediction.offset[:, y, x].tolist()
    np.testing.assert_allclose(result.seed[y, x], [x + dx * 46 / 2, y + dy * 32 / 2], atol=1e-3)
    np.testing.assert_allclose(result.confidence, prediction.confidence[0], atol=1e-6)
    assert predictor(pixels).scores is None


@pytest.mark.parametrize("score", ["exp", "mmseg"])
def test_scores_are_probabilities_whatever_is_averaged(checkpoint, pixels, score):
    predictor = Predictor.from_checkpoint(checkpoint, scales=[0.5, 1.0], flip=True, overrides=["TEST.SCORE", score])
    result = predictor(pixels, scores=True)
    np.testing.assert_allclose(result.scores.sum(axis=0), 1, atol=1e-5)
    np.testing.assert_array_equal(result.scores.argmax(axis=0), result.mask)


def test_a_folder_for_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    predictor = ovenet.load("scenes-lite0", device="cpu")
    predictor.save_pretrained(tmp_path / "hub")
    assert {p.name for p in (tmp_path / "hub").iterdir()} == {"model.safetensors", "config.json", "README.md"}
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3)).astype(np.uint8)
    for again in (
        Predictor.from_pretrained(tmp_path / "hub", device="cpu"),
        ovenet.load(tmp_path / "hub", device="cpu"),
    ):
        np.testing.assert_array_equal(again(image).mask, predictor(image).mask)
    config = json.loads((tmp_path / "hub/config.json").read_text())
    assert config["id2label"]["4"] == "sky"
    card = (tmp_path / "hub/README.md").read_text()
    assert card.startswith("---\nlibrary_name: ovenet")
    assert "4 sky" in card
    with pytest.raises(UserError, match="has files in it"):
        predictor.save_pretrained(tmp_path / "hub")


def test_what_cannot_be_verified_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "hub"
    ovenet.load("scenes-lite0").save_pretrained(folder, half=True)
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(UserError, match="sha256 differs"):
        Predictor.from_pretrained(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UserError, match=r"config\.json .*missing.*save_pretrained"):
        ovenet.load(folder)
    with pytest.raises(UserError, match=r"nobody/.*: .*folder.*hub \("):
        Predictor.from_pretrained("nobody/nothing-of-the-kind")
