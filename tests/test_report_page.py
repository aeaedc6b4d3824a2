"""The report in headless Chromium: read, pointed at, filtered, in both colour schemes, on a phone and on paper."""

import shutil
import time

import pytest
from command import TINY, splore

pytestmark = pytest.mark.slow
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
RUN = "article:not([hidden]) "


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    for name, words in (("ours", ["--cut.ranks=keep"]), ("sparse", ["--method=sparse"])):
        done = splore("run", *TINY, *words, f"--out={name}", folder=folder)
        assert done.code == 0, done
    command = ("report", "ours", "sparse", "-o", "page.html", "--time", "--own-code")
    done = splore(*command, folder=folder, env={"SPLORE_PLAN": "fast"})
    assert done.code == 0, done
    return folder / "page.html"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not chromedriver:
        pytest.skip("there is no chromium with its chromedriver: make chromium installs both where it can")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: make setup")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver, page):
    """The page as it is when it has just been opened, on a laptop, in light."""
    emulate(driver, "light", 1200)
    driver.get(page.as_uri())
    until(lambda: len(seen(driver, ".chart")) == len(seen(driver, ".chart > svg, .chart svg.marks")) > 0)
    return driver


def emulate(driver, scheme, width):
    scheme = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def seen(driver, css):
    return [element for element in driver.find_elements("css selector", css) if element.is_displayed()]


def until(condition, seconds=30):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.05)


def point_at(driver, element, x=0, y=0):
    """Moves the pointer to a place of an element, counted from its middle."""
    from selenium.webdriver import ActionChains

    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
    ActionChains(driver).move_to_element_with_offset(element, x, y).perform()


def tooltip(driver):
    """The rows of what is said where the pointer is."""
    shown = "#vg-tooltip-element.visible"
    until(lambda: seen(driver, shown))
    keys, values = (driver.find_elements("css selector", f"{shown} td.{part}") for part in ("key", "value"))
    return {key.text: value.text for key, value in zip(keys, values, strict=True)}


def cells(row):
    return [cell.text for cell in row.find_elements("css selector", "th, td")]


def choose(driver, name):
    """Clicks the button of this name in the run that is shown."""
    next(label for label in seen(driver, f"{RUN}.choose label") if label.text == name).click()


def test_the_outcome_comes_first_and_agrees_with_the_table_of_stages(browser):
    assert browser.find_element("tag name", "h1").text == "tests_support:tiny on tests_support:blobs"
    facts = seen(browser, RUN + ".outcome div")
    titles = [fact.find_element("tag name", "dt").text for fact in facts]
    assert titles == ["Accuracy", "Parameters", "On disk", "Multiply-adds", "Time"]
    last = seen(browser, RUN + "table")[0].find_elements("css selector", "tbody tr")[-1]
    stage, accuracy, params, _, _, size = cells(last)
    assert stage == "after fine-tuning"
    assert [fact.find_element("css selector", ".big").text for fact in facts[:3]] == [accuracy, params, size]


def test_pointing_at_a_curve_tells_the_net_the_epoch_and_the_figure(browser):
    chart = seen(browser, RUN + "[data-panel$=curves] svg")[0]
    point_at(browser, chart, 100, 0)
    said = tooltip(browser)
    assert said["net"] in ("dense", "A·B + S") and 1 <= int(said["epoch"]) <= 4
    assert said["stage"] in ("dense", "training", "fine-tuning") and 0 <= float(said["accuracy"]) <= 100


def test_pointing_at_a_layer_tells_what_its_row_of_the_table_tells(browser):
    choose(browser, "density")
    until(lambda: len(seen(browser, RUN + "[data-panel$=layers] svg")) == 1)
    point_at(browser, seen(browser, RUN + "[data-panel$=layers] svg")[0], 100, 15)
    said = tooltip(browser)
    table = seen(browser, RUN + "table[id]")[0]
    titles = [title.text for title in table.find_elements("css selector", "thead th")]
    rows = [cells(row) for row in table.find_elements("css selector", "tbody tr")]
    assert {row[0] for row in rows} == {"conv1", "conv2", "head"}
    assert said == dict(zip(titles, next(row for row in rows if row[0] == said["layer"]), strict=True))


def test_pointing_at_the_energy_of_a_layer_tells_its_share(browser):
    point_at(browser, seen(browser, RUN + "[data-chart$=energy-0] svg")[0])
    said = tooltip(browser)
    assert said["layer"] in ("conv1", "conv2", "head") and 0 < float(said["entries, %"]) <= 100
    assert 0 < float(said["energy, %"]) <= 100


def test_the_table_of_layers_is_filtered_by_name(browser):
    field = seen(browser, RUN + "input[type=search]")[0]
    browser.execute_script("arguments[0].scrollIntoView()", field)
    rows = RUN + "table[id] tbody tr"
    assert len(seen(browser, rows)) == 3
    field.send_keys("CONV")
    assert [row.text.split()[0] for row in seen(browser, rows)] == ["conv1", "conv2"]
    field.clear()
    field.send_keys("nothing")
    assert not seen(browser, rows)


def test_a_click_in_the_legend_shows_the_nets_of_one_method_alone(browser):
    chart = seen(browser, "[data-panel=fronts] .chart")[0]

    def opaque():
        points = chart.find_elements("css selector", '[aria-roledescription="point"]')
        bright = [point for point in points if float(point.get_attribute("opacity") or 1) > 0.5]
        return [point.get_attribute("aria-label") for point in bright]

    assert len(opaque()) == 4
    next(text for text in chart.find_elements("css selector", ".role-legend text") if text.text == "S alone").click()
    until(lambda: len(opaque()) == 1)
    assert "S alone" in opaque()[0]


