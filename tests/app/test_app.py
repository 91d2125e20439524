"""The page of `ovenet app`: real requests to a real server, and a real browser."""

from __future__ import annotations

import http.client
import io
import json
import math
import re
import resource
import shutil
import socket
import struct
import tempfile
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from tests import forking
from tests.traced import traced_once

import ovenet
from ovenet.app import server as app_server
from ovenet.app.server import AppServer
from ovenet.app.uploads import read_upload
from ovenet.commands.app import App, main, named_models
from ovenet.errors import UserError
from ovenet.inference.outputs import FrameWriter
from ovenet.synthetic.scenes import draw_scene

OWN = {"X-OVeNet": "1"}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")


@pytest.fixture(scope="module")
def server():
    app = App({"scenes": "scenes-lite0", "camvid": "camvid-lite0"}, "cpu", "torch", 2.0)
    with traced_once(), AppServer(app.answers(), 0, 2.0) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def scene(size=(96, 128), seed=0):
    return draw_scene(size, np.random.default_rng(seed))[0]


def png(pixels):
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def ask(server, method="POST", path="/predict", body=None, headers=OWN, host=None):
    """Status and content of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=300)
    headers = {**headers, **({"Host": host} if host else {})}
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def test_the_page_asks_nothing_of_the_network(server):
    status, content = ask(server, "GET", "/")
    assert status == 200
    page = content.decode()
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "default-src 'none'" in page
    assert "connect-src 'self'" in page
    assert ask(server, "GET", "/?model=camvid")[1].count(b"bicyclist") == 1
    assert ask(server, "GET", "/etc/passwd")[0] == 404


def test_a_photograph_is_predicted_and_not_kept(server, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    status, content = ask(server, body=png(scene()))
    assert status == 200, content
    data = json.loads(content)
    assert data["size"] == [96, 128]
    assert set(data["maps"]) == {"initial", "seed", "fused"}
    assert {"offset", "confidence"} <= set(data)
    assert list(tmp_path.iterdir()) == []
    for runtime in ("onnxruntime", "openvino"):
        other = json.loads(ask(server, path=f"/predict?model=scenes&runtime={runtime}", body=png(scene()))[1])
        assert other["maps"]["fused"] == data["maps"]["fused"]


def test_an_example_is_drawn(server):
    status, content = ask(server, "GET", "/example")
    assert status == 200
    assert Image.open(io.BytesIO(content)).size == (640, 480)
    assert ask(server, "GET", "/example")[1] == content


@pytest.mark.parametrize("is_remembered", [True, False])
def test_downloads_are_what_the_library_writes(server, tmp_path, monkeypatch, is_remembered):
    """Of a photograph of an odd size whose prediction is at hand, or is made again."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    photo = scene((63, 95), 3 if is_remembered else 4)
    result = ovenet.load("scenes-lite0")(photo)
    if is_remembered:
        shares = json.loads(ask(server, body=png(photo))[1])["shares"]["fused"]
        names = result.info.class_names
        assert {names[k]: share for k, share in shares} == pytest.approx(result.class_share, abs=1e-6)
        assert [share for _, share in shares] == sorted((share for _, share in shares), reverse=True)
    got = {form: ask(server, path=f"/save?form={form}", body=png(photo)) for form in ("mask", "overlay", "geojson")}
    assert {status for status, _ in got.values()} == {200}
    mask = Image.open(io.BytesIO(got["mask"][1]))
    assert mask.mode == "P"
    assert (np.asarray(mask) == result.mask).all()
    assert mask.getpalette()[: 3 * len(result.info.palette)] == np.array(result.info.palette).ravel().tolist()
    assert (np.asarray(Image.open(io.BytesIO(got["overlay"][1]))) == np.asarray(result.overlay())).all()
    assert json.loads(got["geojson"][1]) == result.as_geojson()
    assert list(tmp_path.iterdir()) == []


