"""The page in a real browser: Chromium without a window, driven by Selenium."""

import dataclasses
import json
import re
import shutil
import time

import pytest

from ovenet.report.gallery import picture_data
from ovenet.report.page import write_report
from ovenet.report.viewer import GalleryPage
from tests.report.conftest import CONFIDENCE, FIELD, HEIGHT, INFO, OFFSET, WIDTH, case

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
if not (CHROMIUM and DRIVER):
    pytest.skip("Chromium and its driver are not installed", allow_module_level=True)

from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402
from selenium.webdriver.support.select import Select  # noqa: E402
from selenium.webdriver.support.ui import WebDriverWait  # noqa: E402


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def wait(browser, condition):
    return WebDriverWait(browser, 10).until(condition)


def opened(browser):
    """Index of the image in the viewer."""
    return browser.execute_script("return document.body.dataset.open")


def open_page(browser, path):
    browser.get(path.as_uri())
    wait(browser, opened)
    return browser


@pytest.fixture(scope="module")
def report(evaluation, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    write_report([evaluation], path)
    return path


@pytest.fixture
def page(browser, report):
    yield open_page(browser, report)
    assert complaints(browser) == []  # nothing failed, nothing was asked for


def complaints(browser):
    """The console's lines, but for advice about the speed of reading canvases, which only the tests do."""
    return [line for line in browser.get_log("browser") if line["source"] != "rendering"]


def choose(page, id, value):
    Select(page.find_element(By.ID, id)).select_by_value(value)


def pixel(page, canvas, x, y):
    """Colour of a canvas at a place given as shares of its size."""
    script = """const c = document.getElementById(arguments[0]);
        return [...c.getContext("2d").getImageData(
            Math.floor(arguments[1] * c.width), Math.floor(arguments[2] * c.height), 1, 1).data]"""
    return page.execute_script(script, canvas, x, y)[:3]


def cards(page):
    return [int(b.get_attribute("data-index")) for b in page.find_elements(By.CSS_SELECTOR, "#cards button")]


def test_images_are_ordered_by_iou_and_gain(page):
    assert cards(page) == [0, 2, 3, 1]  # the car of image 1 is right, which raises its mean; the others tie
    choose(page, "order", "gain")
    assert cards(page)[:2] == [3, 2]  # S_i misses 5 + index rows
    choose(page, "order", "loss")
    assert cards(page)[-1] == 3
    choose(page, "order", "list")
    assert cards(page) == [0, 1, 2, 3]


def test_the_filter_shows_the_images_with_a_class(page):
    choose(page, "class-filter", "2")
    assert cards(page) == [1]
    assert page.find_element(By.ID, "count").text == "1 of 4 images with car in the label"
    assert "100.0" in page.find_element(By.CSS_SELECTOR, "#cards button").text
    choose(page, "class-filter", "")
    assert len(cards(page)) == 4


def test_images_are_ordered_and_filtered_by_condition(page):
    choose(page, "order", "condition")
    assert cards(page) == [2, 3, 1, 0]  # fog, lowest IoU first, then rain
    choose(page, "condition-filter", "rain")
    assert cards(page) == [0]
    assert page.find_element(By.ID, "count").text == "1 of 4 images of rain"
    choose(page, "condition-filter", "")
    choose(page, "order", "list")
    assert cards(page) == [0, 1, 2, 3]


def test_the_slider_wipes_between_the_layers(page):
    slider = page.find_element(By.ID, "wipe")
    clip = "return getComputedStyle(document.getElementById('right-canvas')).clipPath"
    assert page.execute_script(clip) == "inset(0px 0px 0px 50%)"
    slider.send_keys(Keys.ARROW_LEFT * 20)
    assert page.execute_script(clip) == "inset(0px 0px 0px 30%)"
    assert page.find_element(By.ID, "divider").value_of_css_property("left") != "0px"
    slider.send_keys(Keys.HOME)
    assert "0px 0px 0px 0%" in page.execute_script(clip) or page.execute_script(clip) == "inset(0px)"


def test_layers_have_their_colours(page):
    choose(page, "order", "list")
    page.find_elements(By.CSS_SELECTOR, "#cards button")[0].click()
    wait(page, lambda b: opened(b) == "0")
    choose(page, "left", "label")
    choose(page, "right", "0/errors")
    assert pixel(page, "left-canvas", 0.5, 0.9) == [128, 64, 128]
    assert pixel(page, "left-canvas", 0.5, 0.1) == [70, 130, 180]
    assert pixel(page, "left-canvas", 0.99, 0.1) == [0, 0, 0]
    corrected, both_wrong = (32.5 / HEIGHT, 30.5 / HEIGHT)
    assert pixel(page, "right-canvas", 0.5, corrected) == [0, 114, 178]
    assert pixel(page, "right-canvas", 0.5, both_wrong) == [240, 228, 66]
    assert "corrected by the seeds" in page.find_element(By.ID, "legend").text
    choose(page, "colours", "safe")
    assert pixel(page, "left-canvas", 0.5, 0.1) == [230, 159, 0]
    choose(page, "left", "0/confidence")
    table = page.execute_script("return JSON.parse(document.getElementById('page-data').textContent).cividis")
    assert pixel(page, "left-canvas", 0.5, 0.5) == table[round(255 * CONFIDENCE)]
    choose(page, "left", "0/offset")
    first, second = (pixel(page, "left-canvas", 0.5, y) for y in (0.1, 0.9))
    assert first == second != [255, 255, 255]
    assert "full colour at 20 pixels across, 15 down" in page.find_element(By.ID, "legend").text


def click_pixel(page, x, y):
    script = """const c = document.getElementById("left-canvas").getBoundingClientRect();
        const at = {bubbles: true, clientX: c.left + arguments[0] * c.width, clientY: c.top + arguments[1] * c.height};
        document.getElementById("stage").dispatchEvent(new MouseEvent("click", at));"""
    page.execute_script(script, (x + 0.5) / WIDTH, (y + 0.5) / HEIGHT)


def test_a_click_draws_the_arrow_to_the_seed_and_prints_the_scores(page):
    choose(page, "order", "list")
    page.find_elements(By.CSS_SELECTOR, "#cards button")[0].click()
    wait(page, lambda b: opened(b) == "0")
    click_pixel(page, 20, 32)
    line = page.find_element(By.CSS_SELECTOR, "#arrow line[data-run]")
    ends = [float(line.get_attribute(name)) for name in ("x1", "y1", "x2", "y2")]
    expected = [20.5, 32.5, 20.5 + OFFSET[0] * (WIDTH - 1) / 2, 32.5 + OFFSET[1] * (HEIGHT - 1) / 2]
    assert ends == pytest.approx(expected, abs=0.03)
    text = page.find_element(By.ID, "pixel").text
    assert "pixel (x, y) 20, 32" in text
    assert "label road" in text
    assert "seed 30, 29 on sky </script>" in text
    assert "confidence 0.75" in text
    assert re.search(r"without seeds S_i sky </script> 87 %, road 7 %", text)
    assert re.search(r"prediction S_f road 87 %", text)


def test_other_displacements_are_layers_with_lines_of_their_own(page):
    choose(page, "order", "list")
    page.find_elements(By.CSS_SELECTOR, "#cards button")[0].click()
    wait(page, lambda b: opened(b) == "0")
    choose(page, "left", "0/field:SRM, stride 4")
    assert (
        "SRM, stride 4: direction by hue; full colour at 2 pixels across, 1.5 down"
        in page.find_element(By.ID, "legend").text
    )
    r, g, b = pixel(page, "left-canvas", 0.5, 0.5)
    assert max(r, g, b) - min(r, g, b) > 100  # a full colour
    click_pixel(page, 20, 32)
    line = page.find_element(By.CSS_SELECTOR, "#arrow line[data-field]")
    ends = [float(line.get_attribute(name)) for name in ("x1", "y1", "x2", "y2")]
    assert ends == pytest.approx([20.5, 32.5, 20.5 + FIELD[0] * 79 / 2, 32.5 + FIELD[1] * 59 / 2], abs=0.01)
    assert "SRM, stride 4 2.0 across, 0.6 down" in page.find_element(By.ID, "pixel").text


def test_everything_works_from_the_keyboard(page):
    stage = page.find_element(By.ID, "stage")
    stage.send_keys(Keys.ARROW_RIGHT)
    assert "pixel (x, y) 41, 30" in page.find_element(By.ID, "pixel").text
    stage.send_keys(Keys.ARROW_UP)
    assert "pixel (x, y) 41, 29" in page.find_element(By.ID, "pixel").text
    before = opened(page)
    page.find_element(By.ID, "next").send_keys(Keys.ENTER)
    wait(page, lambda b: opened(b) != before)
    page.find_element(By.ID, "previous").send_keys(Keys.ENTER)
    wait(page, lambda b: opened(b) == before)
    page.find_elements(By.CSS_SELECTOR, "#cards button")[2].send_keys(Keys.ENTER)
    wait(page, lambda b: opened(b) != before)
    assert page.switch_to.active_element.get_attribute("id") == "viewer-title"


def test_every_control_has_a_name(page):
    unnamed = page.execute_script(
        """return [...document.querySelectorAll("button, select, input, [role=application], figure, canvas[role]")]
            .filter(e => !(e.labels?.length || e.getAttribute("aria-label") || e.textContent.trim()))
            .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert unnamed == []
    headings = [h.tag_name for h in page.find_elements(By.CSS_SELECTOR, "h1, h2, h3")]
    assert headings[0] == "h1"
    assert headings.count("h1") == 1


def test_it_fits_a_phone(page):
    size = page.get_window_size()
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 360
        stage = page.find_element(By.ID, "stage").size
        assert stage["width"] <= 360
        assert stage["height"] == pytest.approx(stage["width"] * HEIGHT / WIDTH, abs=2)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.set_window_size(size["width"], size["height"])


def test_every_number_is_visible_on_a_phone(page):
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 400, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        hidden = page.execute_script(
            """return [...document.querySelectorAll("table.scores td")].filter(cell => {
                const box = cell.getBoundingClientRect();
                return box.width === 0 || box.right > innerWidth || box.left < 0;
            }).length"""
        )
        assert hidden == 0
        label = "return getComputedStyle(document.querySelector('table.scores td'), '::before').content"
        assert page.execute_script(label) == '"S_i"'
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_classes_are_sorted_by_a_click(page):
    def names():
        return [row.text for row in page.find_elements(By.CSS_SELECTOR, "#scores table.sortable tbody th")]

    heads = page.find_elements(By.CSS_SELECTOR, "#scores table.sortable thead th button")
    assert [head.text for head in heads] == ["class", "S_i", "S_s", "S_f", "gain"]
    assert names() == ["road", "sky </script>", "car"]
    heads[0].click()
    assert names() == ["car", "road", "sky </script>"]
    gains = (
        "return [...document.querySelectorAll('#scores table.sortable tbody tr')].map(row => row.cells[4].textContent)"
    )
    heads[4].click()
    values = [float(text.replace("−", "-")) for text in page.execute_script(gains)]
    assert values == sorted(values, reverse=True)
    heads[4].send_keys(Keys.ENTER)
    values = [float(text.replace("−", "-")) for text in page.execute_script(gains)]
    assert values == sorted(values)


def test_two_runs_share_the_viewer(browser, evaluation, baseline, tmp_path):
    write_report([baseline, evaluation], tmp_path / "r.html")
    page = open_page(browser, tmp_path / "r.html")
    options = [o.text for o in Select(page.find_element(By.ID, "left")).options]
    assert {"hrnet_small: prediction (S_f)", "ovenet_small: prediction (S_f)", "ovenet_small: offsets"} <= set(options)
    assert "hrnet_small: offsets" not in options
    choose(page, "left", "0/fused")
    choose(page, "right", "1/fused")
    row = 33 / HEIGHT  # the baseline here is what the other's S_i is
    assert pixel(page, "left-canvas", 0.5, row) != pixel(page, "right-canvas", 0.5, row)
    click_pixel(page, 20, 32)
    assert "hrnet_small: prediction S_f sky" in page.find_element(By.ID, "pixel").text
    assert complaints(browser) == []


def test_a_gallery_that_brings_a_script_does_not_run_it(browser, evaluation, tmp_path):
    folder = tmp_path / "run/test/x"
    shutil.copytree(evaluation, folder)
    attack = "</script><script>document.title = 'attacked'</script><img src=x onerror=\"document.title = 'attacked'\">"
    for path in (folder / "gallery").glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"note": attack}))
    lines = [json.loads(line) | {"name": attack} for line in (folder / "images.jsonl").read_text().splitlines()]
    for index, line in enumerate(lines):
        line["name"] += str(index)
    (folder / "images.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_report([folder], tmp_path / "report.html")
    open_page(browser, tmp_path / "report.html")
    time.sleep(0.5)
    assert browser.title.startswith("OVeNet")
    assert attack in browser.find_element(By.ID, "viewer-title").text
    complaints(browser)


def test_the_page_allows_no_script_but_its_own(page):
    """The second line of defence: its content security policy."""
    page.execute_script("""
        const late = document.createElement("script");
        late.textContent = "document.title = 'attacked'";
        document.body.append(late);
        const button = document.createElement("button");
        button.setAttribute("onclick", "document.title = 'attacked'");
        document.body.append(button);
        button.click();
    """)
    time.sleep(0.2)
    assert page.title != "attacked"
    assert "Content Security Policy" in str(complaints(page))


@pytest.fixture(scope="module")
def gallery(tmp_path_factory):
    """A page of images without labels."""
    page = GalleryPage("a model", "three classes", INFO.class_names, INFO.palette, 0.5)
    for index in range(2):
        sample, prediction = case(index)
        sample = dataclasses.replace(sample, labels=None)
        page.add(f"img {index} </script>", picture_data(sample, prediction, 3, photo_side=WIDTH, grid_side=40))
    path = tmp_path_factory.mktemp("gallery") / "page.html"
    page.write(path, command="ovenet infer")
    return path


@pytest.mark.parametrize("width", [1280, 400])
def test_a_page_without_labels(browser, gallery, width):
    browser.set_window_size(max(width, 500), 900)
    page = open_page(browser, gallery)
    assert page.find_element(By.ID, "viewer-title").text == "img 0 </script>"
    layers = [option.text for option in Select(page.find_element(By.ID, "right")).options]
    words = ["prediction (S_f)", "without seeds (S_i)", "seeds only (S_s)"]
    assert layers == [*words, "offsets", "confidence", "photograph"]
    page.execute_script("document.getElementById('stage').focus()")
    page.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    text = wait(
        page, lambda p: "confidence" in p.find_element(By.ID, "pixel").text and p.find_element(By.ID, "pixel").text
    )
    assert "seed 51, 27" in text.replace("\n", " ")  # (41, 30) and 9.9 to the right, 3.0 up
    assert "label" not in text
    assert not page.find_element(By.ID, "order").is_displayed()
    assert len(page.find_elements(By.CSS_SELECTOR, "#cards button")) == 2
    assert "IoU" not in page.find_element(By.TAG_NAME, "body").text
    assert page.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    assert complaints(browser) == []