def test_each_cost_has_its_front_time_too(browser):
    labels = [label for label in seen(browser, "[data-chooses=fronts] label")]
    assert [label.text for label in labels] == ["parameters", "bytes", "multiply-adds", "time"]
    for label in labels:
        label.click()
        until(lambda: len(seen(browser, "[data-panel=fronts] svg")) == 1)


def test_the_chooser_shows_one_layer_as_the_sum_of_its_parts(browser):
    from selenium.webdriver.support.select import Select

    chooser = Select(seen(browser, RUN + "select")[0])
    assert [option.text for option in chooser.options] == ["conv1", "conv2", "head"]
    chooser.select_by_visible_text("conv2")
    pictures = seen(browser, RUN + ".sum img")
    assert [picture.get_attribute("alt").split(",")[0] for picture in pictures] == [
        "W of conv2", "A·B of conv2", "S of conv2",
    ]  # fmt: skip
    measure = "return [arguments[0].naturalWidth, arguments[0].naturalHeight]"
    assert all(browser.execute_script(measure, picture) == [72, 12] for picture in pictures)


def test_the_mistakes_are_shown_group_by_group_as_often_as_the_table_counts_them(browser):
    numbers = [cell.text for cell in seen(browser, RUN + ".cross td.n")]
    groups = {"compressed alone wrong": numbers[2], "both wrong": numbers[3], "dense alone wrong": numbers[1]}
    assert sum(map(int, numbers)) == 40
    shown = [label for label in seen(browser, RUN + ".choose label") if label.text.rsplit(" (")[0] in groups]
    assert shown
    for label in shown:
        browser.execute_script("arguments[0].scrollIntoView()", label)
        label.click()
        number = groups[label.text.rsplit(" (")[0]]
        assert f"({number})" in label.text or f"of {number})" in label.text
        assert len(seen(browser, RUN + ".cases li")) == min(int(number), 24)


def test_another_run_is_shown_in_place_of_the_first(browser):
    from selenium.webdriver.support.select import Select

    Select(browser.find_element("css selector", "[data-chooses=run]")).select_by_visible_text("sparse")
    assert [article.get_attribute("aria-label") for article in seen(browser, "article")] == ["sparse"]
    until(lambda: len(seen(browser, RUN + ".chart")) == len(seen(browser, RUN + ".chart svg")) == 3)
    assert seen(browser, RUN + ".sum h4")[0].text == "W = S"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_stands_out_from_its_ground_in_both_colour_schemes(browser, scheme):
    emulate(browser, scheme, 1200)
    ground, *texts = browser.execute_script(
        """const rgb = (colour) => {
          const context = document.createElement("canvas").getContext("2d");
          context.fillStyle = colour;
          context.fillRect(0, 0, 1, 1);
          return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const texts = "h1, h2, p, th, td, dt, dd, figcaption, small, .wrong, .chart text";
        const shown = [...document.querySelectorAll(texts)]
          .filter((element) => element.checkVisibility({opacityProperty: true}) && element.textContent.trim());
        const colour = (element) => getComputedStyle(element)[element.matches(".chart text") ? "fill" : "color"];
        const ground = getComputedStyle(document.body).backgroundColor;
        return [ground, ...shown.map(colour)].map(rgb);"""
    )
    assert len(texts) > 100 and (luminance(ground) > 0.9) == (scheme == "light")
    assert min(contrast(ground, text) for text in texts) >= 4.5  # what WCAG asks of text


def luminance(colour):
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in (c / 255 for c in colour))
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_nothing_is_wider_than_a_narrow_window(browser, width, page):
    emulate(browser, "light", width)
    browser.get(page.as_uri())
    until(lambda: seen(browser, ".chart svg"))
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    # Only tables and the recipe may scroll within their own place.
    wide = browser.execute_script(
        """return [...document.querySelectorAll("body *")].filter((element) => element.checkVisibility()
          && element.getBoundingClientRect().right > innerWidth + 1
          && !element.closest(".scroll, .choose legend, pre")).map((element) => element.outerHTML.slice(0, 100));"""
    )
    assert not wide


def test_headings_alternatives_and_labels_serve_those_who_do_not_see_it(browser):
    levels = [int(heading.tag_name[1]) for heading in browser.find_elements("css selector", "h1, h2, h3, h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    nameless = browser.execute_script(
        """return [...document.querySelectorAll("img:not([alt]), .chart:not([aria-label]), table:not(:has(th))")].length
          + [...document.querySelectorAll("input, select")].filter((field) => !field.labels.length).length;"""
    )
    assert nameless == 0


def test_on_paper_everything_that_is_shown_is_there_without_controls(browser):
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    try:
        assert seen(browser, "h1") and seen(browser, ".chart svg") and seen(browser, "table")
        assert not seen(browser, "fieldset, select, input")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_the_page_needs_nothing_but_itself_and_its_console_is_silent(browser, page):
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get(page.as_uri())
    until(lambda: seen(browser, ".chart svg"))
    for label in browser.find_elements("css selector", ".choose input"):
        browser.execute_script("arguments[0].click()", label)
    until(lambda: len(seen(browser, ".chart")) == len(seen(browser, ".chart svg")))
    assert browser.get_log("browser") == []
    sent = '"Network.requestWillBeSent"'
    messages = [entry["message"] for entry in browser.get_log("performance")]
    requests = [message for message in messages if sent in message]
    assert requests and all(page.as_uri() in message or '"url":"data:' in message for message in requests)
