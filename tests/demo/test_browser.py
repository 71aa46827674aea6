"""``deop demo`` as a person uses it (docs/demo.md): in a real browser, from the command line to what a page says."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests
from PIL import Image

from deop.data.emoji.artwork import draw

pytest.importorskip("gradio", reason="the page is an extra: pip install 'deop[demo]'")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
PATIENCE = 120_000  # ms

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """The page of two systems, served by the command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "deop", "demo", "--port", str(port), "--seed", "3", "--threads", "1"]
    command += ["--model", "deop-mini", "--model", "deop-mini/bundled", "--short-side", "96"]
    command += ["--max-bytes", "200000", "--max-names", "6", "--max-seconds", "600"]
    log = tmp_path_factory.mktemp("demo") / "log"
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=file, text=True)
    killer = threading.Timer(600, process.kill)  # a page that never comes
    killer.start()
    try:
        line = process.stdout.readline()
        killer.cancel()
        assert f"http://127.0.0.1:{port}" in line, log.read_text()
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
        assert "Traceback" not in log.read_text()
    finally:
        killer.cancel()
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is in the extra dev")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium on this machine")
    with playwright.sync_playwright() as started:
        chromium = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, address):
    """The page with the scene that it opens with, on a telephone."""
    page = browser.new_page(viewport={"width": 400, "height": 800})
    page.set_default_timeout(PATIENCE)
    page.dialogs = []
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector("#legend-1 .legend li")
    yield page
    assert not page.dialogs
    page.close()


def segment(page, names: str) -> None:
    page.locator("#names textarea").fill(names)
    page.locator("#segment").click()


def choose(page, path: Path) -> None:
    page.locator("#upload input[type=file]").set_input_files(path)


def message(page, text: str) -> str:
    """What the page says, once it says this."""
    page.wait_for_function(
        "text => document.querySelector('#status').innerText.includes(text)", arg=text, timeout=PATIENCE
    )
    return page.locator("#status").inner_text()


def areas(page, index: int) -> dict[str, float]:
    rows = page.locator(f"#legend-{index} .legend li").all_inner_texts()
    return {name: float(share.removesuffix(" %")) for name, share in (row.split("\n") for row in rows)}


def test_a_picture_is_uploaded_named_clicked_and_severed(page, tmp_path):
    segment(page, "sky, tulip, koala")
    message(page, "Segmented into 3 classes")
    image = Image.new("RGB", (300, 200), (90, 160, 235))
    image.paste((60, 140, 40), (0, 120, 300, 200))
    for name, place in (("koala", (30, 60)), ("tulip", (190, 70))):
        drawn = Image.fromarray(draw(name, "twemoji", 90))
        image.paste(drawn, place, drawn)
    image.save(tmp_path / "my <b>photo.png")
    before = page.locator("#picture-0 img").get_attribute("src")
    choose(page, tmp_path / "my <b>photo.png")
    page.wait_for_function(
        "old => (image => image.src != old && image.complete)(document.querySelector('#picture-0 img'))",
        arg=before,
    )
    for index in (0, 1):
        found = areas(page, index)
        assert set(found) <= {"sky", "tulip", "koala"}
        assert sum(found.values()) == pytest.approx(100, abs=0.3)
    shown = page.locator("#picture-0 img").bounding_box()
    assert shown["width"] / shown["height"] == pytest.approx(1.5, abs=0.02)

    page.locator("#picture-1 img").click(position={"x": shown["width"] / 2, "y": 8})
    page.wait_for_selector("#region-1 .best li")
    for index, captions in enumerate((4, 2)):  # of both systems, wherever the click was
        assert page.locator(f"#region-{index} figure").count() == captions
        assert page.locator(f"#region-{index} .best li").count() == 3
    # The highest row of the picture belongs to one of the classes, of which the region is one.
    assert page.locator("#region-1 h3").inner_text() in areas(page, 1)
    assert "after, with α = 1.00" in page.locator("#region-1").inner_text()

    legend = page.locator("#legend-1").inner_html()
    page.locator("#alpha-1 input[type=range]").fill("0")
    page.wait_for_function(
        "document.querySelector('#region-1').innerText.includes('α = 0.00')", timeout=PATIENCE
    )
    assert page.locator("#legend-1").inner_html() != legend
    assert "α = 1.00" in page.locator("#region-0").inner_text()


