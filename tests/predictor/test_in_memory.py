"""Models in memory: predicted, saved and read again without a configuration."""

import dataclasses
import json
import re

import numpy as np
import pytest
import torch
from PIL import Image
from tests.four_convolutions import registered

import ovenet
from ovenet import Predictor, UserError
from ovenet.commands import infer
from ovenet.models import Segmentor
from ovenet.predictor.predictor import load_model

CLASSES = ["wall", "window", "sky"]


@pytest.fixture(autouse=True)
def _backbone():
    with registered():
        torch.manual_seed(0)
        yield


def model_of(**options):
    return ovenet.create_model(
        "four_convolutions", num_classes=3, head="ocr", head_args={"mid_channels": 8, "key_channels": 4}, **options
    )


@pytest.fixture
def image():
    return np.random.default_rng(0).integers(0, 256, (63, 95, 3)).astype(np.uint8)


def test_a_model_in_memory_predicts_with_its_classes_alone(image):
    model = model_of(seed="shared", seed_args={"max_offset": 0.3})
    sizes = []
    model.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    result = Predictor(model, classes=CLASSES)(image, scores=True)
    assert sizes == [(63, 95)]  # its own size
    assert set(result.class_share) <= set(CLASSES)
    assert result.seed is not None
    same = ovenet.load(model, classes=CLASSES)(image, scores=True)
    np.testing.assert_array_equal(same.scores, result.scores)
    Predictor(model, classes=CLASSES, long_side=190, flip=True, scales=[0.5])(image)
    assert sizes[-1] == (63, 95)
    assert "model in memory: 3 classes" in repr(Predictor(model, classes=3))


def test_what_is_missing_is_one_line(image, tmp_path):
    model = model_of()
    for wrong, message in (
        (lambda: Predictor(model), r"no classes yet.*classes=\["),
        (lambda: model.save_pretrained(tmp_path / "x"), r"no classes yet.*classes=\["),
        (lambda: Predictor(model, classes=["a", "b"]), "2 names, and the model predicts 3"),
        (lambda: Predictor(torch.nn.Identity(), classes=3), "a Identity is no model of ovenet"),
        (lambda: Predictor(Segmentor(model.backbone, model.neck, model.head), classes=3), "composed from its parts"),
    ):
        with pytest.raises(UserError, match=message):
            wrong()
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("seed", [None, "shared"])
def test_a_saved_model_is_the_same_to_the_bit(seed, image, tmp_path):
    model = model_of(seed=seed).train()
    model.save_pretrained(tmp_path / "town", classes=CLASSES)
    assert json.loads((tmp_path / "town/config.json").read_text())["id2label"] == dict(zip("012", CLASSES, strict=True))
    again = ovenet.from_pretrained(tmp_path / "town")
    assert (again.recipe["head"], again.recipe["seed"]) == ("ocr", seed)
    assert again.normalization == model.normalization
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    results = [Predictor(model, classes=CLASSES)(image, scores=True), Predictor(again)(image, scores=True)]
    np.testing.assert_array_equal(results[0].scores, results[1].scores)
    assert list(results[1].info.class_names) == CLASSES
    again.save_pretrained(tmp_path / "again")  # its classes are known by now
    assert list(ovenet.load(tmp_path / "again").info.class_names) == CLASSES
    predicted = ovenet.load(tmp_path / "town")(image, scores=True)
    np.testing.assert_allclose(predicted.scores, results[0].scores, atol=1e-5)  # BatchNorm fused
    with pytest.raises(UserError, match="has files in it"):
        model.save_pretrained(tmp_path / "town", classes=CLASSES)


def test_a_trained_file_keeps_what_it_carries(tmp_path, image):
    """Colours, test sizes and normalisation go through memory into another folder."""
    predictor = ovenet.load("scenes-lite0")
    model = ovenet.from_pretrained("scenes-lite0")
    Predictor(model).save_pretrained(tmp_path / "copy")
    copy = ovenet.load(tmp_path / "copy")
    assert json.dumps(copy.info.as_dict()) == json.dumps(predictor.info.as_dict())
    assert copy.settings == predictor.settings
    assert Predictor(model).settings == dataclasses.replace(predictor.settings, cuda_graph=False)
    np.testing.assert_array_equal(copy(image).mask, predictor(image).mask)