def test_what_is_remembered_is_bounded():
    app = App({"scenes": "scenes-lite0"}, "cpu", "torch", 2.0)
    for index in range(40):
        app._keep((str(index), "", ""), np.zeros((4, 4), np.uint8))
    assert list(app._masks) == [(str(index), "", "") for index in range(24, 40)]


def tiff_of_floats():
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((4, 4), np.float32)).save(buffer, "TIFF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"%PDF-1.7\n", "This is a PDF document, not a photograph."),
        (b"\0\0\0\x18ftypheic", "saved as JPEG"),
        (b"\0\0\0\x18ftypisom", "This is a video"),
        (b"<?xml version='1.0'?><svg onload=alert(1)>", "an SVG drawing"),
        ("Größe: 3\n".encode(), "a text file"),
        (bytes(range(256)), "unknown kind"),
        (png(np.zeros((40, 40, 3), np.uint8))[:60], "damaged or incomplete"),
        (tiff_of_floats(), "floating-point"),
    ],
)
def test_an_upload_that_is_no_photograph_is_named(tmp_path, content, words):
    file = tmp_path / "upload"
    file.write_bytes(content)
    with pytest.raises(UserError) as told:
        read_upload(file)
    assert words in str(told.value)
    assert not re.search(r"upload|/|[Ee]rror|Traceback|\d{3}", str(told.value))


def test_a_video_comes_back_as_one_that_plays(server, tmp_path, monkeypatch):
    writer = FrameWriter(tmp_path / "in.mp4", 10)
    for index in range(3):
        writer.write(scene((96, 128), index))
    writer.close()
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    status, content = ask(server, path="/film", body=(tmp_path / "in.mp4").read_bytes())
    assert status == 200, content
    with av.open(io.BytesIO(content)) as film:
        assert film.streams.video[0].codec_context.name == "h264"
        assert len(list(film.decode(video=0))) == 3
    assert list((tmp_path / "temporary").iterdir()) == []


