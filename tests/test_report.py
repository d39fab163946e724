"""The page of a run: self-contained, right, and usable by mouse and keyboard in a browser."""

import json
import re
import shutil

import numpy as np
import pytest

from csd_plugin.cli import main
from csd_plugin.evaluation.curves import read_curves
from csd_plugin.evaluation.report import line_series
from csd_plugin.evaluation.svg import line_chart, scatter_chart
from tests.conftest import base_options, train

CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


@pytest.fixture
def page(pairs, tmp_path):
    """The report of a short run whose name needs escaping."""
    options = base_options(**{"name": "a<b>&c", "logger:use_tb_logger": True})
    assert train(options) == 0
    assert main(["report", "experiments/a<b>&c", "--images", "2", "--png"]) == 0
    return tmp_path / "experiments/a<b>&c/report.html"


def test_the_page_holds_everything_and_asks_for_nothing(page):
    text = page.read_text()
    assert "<title>a&lt;b&gt;&amp;c</title>" in text and "a<b>" not in text
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", text) and "url(" not in text
    assert len(re.findall(r'<figure class="slider">', text)) == 2
    assert text.count("data:image/webp;base64,") == 2 * 4 and text.count("data:image/png;base64,") == 2
    for heading in ("PSNR", "Loss l_pix_student", "Loss l_pix_teacher", "Loss l_contrast", "Quality against size"):
        assert f"<h3>{heading}</h3>" in text
    assert "fewer parameters" in text and "<td>teacher</td>" in text
    assert "$" not in re.sub(r"<script.*?</script>", "", text, flags=re.S)


def test_the_figures_are_those_of_the_summary(page, capsys):
    assert main(["summary", "-opt", "run.yml"]) == 0
    out = capsys.readouterr().out
    student = re.search(r"student 0.5x +(\d+\.\d+) +(\d\.\d+)", out)
    row = re.search(r"<td>student 0.5x</td><td>([\d.]+)</td><td>([\d.]+)</td>", page.read_text())
    assert row.groups() == student.groups()


def test_charts_as_pictures(page):
    for name in ("report_curves.png", "report_tradeoff.png"):
        assert page.with_name(name).read_bytes().startswith(b"\x89PNG")


def test_curves_are_those_that_were_logged(page, tmp_path):
    curves = read_curves(tmp_path / "tb_logger/a<b>&c")
    assert [step for step, _ in curves["losses/l_contrast"]] == [1, 2, 3, 4]
    assert [step for step, _ in curves["metrics/held/psnr"]] == [2, 4]
    titles = [title for title, *_ in line_series(curves)]
    assert titles[0] == "PSNR" and "Loss l_contrast" in titles
    assert set(line_series(curves)[0][3]) == {"held", "held_teacher"}
    assert read_curves(tmp_path / "nowhere") == {}


def test_charts_put_points_where_they_belong():
    svg = line_chart({"a": [(0, 1.0), (10, 3.0)], "b": [(5, 2.0)], "empty": []}, "x", "y")
    (line,) = re.findall(r'points="([\d., ]+)"', svg.split("</polyline>")[0])
    (x0, y0), (x1, y1) = (map(float, pair.split(",")) for pair in line.split())
    assert x0 < x1 and y0 > y1
    assert "empty" not in svg and svg.count("<li ") == 2
    svg = scatter_chart({"s": (10, 1), "m": (100, 2), "l": (1000, 3)}, "x", "y")
    dots = [float(value) for value in re.findall(r'cx="([\d.]+)"', svg)]
    assert np.diff(dots)[0] == pytest.approx(np.diff(dots)[1], abs=0.2)  # logarithmic
    assert "<svg" in line_chart({"flat": [(1, 2.0), (2, 2.0)]}, "x", "y")
    assert "nan" not in line_chart({"n": [(1, float("nan")), (2, 1.0)]}, "x", "y")
    assert "No curve" in line_chart({}, "x", "y")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nowhere.yml"], "cannot read option file"), (["run.yml", "--checkpoint", "9"], "no such checkpoint")],
)
def test_mistakes_cost_one_line(pairs, tmp_path, arguments, message, capsys):
    assert train(base_options()) == 0
    assert main(["report", *arguments]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert message in error
    assert not (tmp_path / "experiments/tiny/report.html").exists()


@pytest.fixture
def browser(tmp_path):
    """A headless Chromium."""
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    flags = ("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync")
    flags += ("disable-background-networking", "disable-component-update", f"user-data-dir={tmp_path / 'chromium'}")
    for flag in flags:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_sliders_move_by_mouse_touch_and_keyboard(page, browser):
    from selenium.webdriver import ActionChains, Keys
    from selenium.webdriver.support.ui import Select

    browser.set_window_size(1000, 900)
    browser.get(page.as_uri())
    figure = browser.find_element("css selector", ".slider")
    stage, knob = figure.find_element("css selector", ".stage"), figure.find_element("css selector", "input")

    def at():
        value = browser.execute_script("return getComputedStyle(arguments[0]).getPropertyValue('--at')", stage)
        return float(value.strip("% "))

    assert at() == 50
    ActionChains(browser).scroll_to_element(stage).perform()
    mouse = ActionChains(browser).move_to_element(stage).click_and_hold()
    mouse.move_by_offset(stage.size["width"] // 4, 0).release().perform()
    assert at() == pytest.approx(75, abs=3)
    knob.send_keys(Keys.HOME)
    assert at() == 0
    knob.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert at() == 2
    box = stage.rect
    point = {"x": box["x"] + box["width"] * 0.3 - browser.execute_script("return scrollX")}
    point["y"] = box["y"] + box["height"] / 2 - browser.execute_script("return scrollY")
    browser.execute_cdp_cmd("Input.synthesizeTapGesture", {**point, "gestureSourceType": "touch"})
    assert at() == pytest.approx(30, abs=3)

    sources = json.loads(figure.find_element("css selector", "script").get_property("textContent"))
    left, _ = (Select(select) for select in figure.find_elements("css selector", "select"))
    assert len(left.options) == len(sources) == 5
    left.select_by_visible_text("LR")
    over = figure.find_element("css selector", "img.over")
    assert over.get_attribute("src") == sources["LR"] and "pixels" in over.get_attribute("class")
    assert browser.execute_script("return [...document.images].every(image => image.naturalWidth > 0)")
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    requests = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [m["params"]["request"]["url"] for m in requests if m["method"] == "Network.requestWillBeSent"]
    assert page.as_uri() in urls and not [url for url in urls if url.startswith(("http", "ws"))]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_readable_on_a_phone(page, browser, scheme):
    metrics = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    browser.get(page.as_uri())
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
    style = browser.find_element("css selector", "body")
    colours = (style.value_of_css_property(name) for name in ("color", "background-color"))
    ink, paper = ([int(number) for number in re.findall(r"\d+", colour)] for colour in colours)

    def luminance(colour):
        linear = [c / 255 / 12.92 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour[:3]]
        return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))

    light, dark = sorted((luminance(ink), luminance(paper)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) > 7  # WCAG AAA
    assert (luminance(paper) < 0.05) is (scheme == "dark")
