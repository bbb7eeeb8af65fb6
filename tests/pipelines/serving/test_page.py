"""The page in a browser: search, explain, sliders, paging, keyboard, hostile text, accessibility, small screens."""

from __future__ import annotations

import re
import shutil
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import uvicorn
from fastapi.testclient import TestClient

from pipelines.serving.app import create_app
from pipelines.serving.routes_page import read_page
from pipelines.serving.run import bind
from pipelines.serving.settings import ServeConfig
from tests.indexes import WordEmbedder, corpus, make_index

ROOT = Path(__file__).resolve().parents[3]
AXE = ROOT / ".venv-clients" / "node_modules" / "axe-core" / "axe.min.js"
HOSTILE = "<script>document.title='hacked'</script><img src=x onerror=\"document.title='hacked'\"> zebra & \"quotes\""
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--window-size=1280,1000",
)  # fmt: skip


def test_the_page_loads_nothing_and_runs_nothing_but_itself(client: TestClient) -> None:
    response = client.get("/")
    policy = response.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe" not in policy
    assert re.findall(r"https?://", response.text) == []
    assert re.search(r"<(?:script|link|img|iframe)[^>]+src=", response.text) is None
    assert re.search(r"\son\w+=|style=", response.text) is None
    assert "innerHTML" not in read_page()[0]
    assert len(response.content) < 64_000


def picture() -> bytes:
    """A JPEG of 40 by 30 pixels, as an index keeps it."""
    from PIL import Image

    file = BytesIO()
    Image.new("RGB", (40, 30), "teal").save(file, "JPEG")
    return file.getvalue()


@pytest.fixture(scope="module")
def url(_word_model: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    texts = {**corpus(60), "hostile/<b>id</b>": HOSTILE, "picture": "a zeppelin above the sea"}
    metadata = {
        "title": pa.array([HOSTILE if "hostile" in name else f"Title {name}" for name in texts]),
        "thumbnail": pa.array([picture() if name == "picture" else None for name in texts], pa.binary()),
    }
    index = make_index(tmp_path_factory.mktemp("page"), texts, metadata=metadata)
    older = make_index(tmp_path_factory.mktemp("older"), corpus(40), embedder=WordEmbedder(outputs=("dense",)))
    config = ServeConfig(indexes=(f"words={index}", f"older={older}"), aliases={"current": "words"})
    listening = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(create_app(config), log_config=None))
    thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=30)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium chromium-driver")
    options = selenium.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(chromedriver))
    driver.implicitly_wait(0)
    yield driver
    driver.quit()


