"""Corrections of labels: a real server on this machine, and a stroke in a real browser."""

import contextlib
import dataclasses
import http.client
import json
import shutil
import threading

import numpy as np
import pytest
import torch
from PIL import Image

from ovenet.app.review_server import ReviewAnswers, ReviewServer
from ovenet.data.dataset import ListDataset
from ovenet.data.info import DatasetInfo
from ovenet.errors import UserError
from ovenet.inference.inferencer import Prediction
from ovenet.report import runs
from ovenet.report.gallery import encode_webp
from ovenet.report.review import RECORD, Review

INFO = DatasetInfo(
    "yard", ("grass", "shed", "cat"), ((0, 200, 0), (200, 0, 0), (0, 0, 200)), (1, 2, 3), (0,), merged_ids=((7, 1),)
)
HEIGHT, WIDTH = 20, 30
OWN = {"X-OVeNet": "1"}
NAMES = ("first", "second", "third")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def mask():
    """Grass on the left; on the right a shed with ids 2 and 7; one row without a label."""
    ids = np.full((HEIGHT, WIDTH), 1, np.uint8)
    ids[:, 15:] = 2
    ids[:, 25:] = 7
    ids[-1] = 0
    return ids


def predict(image):
    """A cat in rows 4 to 9 of columns 4 to 9, of which the network is sure; else the label."""
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:, 15:] = 1
    labels[4:10, 4:10] = 2
    probability = torch.full((HEIGHT, WIDTH), 0.75)
    return Prediction({"fused": torch.from_numpy(labels)}, probability={"fused": probability})


@pytest.fixture
def dataset(tmp_path):
    folder = tmp_path / "yard"
    for name in ("photos", "masks/deep"):
        (folder / name).mkdir(parents=True)
    for name in NAMES:
        Image.fromarray(np.full((HEIGHT, WIDTH, 3), 90, np.uint8)).save(folder / "photos" / f"{name}.png")
        Image.fromarray(mask()).save(folder / "masks" / "deep" / f"{name}.png")
    path = tmp_path / "yard.lst"
    path.write_text("".join(f"photos/{name}.png\tmasks/deep/{name}.png\n" for name in NAMES))
    return ListDataset(tmp_path, path, INFO, ignore_label=255)


def run_of(dataset, scores=(0.5, 0.1, 0.3), names=INFO.class_names):
    labels = dataset.decoder.read(dataset.folder / "masks/deep/first.png")
    counts = {str(k): int((labels == k).sum()) for k in range(3) if (labels == k).any()}
    records = [
        {
            "index": index, "name": f"photos/{name}.png", "size": [HEIGHT, WIDTH], "pixels": {"label": dict(counts)},
            "label_quality": {"score": score, "disagree": 36, "pairs": [[0, 2, 36]], "seeds": None},
        }
        for index, (name, score) in enumerate(zip(NAMES, scores, strict=True))
    ]  # fmt: skip
    thresholds = dict(zip(names, (60, 80, 70), strict=True))
    results = {"classes": {"names": list(names)}, "label_quality": {"threshold_percent": thresholds}}
    return runs.TestedRun(dataset.folder, "yard", results, records, [])


@contextlib.contextmanager
def serving(review):
    answers = ReviewAnswers(len(review), review.page, review.image, review.save)
    with ReviewServer(answers, 0, HEIGHT * WIDTH) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def ask(server, method, path, body=None, headers=OWN):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def label_bytes():
    label = np.zeros((HEIGHT, WIDTH), np.uint8)
    label[:, 15:] = 1
    label[-1] = 255
    return label


