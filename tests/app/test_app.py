"""The page of `ovenet app`: real requests to a real server, and a real browser."""

from __future__ import annotations

import http.client
import io
import json
import re
import resource
import shutil
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

from ovenet.app import server as app_server
from ovenet.app.server import AppServer
from ovenet.commands.app import App
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

    monkeypatch.setattr(server, "answers", app_server.Answers(fault, fault, fault))
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


@pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="Chromium and its driver are not installed")
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(server, tmp_path, width):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    (tmp_path / "a street.png").write_bytes(png(scene((192, 256))))
    (tmp_path / "<b>.png").write_bytes(b"no image")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless", "--no-sandbox", "--disable-gpu"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    try:
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        browser.get(server.address)
        assert not browser.find_element(By.ID, "viewer").is_displayed()
        files = browser.find_element(By.ID, "files")
        files.send_keys(f"{tmp_path / 'a street.png'}\n{tmp_path / '<b>.png'}")
        status = browser.find_element(By.ID, "status")
        WebDriverWait(browser, 30).until(lambda _: "cannot be read" in status.text)
        assert status.text.startswith("<b>.png: the upload: ")
        assert str(tmp_path) not in browser.page_source
        assert browser.find_element(By.ID, "viewer-title").text == "a street.png"
        click = """const box = document.getElementById("left-canvas").getBoundingClientRect();
            document.getElementById("stage").dispatchEvent(new MouseEvent("click",
                {bubbles: true, clientX: box.left + box.width / 2, clientY: box.top + box.height / 2}));"""
        browser.execute_script(click)
        text = browser.find_element(By.ID, "pixel").text
        assert re.search(r"pixel \(x, y\) 12[78], 9[56]\n", text)
        assert re.search(r"seed \d+, \d+\n", text)
        assert len(browser.find_elements(By.CSS_SELECTOR, "#arrow line[data-run]")) == 1
        assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        noise = [line for line in browser.get_log("browser") if "422" not in line["message"]]
        assert [line for line in noise if line["source"] != "rendering"] == []
    finally:
        browser.quit()