class Page:
    """What a visitor does."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url

    def open(self, query: str = "") -> None:
        self.driver.get(f"{self.url}/{query}")
        self.wait(lambda: self.one("#index option"))

    def wait(self, condition: Any, seconds: float = 120) -> Any:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                found = condition()
                if found:
                    return found
            except Exception:  # an element that is replaced meanwhile
                found = None
            time.sleep(0.05)
        raise AssertionError(
            f"nothing after {seconds} s; the page says {self.status!r}; {self.driver.get_log('browser')}"
        )

    def all(self, selector: str) -> list[Any]:
        return list(self.driver.find_elements("css selector", selector))

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    @property
    def status(self) -> str:
        return str(self.one("#status").text)

    def ids(self) -> list[str]:
        return [hit.get_attribute("data-chunk") for hit in self.all(".hit")]

    def scores(self) -> dict[str, float]:
        return {hit.get_attribute("data-chunk"): float(hit.get_attribute("data-score")) for hit in self.all(".hit")}

    def search(self, query: str) -> None:
        box = self.one("#query")
        box.clear()
        box.send_keys(query + "\n")
        self.wait(lambda: re.match(r"\d+ hits?", self.status))

    def slide(self, channel: str, value: float) -> None:
        self.driver.execute_script(
            "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
            "s.dispatchEvent(new Event('input', {bubbles: true}));",
            f"weight-{channel}",
            value,
        )

    def check(self) -> None:
        """Nothing was refused by the policy, and no script failed."""
        bad = [entry for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]
        assert bad == []
        assert self.driver.title == "tridex search"


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Page]:
    browser.get_log("browser")
    visited = Page(browser, url)
    visited.open()
    yield visited
    visited.check()


def test_search_and_explain(page: Page) -> None:
    page.search("the kernel writes dirty pages")
    assert len(page.ids()) == 10
    assert "version 2" in page.status
    assert len(page.all(".hit:first-child .bar")) == 4
    assert page.all(".hit:first-child .text mark")
    page.one(".hit:first-child .why").click()
    page.wait(lambda: page.all(".hit:first-child table"))
    captions = [caption.text for caption in page.all(".hit:first-child caption")]
    assert captions[0] == "Channels"
    assert len(captions) == 3
    parts = [float(cell.text) for cell in page.all(".hit:first-child table:first-of-type tbody td:nth-child(4)")[:4]]
    assert sum(parts) == pytest.approx(page.scores()[page.ids()[0]], abs=2e-3)


def test_sliders_rank_by_the_formula_of_the_server(page: Page) -> None:
    import httpx2

    page.search("the scheduler locks a buffer")
    before = page.scores()
    for channel, weight in {"dense": 0.0, "sparse": 2.0, "colbert": 0.5, "bm25": 1.25}.items():
        page.slide(channel, weight)
    page.wait(lambda: "anew" in page.status)
    after = page.scores()
    assert set(after) == set(before)
    body = {"query": "the scheduler locks a buffer", "normalised": True, "index": "words"}
    (result,) = httpx2.post(f"{page.url}/v1/search", json=body).json()["results"]
    weights = {"sparse": 2.0, "colbert": 0.5, "bm25": 1.25}
    for hit in result["hits"]:
        wanted = sum(w * hit["normalised"][c] for c, w in weights.items()) / sum(weights.values())
        assert after[hit["chunk_id"]] == pytest.approx(wanted, abs=1e-12)
    assert list(after.values()) == sorted(after.values(), reverse=True)
    page.one(".hit:first-child .why").click()
    page.wait(lambda: page.all(".hit:first-child tfoot"))
    assert float(page.all(".hit:first-child tfoot td")[3].text) == pytest.approx(next(iter(after.values())), abs=2e-3)
    page.one("#copy").click()
    text = page.wait(lambda: page.one("#yaml").get_attribute("value"))
    assert "weights: {sparse: 2, colbert: 0.5, bm25: 1.25}" in text
    page.one("#again").click()
    page.wait(lambda: re.match(r"\d+ hits?", page.status))
    asked = {**body, "fusion": result["fusion"], "weights": {**weights, "dense": 0.0}}
    (searched,) = httpx2.post(f"{page.url}/v1/search", json=asked).json()["results"]
    assert page.ids() == [hit["chunk_id"] for hit in searched["hits"]]


def test_what_is_copied_is_a_search_config(page: Page, tmp_path: Path) -> None:
    from pipelines.config import read_search_config

    page.search("timer")
    page.slide("bm25", 2.5)
    page.one("#copy").click()
    (tmp_path / "search.yaml").write_text(page.wait(lambda: page.one("#yaml").get_attribute("value")))
    config = read_search_config(tmp_path / "search.yaml")
    assert config.weights is not None
    assert config.weights["bm25"] == 2.5
    assert config.mode == "hybrid"


def test_pages_and_filters(page: Page) -> None:
    page.search("kernel")
    first = page.ids()
    page.one("#next").click()
    page.wait(lambda: page.ids() != first and page.status[0].isdigit())
    second = page.ids()
    assert not set(first) & set(second)
    assert page.one(".hit .rank").text == "11"
    page.one("#previous").click()
    page.wait(lambda: page.ids() == first)
    page.one("#options summary").click()
    page.one("#filter").send_keys("title = 'Title d0007'")
    page.search("kernel")
    assert page.ids() == ["d0007"]
    page.one("#filter").clear()
    page.one("#filter").send_keys("nothing = 1")
    page.one("#query").send_keys("\n")
    page.wait(lambda: "where: " in page.status)
    assert "error" in page.one("#status").get_attribute("class")
    page.driver.get_log("browser")  # the browser logs every answer of 400


def test_a_link_finds_the_same_again(page: Page) -> None:
    page.search("timer & clock <x>")
    found, address = page.ids(), page.driver.current_url
    page.open("?" + address.split("?")[1])
    page.wait(lambda: page.ids() == found)
    assert page.one("#query").get_attribute("value") == "timer & clock <x>"


def test_keys_alone_are_enough(page: Page) -> None:
    from selenium.webdriver.common.keys import Keys

    page.search("the kernel writes dirty pages")
    active = page.driver.switch_to.active_element
    assert active.get_attribute("id") == "query"
    active.send_keys(Keys.ARROW_DOWN)
    assert page.driver.switch_to.active_element.get_attribute("aria-controls") == "hit-1-why"
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN)
    second = page.driver.switch_to.active_element
    assert second.get_attribute("aria-controls") == "hit-2-why"
    second.send_keys(Keys.ENTER)
    page.wait(lambda: page.all("#hit-2-why table"))
    second.send_keys(Keys.ESCAPE)
    assert second.get_attribute("aria-expanded") == "false"
    second.send_keys(Keys.ARROW_UP)
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_UP)
    assert page.driver.switch_to.active_element.get_attribute("id") == "query"


def test_two_indexes_stand_side_by_side(page: Page) -> None:
    import httpx2

    page.one("#options summary").click()
    page.driver.execute_script("document.getElementById('compare').value = 'older'")
    page.search("the scheduler locks a buffer")
    page.wait(lambda: page.all("#other-hits .hit"))
    asked = {"query": "the scheduler locks a buffer", "k": 10}
    ranks: dict[str, dict[str, int]] = {}
    for name, selector in (("words", "#hits"), ("older", "#other-hits")):
        (result,) = httpx2.post(f"{page.url}/v1/search", json={**asked, "index": name}).json()["results"]
        ranks[name] = {hit["chunk_id"]: hit["rank"] for hit in result["hits"]}
        shown = [hit.get_attribute("data-chunk") for hit in page.all(f"{selector} .hit")]
        assert shown == list(ranks[name])
    for hit in page.all("#hits .hit"):
        there = ranks["older"].get(hit.get_attribute("data-chunk"))
        told = hit.find_element("css selector", ".moved").text
        assert told.startswith("not on this page of older" if there is None else f"rank {there} in older"), told
    assert not page.one("#weights").is_displayed()
    page.one("#other-hits .hit:first-child .why").click()
    page.wait(lambda: page.all("#other-1-why table"))
    page.open("?" + page.driver.current_url.split("?")[1])
    page.wait(lambda: page.all("#other-hits .hit"))
    page.driver.execute_script("document.getElementById('compare').value = ''")
    page.search("the scheduler locks a buffer")
    assert page.all("#other-hits .hit") == []
    assert page.one("#weights").is_displayed()


def test_an_alias_is_compared_with_its_index(page: Page) -> None:
    page.open("?q=timer&compare=current")
    page.wait(lambda: page.all("#other-hits .hit"))
    assert page.one("#other-title").text.startswith("current, version")
    moved = [told.text for told in page.all("#hits .moved")]
    assert moved == [f"rank {i} in current" for i in range(1, len(moved) + 1)]


def test_a_picture_is_shown(page: Page) -> None:
    page.search("zeppelin")
    assert page.ids()[0] == "picture"
    (shown,) = page.all(".hit:first-child img")
    assert page.wait(lambda: page.driver.execute_script("return arguments[0].naturalWidth", shown)) == 40
    assert shown.get_attribute("alt") == "picture of picture"


def test_hostile_text_stays_text(page: Page) -> None:
    page.search("zebra quotes")
    assert page.ids()[0] == "hostile/<b>id</b>"
    page.one(".hit:first-child .why").click()
    page.wait(lambda: page.all(".hit:first-child table"))
    assert page.all(".hit img") == []
    assert page.all("main script") == []
    assert "<script>" in page.one(".hit:first-child").text
    page.search("<img src=x onerror=alert(1)>")
    assert page.driver.title == "tridex search"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("compared", [False, True])
def test_axe_finds_no_violation(page: Page, scheme: str, width: int, compared: bool) -> None:
    if not AXE.exists():
        pytest.skip("axe-core is absent; `make test-clients` installs it where there is npm")
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 800}
    page.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        page.driver.refresh()
        page.wait(lambda: page.one("#index option"))
        page.search("the kernel writes dirty pages")
        assert page.one("#copy").is_displayed() == (width > 800), "on a phone the hits come first"
        page.driver.execute_script("document.querySelector('#index option').textContent = 'a model '.repeat(40)")
        page.driver.execute_script("document.getElementById('weights-box').open = true")
        page.one("#options summary").click()
        page.one(".hit:first-child .why").click()
        page.wait(lambda: page.all(".hit:first-child table"))
        if compared:
            page.driver.execute_script("document.getElementById('compare').value = 'older'")
            page.search("the kernel writes dirty pages")
            page.wait(lambda: page.all("#other-hits .hit"))
            page.one("#other-hits .hit:first-child .why").click()
            page.wait(lambda: page.all("#other-1-why table"))
        else:
            page.one("#copy").click()
        page.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")})
        found = page.driver.execute_async_script("axe.run().then(arguments[arguments.length - 1])")
        assert [(v["id"], [n["html"][:120] for n in v["nodes"]]) for v in found["violations"]] == []
        assert len(found["passes"]) > 20
        assert page.driver.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