def test_a_correction_is_saved_beside_the_original(dataset, tmp_path):
    original = (dataset.folder / "masks/deep/second.png").read_bytes()
    review = Review(run_of(dataset), dataset, predict)
    assert review.folder == dataset.folder / "masks_corrected"
    with serving(review) as server:
        assert ask(server, "GET", "/")[0] == 200
        content = json.loads(ask(server, "GET", "/image?place=0")[1])
        sure = np.where(predict(None).labels["fused"].numpy() == 1, 0, 255)  # 75 % is below the shed's 80
        predicted = predict(None).labels["fused"].numpy()
        assert content["maps"] == encode_webp(np.dstack([label_bytes(), predicted, sure.astype(np.uint8)]))
        new = label_bytes()
        new[4:10, 4:10] = 2
        new[0, 26:] = 255
        status, answer = ask(server, "POST", f"/save?place=0&version={content['version']}", new.tobytes())
        assert status == 200, answer
        changed = [["grass", "cat", 36], ["shed", "no label", 4]]
        assert sorted(json.loads(answer)["changed"]) == changed
        # Another window that began from the same label is refused, and the first correction stays.
        status, answer = ask(server, "POST", f"/save?place=0&version={content['version']}", label_bytes().tobytes())
        assert (status, b"another window" in answer) == (422, True)

    expected = mask()
    expected[4:10, 4:10], expected[0, 26:] = 3, 0
    with Image.open(review.folder / "deep/second.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), expected)
    assert (dataset.folder / "masks/deep/second.png").read_bytes() == original
    line = json.loads((review.folder / RECORD).read_text())
    assert (line["image"], line["pixels"], sorted(line["changed"])) == ("photos/second.png", 40, changed)
    listed = ListDataset(tmp_path, review.list_file, INFO, ignore_label=255)
    assert [label for _, label in listed.pairs] == [
        "masks/deep/first.png", "masks_corrected/deep/second.png", "masks/deep/third.png",
    ]  # fmt: skip
    assert listed[1].labels[5, 5] == 2

    # Later, the corrected label is the present one, and can be taken back.
    later = Review(run_of(dataset), dataset, predict)
    assert '"corrected":true' in later.page()
    version = later.image(0)["version"]
    assert version != content["version"]
    back = later.save(0, version, label_bytes().tobytes())
    assert sorted(back["changed"]) == [["cat", "grass", 36], ["no label", "shed", 4]]
    with Image.open(review.folder / "deep/second.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), mask())  # 7 is 7 again
    assert len((review.folder / RECORD).read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("method", "path", "size", "headers", "status"),
    [
        ("GET", "/etc/passwd", 0, OWN, 404),
        ("GET", "/image?place=0", 0, {}, 403),
        ("GET", "/image?place=3", 0, OWN, 404),
        ("GET", "/image?place=-1", 0, OWN, 404),
        ("GET", "/image?place=../../x", 0, OWN, 404),
        ("GET", "/", 0, {"Host": "evil.example"}, 403),
        ("POST", "/image?place=0", 600, OWN, 404),
        ("POST", "/save?place=0&version=0123456789abcdef", 600, {}, 403),
        ("POST", "/save?place=0&version=../x", 600, OWN, 400),
        ("POST", "/save?place=9&version=0123456789abcdef", 600, OWN, 404),
        ("POST", "/save?place=0&version=0123456789abcdef", 599, OWN, 422),
        ("POST", "/save?place=0&version=0123456789abcdef", 601, OWN, 413),
        ("POST", "/save?place=0&version=0123456789abcdef", 0, OWN, 411),
    ],
)
def test_hostile_requests_are_refused(dataset, method, path, size, headers, status):
    review = Review(run_of(dataset), dataset, predict)
    with serving(review) as server:
        assert ask(server, method, path, bytes(size) if method == "POST" else None, headers)[0] == status
        if status == 422:
            version = review.image(0)["version"]
            status, answer = ask(server, "POST", f"/save?place=0&version={version}", bytes([3]) * 600)
            assert (status, b"class 3" in answer) == (422, True)
    assert not review.folder.exists()


def test_what_is_not_as_it_was_is_one_line(dataset, tmp_path):
    run = run_of(dataset)
    path = dataset.folder / "masks/deep/first.png"

    def refused(match, run=run, **arguments):
        with pytest.raises(UserError, match=match):
            Review(run, dataset, predict, **arguments)

    refused("label_quality", dataclasses.replace(run, records=[{"index": 0, "name": "a"}]))
    refused("other classes", run_of(dataset, names=("grass", "shed", "dog")))
    other = run_of(dataset)
    other.records[1]["name"] = "photos/other.png"
    refused(r"entry 2 .*photos/other\.png", other)
    refused("--output .*outside", output=tmp_path / "outside")
    refused("--output .*masks", output=dataset.folder / "masks")

    review = Review(run, dataset, predict)
    changed = mask()
    changed[0, 0] = 2
    Image.fromarray(changed).save(path)
    refused(r"first\.png: .*changed since the test")
    with pytest.raises(UserError, match="changed since the review"):
        review.save(2, review.image(2)["version"], (new := label_bytes()).tobytes()[:-1] + bytes([1 + new[0, 0]]))
    path.unlink()
    refused(r"first\.png")
    assert len(Review(run, dataset, predict, number=2)) == 2  # the third one is not asked for

    (dataset.folder / "masks_corrected").write_text("a file")
    with pytest.raises(OSError, match="masks_corrected"):
        Review(run, dataset, predict, number=2).begin()


@pytest.mark.skipif(not (CHROMIUM and shutil.which("chromedriver")), reason="Chromium and its driver are not installed")
def test_a_stroke_in_a_browser_changes_exactly_its_pixels(dataset):
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1000,1200"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    review = Review(run_of(dataset), dataset, predict)
    with serving(review) as server:
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            browser.get(server.address)

            def wait(text):
                said = "return document.getElementById('status').textContent"
                WebDriverWait(browser, 20).until(lambda b: text in b.execute_script(said))

            def drag(*pixels):
                """Draws from centre to centre of pixels (x, y)."""
                canvas = browser.find_element("id", "label-canvas")
                width, height = canvas.size["width"] / WIDTH, canvas.size["height"] / HEIGHT
                chain = ActionChains(browser, duration=20)
                for step, (x, y) in enumerate(pixels):
                    place = (round((x + 0.5 - WIDTH / 2) * width), round((y + 0.5 - HEIGHT / 2) * height))
                    chain.move_to_element_with_offset(canvas, *place)
                    if not step:
                        chain.click_and_hold()
                chain.release().perform()

            def press(*keys):
                ActionChains(browser).send_keys(*keys).perform()

            wait("sure of another class in 6.0 %")  # 36 of 600
            press("3", *"[" * 30)  # a cat, with the smallest brush
            drag((20, 2), (24, 2))
            press("1")
            drag((2, 2), (2, 6))  # grass on grass changes nothing
            drag((28, 12), (28, 12))
            press("z")  # and this is taken back
            press("e")
            drag((0, 0), (3, 0))
            press("r")
            drag((6, 6))
            press("s")
            wait("saved; pixels")
            lines = [line for line in browser.get_log("browser") if line["source"] != "rendering"]
            assert lines == []
        finally:
            browser.quit()
    expected = mask()
    expected[2, 20:25] = 3
    expected[0, 0:4] = 0
    expected[4:10, 4:10] = 3
    with Image.open(review.folder / "deep/second.png") as saved:
        np.testing.assert_array_equal(np.asarray(saved), expected)