def bomb():
    """A PNG that declares 60,000 x 60,000 pixels."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("path", "body", "headers", "status"),
    [
        ("/predict", b"no image at all", OWN, 422),
        ("/predict", b"<svg onload=alert(1)>", OWN, 422),
        ("/predict", bomb(), OWN, 422),
        ("/film", b"no video", OWN, 422),
        ("/film", png(np.zeros((2, 2, 3), np.uint8))[:60], OWN, 422),
        ("/predict", bytes(2_000_001), OWN, 413),
        ("/predict", b"", OWN, 411),
        ("/predict?model=../../etc/passwd", b"x", OWN, 422),
        ("/predict?runtime=rm", b"x", OWN, 422),
        ("/../../etc/passwd", b"x", OWN, 404),
        ("/predict", b"x", {**OWN, "Content-Length": "\xb2"}, 411),
        ("/predict", b"x", {**OWN, "Content-Length": "9" * 5000}, 411),
        ("ftp://[x/predict", b"x", OWN, 400),
        ("/save?form=coco", png(np.zeros((8, 8, 3), np.uint8)), OWN, 422),
        ("/save?form=../x", png(np.zeros((8, 8, 3), np.uint8)), OWN, 422),
        ("/save?form=mask", b"%PDF", OWN, 422),
        ("/save?form=mask", b"x", {}, 403),
        ("/predict", b"x", {}, 403),
        ("/predict", b"x", {"Origin": "http://evil.example"}, 403),
    ],
)
def test_hostile_requests_are_refused(server, tmp_path, monkeypatch, path, body, headers, status):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    got, content = ask(server, path=path, body=body, headers=headers)
    assert got == status, content
    text = content.decode()
    assert not re.search(r"/tmp|/home|/root|\.py|Traceback", text)
    assert str(tmp_path) not in text
    assert list(tmp_path.iterdir()) == []
    assert ask(server, body=png(scene()))[0] == 200  # the server goes on


def test_who_sends_too_much_is_told_so(server):
    """The whole of a large upload can be sent before the answer is read, as browsers do."""
    for _ in range(20):
        assert ask(server, body=bytes(20_000_000))[0] == 413


def test_another_name_for_this_machine_is_refused(server):
    """A page on the network that has its own name point here."""
    assert ask(server, "GET", "/", host="evil.example:80")[0] == 403
    assert ask(server, body=png(scene()), host="evil.example:80")[0] == 403


def test_a_fault_of_the_program_says_nothing_of_the_machine(server, monkeypatch, capfd):
    def fault(*_):
        raise RuntimeError(f"{Path.home()}/secret")

    monkeypatch.setattr(server, "answers", app_server.Answers(*[fault] * 5))
    status, content = ask(server, body=b"x")
    assert (status, content) == (500, b"a fault of the program; its terminal says more")
    assert "secret" in capfd.readouterr().err


def test_weights_that_are_gone_are_named_by_their_model(tmp_path):
    """Not by where they lie."""
    app = App({"mine": str(tmp_path / "best.pth")}, "cpu", "torch", 2.0)
    for ask_for in (lambda: app.page("mine"), lambda: app.predict(tmp_path / "x.png", "mine", "torch")):
        with pytest.raises(UserError) as told:
            ask_for()
        assert "mine" in str(told.value)
        assert str(tmp_path) not in str(told.value)


def test_twenty_at_once_in_bounded_memory(server):
    ask(server, body=png(scene((192, 256))))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    bodies = [png(scene((192, 256), index % 4)) for index in range(4)]
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda index: ask(server, body=bodies[index % 4])[0], range(20)))
    assert answers == [200] * 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB; one takes about 30,000


def test_too_many_are_told_to_wait(server):
    taken = 0
    while server.waiting.acquire(blocking=False):
        taken += 1
    try:
        status, content = ask(server, "GET", "/")
        assert (status, b"too many requests" in content) == (503, True)
    finally:
        for _ in range(taken):
            server.waiting.release()
    assert ask(server, "GET", "/")[0] == 200


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere",), "no run's folder"),
        (("--port", "99999"), "expected 0 to 65535"),
        (("--max-mb", "0"), "expected megabytes above 0"),
    ],
)
def test_bad_arguments(arguments, message):
    done = forking.run(["-m", "ovenet", "app", *arguments], env={"PATH": "/usr/bin:/bin"})
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Chromium, and the folder of its downloads as ``browser.downloads``."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("Chromium and its driver are not installed")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.downloads = tmp_path_factory.mktemp("downloads")
    place = {"behavior": "allow", "downloadPath": str(driver.downloads)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", place)
    yield driver
    driver.quit()


def wait(browser, condition):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 30).until(condition)


def by_id(browser, name):
    return browser.find_element("id", name)


def show(browser, server, *files, width=1280):
    """Opens the page and drops files; returns once all are done."""
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(server.address)
    assert not by_id(browser, "viewer").is_displayed()
    by_id(browser, "files").send_keys("\n".join(map(str, files)))
    wait(browser, lambda b: len(b.find_elements("css selector", "#status li")) == len(files))


def noise(browser):
    """Lines of the console, but for refused uploads and advice about the speed of canvases."""
    lines = [line for line in browser.get_log("browser") if line["source"] != "rendering"]
    return [line for line in lines if "422" not in line["message"]]


CLICK = """const box = document.getElementById("left-canvas").getBoundingClientRect();
    document.getElementById("stage").dispatchEvent(new MouseEvent("click", {bubbles: true,
        clientX: box.left + arguments[0] * box.width, clientY: box.top + arguments[1] * box.height}));"""


@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(server, browser, tmp_path, width):
    (tmp_path / "a street.png").write_bytes(png(scene((192, 256))))
    (tmp_path / "<b>.png").write_bytes(b"%PDF-1.7")
    (tmp_path / "large.png").write_bytes(bytes(2_000_001))
    show(browser, server, *(tmp_path / name for name in ("a street.png", "<b>.png", "large.png")), width=width)
    said = [item.text for item in browser.find_elements("css selector", "#status li")]
    assert re.fullmatch(r"a street.png: done in \d+\.\d s\.", said[0])
    assert said[1] == "<b>.png: This is a PDF document, not a photograph."
    assert said[2].startswith("large.png: The photo is larger than 2 MB")
    assert not by_id(browser, "activity").is_displayed()
    assert str(tmp_path) not in browser.page_source
    assert by_id(browser, "viewer-title").text == "a street.png"
    layers = [option.text for option in by_id(browser, "right").find_elements("tag name", "option")]
    assert layers[:3] == ["prediction (S_f)", "without seeds (S_i)", "seeds only (S_s)"]
    browser.execute_script(CLICK, 0.5, 0.5)
    text = by_id(browser, "pixel").text
    assert re.search(r"pixel \(x, y\) 12[78], 9[56]\n", text)
    assert re.search(r"seed \d+, \d+\n", text)
    assert re.search(r"prediction S_f \w+ \d+ %", text)
    assert len(browser.find_elements("css selector", "#arrow line[data-run]")) == 1
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert noise(browser) == []


def test_the_overlay_its_shares_and_its_downloads(server, browser, tmp_path):
    photo = scene((192, 256))
    (tmp_path / "my street.v2.png").write_bytes(png(photo))
    show(browser, server, tmp_path / "my street.v2.png")
    opacity = "return Number(getComputedStyle(document.getElementById('right-canvas')).opacity)"
    assert browser.execute_script(opacity) == pytest.approx(0.55)
    by_id(browser, "blend").send_keys("\ue010")  # End
    assert browser.execute_script(opacity) == 1

    result = ovenet.load("scenes-lite0")(photo)
    buttons = browser.find_elements("css selector", "#shares button")
    assert [b.text.split("\n")[0] for b in buttons] == list(result.class_share)
    assert buttons[0].text.split("\n")[1] == f"{100 * next(iter(result.class_share.values())):.1f} %"
    painted = """const c = document.getElementById("right-canvas");
        const data = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
        return data.filter((value, index) => index % 4 === 3 && value).length"""
    assert browser.execute_script(painted) == result.mask.size
    buttons[1].send_keys("\n")
    name = list(result.class_share)[1]
    assert browser.execute_script(painted) == (result.mask == result.info.class_names.index(name)).sum()
    assert buttons[1].get_attribute("aria-pressed") == "true"
    buttons[1].send_keys("\n")
    assert browser.execute_script(painted) == result.mask.size

    for form in ("mask", "overlay", "geojson"):
        browser.find_element("css selector", f"button[data-form={form}]").click()
    expected = ["my street.v2.geojson", "my street.v2_mask.png", "my street.v2_overlay.png"]
    wait(browser, lambda _: sorted(path.name for path in browser.downloads.iterdir()) == expected)
    assert (np.asarray(Image.open(browser.downloads / expected[1])) == result.mask).all()
    assert json.loads((browser.downloads / expected[0]).read_text()) == result.as_geojson()
    assert noise(browser) == []


def test_zoom_and_what_is_under_the_mouse(server, browser, tmp_path):
    """The pixel that is read stays right when the picture is zoomed, moved and followed by keys."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.keys import Keys

    (tmp_path / "a.png").write_bytes(png(scene((192, 256))))
    show(browser, server, tmp_path / "a.png")
    stage = by_id(browser, "stage")
    size = stage.size
    place = """const [s, c] = ["stage", "left-canvas"].map((id) => document.getElementById(id).getBoundingClientRect());
        return [c.width / s.width, (s.left - c.left) / c.width, (s.top - c.top) / c.height]"""

    def read_at(x, y):
        """The pixel that a real click at a point of the stage, in shares of it, reads; and the one that is there."""
        zoom, left, top = browser.execute_script(place)
        there = ((left + x / zoom) * 256, (top + y / zoom) * 192)
        offset = (round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"]))
        ActionChains(browser).move_to_element_with_offset(stage, *offset).click().perform()
        text = by_id(browser, "pixel").text
        return tuple(map(int, re.search(r"pixel \(x, y\) (\d+), (\d+)", text).groups())), there

    def is_right(x, y):
        read, there = read_at(x, y)
        return all(abs(a + 0.5 - b) <= 1 for a, b in zip(read, there, strict=True))

    assert is_right(0.3, 0.6)
    for _ in range(3):
        by_id(browser, "zoom-in").click()  # around the cross
    assert browser.execute_script(place)[0] == pytest.approx(8)
    assert is_right(0.3, 0.6)
    assert is_right(0.9, 0.2)
    before, pixel = browser.execute_script(place), by_id(browser, "pixel").text
    ActionChains(browser).move_to_element(stage).click_and_hold().move_by_offset(-80, 40).release().perform()
    after = browser.execute_script(place)
    assert after[1] - before[1] == pytest.approx(80 / size["width"] / 8, abs=1e-3)
    assert before[2] - after[2] == pytest.approx(40 / size["height"] / 8, abs=1e-3)
    assert by_id(browser, "pixel").text == pixel  # dragging picks nothing
    assert is_right(0.5, 0.5)
    stage.send_keys("0")
    assert browser.execute_script(place) == pytest.approx([1, 0, 0], abs=1e-6)
    stage.send_keys("++" + Keys.ARROW_RIGHT * 60)  # to the edge, with the cross in sight
    zoom, left, _ = browser.execute_script(place)
    assert (zoom, left) == pytest.approx((4, 0.75), abs=0.01)
    browser.execute_script(
        """const box = arguments[0].getBoundingClientRect();
        arguments[0].dispatchEvent(new WheelEvent("wheel", {bubbles: true, cancelable: true, deltaY: -100,
            clientX: box.left + box.width / 2, clientY: box.top + box.height / 2}))""",
        stage,
    )
    assert browser.execute_script(place)[0] == pytest.approx(4 * math.exp(0.4), abs=0.01)
    assert is_right(0.5, 0.5)
    assert noise(browser) == []


def test_an_example_by_one_click_and_a_server_that_is_gone(server, browser):
    browser.get(server.address)
    by_id(browser, "example").send_keys("\n")
    wait(browser, lambda b: "done in" in by_id(b, "status").text)
    assert by_id(browser, "viewer-title").text == "drawn street.png"
    browser.execute_script("window.fetch = () => Promise.reject(new TypeError('Failed to fetch'))")
    by_id(browser, "example").click()
    wait(browser, lambda b: "does not answer" in by_id(b, "status").text)
    assert noise(browser) == []


def test_time_passes_while_predicting(server, browser, tmp_path):
    (tmp_path / "a.png").write_bytes(png(scene()))
    browser.get(server.address)
    browser.execute_script("window.fetch = () => new Promise(() => {})")
    by_id(browser, "files").send_keys(str(tmp_path / "a.png"))
    wait(browser, lambda b: by_id(b, "elapsed").text == "predicting a.png … 1 s")


def test_models_are_called_by_their_runs(tmp_path):
    """Not `best` or `fit`, which all are; and by their paths where two are called the same."""
    for place in ("garden/fit", "plants/fit", "a/street", "b/street"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "best.pth").touch()
    sources = [str(tmp_path / place) for place in ("garden/fit", "plants/fit/best.pth", "a/street", "b/street")]
    assert named_models([*sources, "scenes-lite0"]) == {
        "garden": sources[0],
        "plants": sources[1],
        sources[2]: sources[2],
        sources[3]: sources[3],
        "scenes-lite0": "scenes-lite0",
    }


def test_a_port_that_is_taken_is_named_before_a_model_is_loaded(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monkeypatch.setattr("sys.argv", ["app", "scenes-lite0", "--port", str(port)])
        with pytest.raises(UserError, match=rf"port {port} .*--port 0"):
            main()
    assert "loading" not in capsys.readouterr().out