def test_a_region_is_explained_without_a_mouse(page):
    chosen = page.locator("#explain-0 input")
    chosen.focus()
    page.keyboard.press("ArrowDown")  # the largest class is the first
    page.keyboard.press("Enter")
    page.wait_for_selector("#region-1 .best li")
    largest = page.locator("#legend-0 .legend li .name").first.inner_text()
    assert page.locator("#region-0 h3").inner_text() == largest == chosen.input_value()
    # The other panel names the class that it sees at the same place.
    assert page.locator("#explain-1 input").input_value() == page.locator("#region-1 h3").inner_text()


def test_hostile_files_and_names_are_refused_politely(page, tmp_path):
    (tmp_path / "photo.jpg").write_text("<script>alert(1)</script>")
    choose(page, tmp_path / "photo.jpg")
    message(page, "This is no picture")
    # A hundred million white pixels in a few kilobytes.
    Image.new("1", (10_000, 10_000), 1).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 200_000
    choose(page, tmp_path / "bomb.png")
    message(page, "more than 50 million pixels")
    segment(page, "bear, <img src=x onerror=alert(1)>")
    message(page, "control characters, < or >")
    segment(page, "one, two, three, four, five, six, seven")
    message(page, "at most 6")
    segment(page, "b" * 3000)
    assert len(message(page, "too much text")) < 200
    # The page goes on with what it had.
    segment(page, "R&amp;B, \"fox\" & 'cat'")
    message(page, "Segmented into 2 classes")
    text = " ".join(page.locator("#legend-0").all_inner_texts())
    assert "R&amp;B" in text and "\"fox\" & 'cat'" in text


def test_it_fits_a_telephone_and_draws_scenes(page):
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    names = page.locator("#names textarea").input_value()
    page.locator("#draw").click()
    page.wait_for_function(
        "old => document.querySelector('#names textarea').value != old", arg=names, timeout=PATIENCE
    )
    names = page.locator("#names textarea").input_value().split(", ")
    assert 3 <= len(names) <= 6 and set(areas(page, 0)) <= set(names)


def test_nothing_is_fetched_from_elsewhere(browser, address):
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    hosts = set()
    page.on("request", lambda request: hosts.add(re.sub(r"^(\w+://[^/]*).*", r"\1", request.url)))
    page.goto(address, wait_until="domcontentloaded")
    page.wait_for_selector("#legend-0 .legend li")
    page.close()
    assert {host for host in hosts if not host.startswith(("data:", "blob:"))} == {address}


def test_files_that_are_too_large_are_not_even_stored(address):
    """Browsers check the size before they send a file; others do not."""
    answer = requests.post(
        f"{address}/gradio_api/upload", files={"files": ("big.png", b"0" * 2_000_000)}, timeout=60
    )
    assert answer.status_code == 413


def test_ten_visitors_at_once_are_served(address):
    """Through the queue of the page, as browsers ask it."""
    config = requests.get(f"{address}/config", timeout=60).json()
    load = next(
        number
        for number, event in enumerate(config["dependencies"])
        if any(kind == "load" for _, kind in event["targets"])
    )

    def visit(number: int) -> str:
        session = f"visitor{number}"
        body = {"data": [None, 1, 1], "fn_index": load, "session_hash": session, "trigger_id": None}
        requests.post(f"{address}/gradio_api/queue/join", json=body, timeout=60).raise_for_status()
        events = requests.get(
            f"{address}/gradio_api/queue/data", {"session_hash": session}, stream=True, timeout=120
        )
        for line in events.iter_lines():
            event = json.loads(line.removeprefix(b"data:")) if line.startswith(b"data:") else {}
            if event.get("msg") == "process_completed":
                assert event["success"], event
                return json.dumps(event["output"]["data"])
        raise AssertionError("the page did not answer")

    with ThreadPoolExecutor(10) as visitors:
        answers = list(visitors.map(visit, range(10)))
    assert all("Segmented into" in answer and 'class=\\"legend' in answer for answer in answers)
    assert len(set(answers)) == 10