def test_arrays_of_other_channels(tmp_path):
    normalization = ovenet.Normalization((0.2, 0.3, 0.4, 0.5), (0.1, 0.2, 0.3, 0.4))
    model = ovenet.create_model(
        "mit_b0", num_classes=3, in_channels=4, normalization=normalization, pretrained=False, seed="shared"
    )
    image = np.random.default_rng(0).integers(0, 256, (63, 95, 4)).astype(np.uint8)
    predictor = Predictor(model, classes=CLASSES)
    result = predictor(image)
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1) / 255 - torch.tensor(normalization.mean).view(-1, 1, 1)
        scores = model.eval()((pixels / torch.tensor(normalization.std).view(-1, 1, 1))[None]).fused[-1]
    expected = torch.nn.functional.interpolate(scores, (63, 95), mode="bilinear", align_corners=True)[0].argmax(0)
    assert (result.mask != expected.numpy()).mean() < 1e-3  # ties
    assert result.overlay(legend=False).size == (95, 63)
    np.testing.assert_array_equal(predictor(torch.from_numpy(image).permute(2, 0, 1)).mask, result.mask)
    predictor.save_pretrained(tmp_path / "four")
    kept = ovenet.from_pretrained(tmp_path / "four")
    assert kept.normalization == normalization
    np.testing.assert_array_equal(Predictor(kept)(image).mask, result.mask)
    with pytest.raises(UserError, match=r"4 channels.*\(H, W, 4\)"):
        predictor("photo.jpg")
    with pytest.raises(UserError, match=r"shape \(63, 95, 3\).*expected \(H, W, 4\)"):
        predictor(image[..., :3])
    trained = load_model(tmp_path / "four/model.safetensors")
    with pytest.raises(UserError, match="IN_CHANNELS is 4"):
        ovenet.builders.loading.predictor_for_test(trained, torch.device("cpu"))


@pytest.fixture
def folder(image, tmp_path):
    """A folder as users have them: images at two depths, a text, a damaged image."""
    place = tmp_path / "photos"
    (place / "sub").mkdir(parents=True)
    Image.fromarray(image).save(place / "b.png")
    Image.fromarray(image[::-1].copy()).save(place / "sub/a.png")
    (place / "notes.txt").write_text("no image")
    (place / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 and nothing else")
    return place


def test_the_predictor_takes_what_the_command_takes(folder, image, tmp_path, monkeypatch, caplog):
    predictor = Predictor(model_of(), classes=CLASSES)
    alone = predictor(folder / "b.png")
    assert alone.name == ""
    np.testing.assert_array_equal(predictor((folder / "b.png").read_bytes()).mask, alone.mask)
    results = predictor(folder)
    assert not isinstance(results, list)
    found = {result.name: result.mask for result in results}
    assert list(found) == ["b", "sub/a"]
    assert "skipped: " in caplog.text
    assert "broken.jpg" in caplog.text
    np.testing.assert_array_equal(found["b"], alone.mask)
    assert [r.name for r in predictor(f"{folder}/**/*.png")] == ["b", "sub/a"]

    predictor.save_pretrained(tmp_path / "model")
    monkeypatch.setattr("sys.argv", ["ovenet infer", str(tmp_path / "model"), str(folder), "--save", "ids"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):  # an input was skipped
        infer.main()
    written = sorted(
        p.relative_to(tmp_path / "output/infer/ids").with_suffix("").as_posix()
        for p in (tmp_path / "output/infer/ids").rglob("*.png")
    )
    assert written == list(found)


def test_frames_of_a_video(image, tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for shift in range(3):
            pixels = np.roll(np.pad(image, ((0, 1), (0, 1), (0, 0))), shift, axis=1)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    results = list(Predictor(model_of(), classes=CLASSES)(path))
    assert [r.name for r in results] == ["clip/000000", "clip/000001", "clip/000002"]
    assert {r.shape for r in results} == {(64, 96)}


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.pdf", b"%PDF-1.7 and more", "a PDF document"),
        ("a.txt", b"some words", "a text file"),
        ("a.jpg", b"", "an empty file"),
        ("a.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        ("a.zip", b"PK\3\4....", "a ZIP archive"),
        ("a.heic", b"\0\0\0\x18ftypheic\0\0\0\0", "a HEIC photograph"),
        ("a.mp4", b"some words", "a text file"),
        ("a.bin", b"\0\1\2\3", "no image, or damaged|no image, or a damaged one"),
    ],
)
def test_what_is_refused_is_named(name, content, what, tmp_path):
    predictor = Predictor(model_of(), classes=CLASSES)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"{name}: .*{what}") as error:
        list(predictor(path))
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=f"{len(content)} bytes: .*{what}"):
        predictor(content)
    with pytest.raises(UserError, match=re.escape(name)):
        list(predictor(tmp_path))


def test_a_result_is_shown(image, monkeypatch):
    shown = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(Image.Image, "show", lambda picture: shown.append(picture.size))
    Predictor(model_of(), classes=CLASSES)(image).show(legend=False)
    assert shown == [(95, 63)]
