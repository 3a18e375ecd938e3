"""The page in a real browser: it shows all it has, asks for nothing, and fits on any screen."""

import json
import shutil

import pytest

from solo_minent.report import report

pytestmark = pytest.mark.browser

FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run
--disable-dev-shm-usage --disable-background-networking --disable-component-update --disable-sync
--hide-scrollbars"""
WIDE_ELEMENTS = """
const wide = [];
const body = document.body;
const edge = body.getBoundingClientRect().right - parseFloat(getComputedStyle(body).paddingRight);
for (const e of document.querySelectorAll('body *')) {
  const beyond = e.getBoundingClientRect().right > edge + 1;
  if (beyond && !e.closest('.wide')) wide.push(e.outerHTML.slice(0, 80));
}
return [document.documentElement.scrollWidth, window.innerWidth, wide];
"""
IMAGES = "return [...document.images].map(i => [i.complete, i.naturalWidth, i.alt])"
CELLS = """
return [...document.querySelectorAll('.results tbody tr')].map(
  row => [...row.querySelectorAll('td')].map(
    cell => [...cell.querySelectorAll('.value')].map(value => value.innerText)))
"""


@pytest.fixture
def browser(tmp_path):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.fail(
            "no chromium with chromedriver. apt-get install chromium chromium-driver, "
            "or bash scripts/test.sh, which leaves these tests out"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    started = webdriver.Chrome(options=options, service=Service(driver))
    yield started
    started.quit()


def screen(browser, width, theme="light", media="screen"):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": theme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": features})


def requests(browser, page):
    """Addresses that the page asked for, its own left out."""
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
    asked = {each["request"]["url"] for each in sent if each["documentURL"] == page}
    assert page in asked  # the log works
    return {url for url in asked if url != page}


@pytest.fixture
def page(make_run, make_result):
    long_words = "linear, " + "x" * 150 + ", 500 epochs, last epoch"
    linear = make_result("linear", long_words, metrics={"top1": 97.5, "top5": 99.75})
    pixels = make_result(target="pixels", top1=98.625)
    few = make_result("few_shot", "1-NN, cosine", top1=90.5)
    configs = [
        make_run("twist", results=[linear, pixels]),
        make_run("mec", f"name={'n' * 120}", results=[make_result(top1=92.125), few, pixels]),
    ]
    return report(configs, progress=False)


def test_the_page_in_a_browser(browser, page):
    browser.get(page.as_uri())
    count = len(browser.execute_script(IMAGES))
    assert count > 2 * 10 * 7  # neighbours alone
    for width in (1280, 400):
        for theme in ("light", "dark"):
            screen(browser, width, theme)
            browser.refresh()
            images = browser.execute_script(IMAGES)
            assert len(images) == count
            assert [image for image in images if not image[0] or not image[1]] == []
            assert all(alt for _, _, alt in images)
            for opened in ("", "document.querySelectorAll('details').forEach(d => d.open = true);"):
                scroll, window, wide = browser.execute_script(opened + WIDE_ELEMENTS)
                assert window == width and scroll <= width and wide == [], (width, wide)
            shade = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (shade == "rgb(255, 255, 255)") == (theme == "light")
            chosen = browser.execute_script(
                "const p = document.querySelector('picture');"
                "return p.querySelector('img').currentSrc === p.querySelector('source').srcset"
            )
            assert chosen == (theme == "dark")
    assert browser.execute_script(CELLS) == [
        [["97.50"], [], []],
        [[], ["92.12"], ["98.62"]],
        [[], ["90.50"], []],
    ]
    assert all(url.startswith("data:") for url in requests(browser, page.as_uri()))
    assert browser.get_log("browser") == []


def test_the_page_prints(browser, page):
    browser.get(page.as_uri())
    screen(browser, 760, media="print")
    scroll, window, wide = browser.execute_script(WIDE_ELEMENTS)
    assert scroll <= window and wide == []
    assert browser.print_page()  # a PDF, in base64
    assert browser.get_log("browser") == []
