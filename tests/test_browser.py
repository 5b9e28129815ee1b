"""The pages in a real browser: headless Chromium over the DevTools protocol, by a pipe.

Skipped where no Chromium is installed (`make browser` installs Debian's), but not in CI, which sets
DPOK_REQUIRE_BROWSER.
"""

import json
import os
import shutil
import subprocess

import pytest

from dpok_cli.engine.evaluation.plan import Prompt
from dpok_cli.engine.evaluation.report.html import render_report
from dpok_cli.engine.evaluation.report.human import write_human_page
from dpok_cli.engine.evaluation.report.plots import plot_evaluation
from dpok_cli.engine.evaluation.results import summarise
from dpok_cli.rewards.manager import build
from support.waiting import wait_for

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None and "DPOK_REQUIRE_BROWSER" not in os.environ,
        reason=f"no browser: none of {', '.join(NAMES)} is here; `make browser` installs one",
    ),
]

PROMPTS = (Prompt("a red cat", "seen", "colour"), Prompt("a red dog", "unseen", "colour"))
#: The code that Chromium knows a key by.
KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "=": 187, "Backspace": 8}


class Browser:
    """One page of a headless Chromium."""

    def __init__(self, profile):
        assert CHROMIUM, "no browser is here: make browser"
        self.sent = 0
        self.events, self.buffer = [], b""
        to_browser, self.write = os.pipe()
        self.read, from_browser = os.pipe()
        quiet = "no-first-run disable-background-networking disable-component-update disable-sync"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
        flags += [f"--{flag}" for flag in quiet.split()]

        def connect():  # Chromium reads from 3 and writes to 4
            reading, writing = os.dup(to_browser), os.dup(from_browser)
            os.dup2(reading, 3)
            os.dup2(writing, 4)

        self.process = subprocess.Popen(
            [CHROMIUM, *flags, "--remote-debugging-pipe", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=connect,
        )
        os.close(to_browser)
        os.close(from_browser)
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = session["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.page(f"{domain}.enable")

    def call(self, method, session=None, **params):
        self.sent += 1
        message = {"id": self.sent, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.receive()
            if answer.get("id") == self.sent:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def page(self, method, **params):
        return self.call(method, self.session, **params)

    def receive(self):
        while b"\0" not in self.buffer:
            part = os.read(self.read, 1 << 16)
            assert part, "the browser has gone"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, file):
        self.load("Page.navigate", url=file.as_uri())

    def reload(self):
        self.load("Page.reload")

    def load(self, method, **params):
        """Ask for a page, and wait until it has loaded: it, not the one before it."""
        self.value("document.readyState")  # reads what is left of the page before
        self.events = [event for event in self.events if "loadEventFired" not in event["method"]]
        self.page(method, **params)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self.receive())

    def value(self, expression):
        result = self.page("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key):
        for kind in ("keyDown", "keyUp"):
            self.page("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=KEYS[key])

    def troubles(self):
        """Errors on the console, and addresses asked for beyond the page itself."""
        return [
            event
            for event in self.events
            if event["method"] in ("Runtime.exceptionThrown", "Log.entryAdded")
            or (
                event["method"] == "Network.requestWillBeSent"
                and not event["params"]["request"]["url"].startswith(("file:", "data:", "blob:"))
            )
        ]

    def close(self):
        self.process.kill()
        self.process.wait()
        os.close(self.read)
        os.close(self.write)


@pytest.fixture
def browser(tmp_path):
    browser = Browser(tmp_path / "profile")
    yield browser
    browser.close()


def score(model, row, seed):
    return {"image-reward": float(seed + 3 * (model == "tuned")), "judge": 1.0}


def colour(model, row, seed):
    return (0, 200, 0) if model == "tuned" else (200, 0, 0)


def text_of(browser, name):
    return browser.value(f"document.getElementById({name!r}).innerText")


def test_votes_go_through_the_page_and_come_back(browser, plant, dpok, tmp_path):
    evaluation, folder = plant(score, prompts=PROMPTS, samples=8, colour=colour)
    write_human_page(evaluation, folder)
    key = json.loads(folder.key.read_text())["sets"]
    browser.open(folder.human)
    assert text_of(browser, "count") == "0 of 8 answered"

    # By the colour on the screen: for the tuned model's alignment but for one tie, and for the
    # base's quality.
    sides = {name: item["left"] == "tuned" for name, item in key.items()}
    tied = list(key)[1]

    def vote():
        shown = browser.value("steps[place].screen.id + ' ' + steps[place].question")
        name, question = shown.split()
        green = browser.value(
            "(() => { const image = document.querySelector('#left img');"
            " const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;"
            " const context = canvas.getContext('2d'); context.drawImage(image, 0, 0);"
            " const [r, g] = context.getImageData(0, 0, 1, 1).data; return g > r; })()"
        )
        assert green == sides[name]  # the key is right
        asked = text_of(browser, "question")
        assert ("fits the text" in asked) == (question == "alignment")
        assert (text_of(browser, "prompt") != "") == (question == "alignment")
        if question == "alignment":
            browser.press("=" if name == tied else "ArrowLeft" if green else "ArrowRight")
        else:
            browser.press("ArrowRight" if green else "ArrowLeft")

    for number in range(3):
        vote()
        assert text_of(browser, "count") == f"{number + 1} of 8 answered"
    browser.reload()
    assert text_of(browser, "count") == "3 of 8 answered"
    browser.press("Backspace")
    assert text_of(browser, "count") == "2 of 8 answered"
    for _ in range(6):
        vote()
    assert text_of(browser, "count") == "8 of 8 answered"
    assert browser.value("document.getElementById('ask').hidden") is True
    browser.press("ArrowLeft")  # does nothing any more

    downloads = tmp_path / "downloads"
    downloads.mkdir()
    browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
    browser.value("document.getElementById('export').click()")
    (file,) = wait_for(lambda: list(downloads.glob("votes-*.json")))
    assert browser.troubles() == []

    result = dpok("evaluate", "--json", "--votes", str(file), "--output", str(folder.path))
    assert result.code == 0, result.err
    votes = json.loads(result.out)
    rates = {
        row["question"]: (row["win_rate"], row["votes"])
        for row in votes["rows"]
        if row["group"] == "all"
    }
    assert votes["raters"] == 1
    assert rates == {"alignment": (3.5 / 4, 4), "quality": (0.0, 4)}


def test_the_report_needs_nothing_else(browser, plant):
    evaluation, folder = plant(score, prompts=PROMPTS, colour=colour)
    results = summarise(evaluation, build(evaluation.rewards), folder)
    plots = plot_evaluation(results, folder.plots)
    folder.report.write_text(render_report(results, evaluation, folder, plots))
    browser.open(folder.report)
    assert browser.value("document.querySelector('h1').innerText") == "Evaluation of tuned"
    images = "[...document.images]"
    assert browser.value(f"{images}.length") == 3 + 2 * 2 * 8
    browser.value(f"{images}.forEach((image) => {{ image.loading = 'eager'; }})")  # lazy till seen
    whole = f"{images}.every((image) => image.complete && image.naturalWidth > 0)"
    assert wait_for(lambda: browser.value(whole))
    width = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert browser.value(width)
    assert browser.troubles() == []


def test_the_contents_of_the_report_lead_to_a_prompt(browser, plant):
    prompts = tuple(Prompt(f"{number} cats", "seen") for number in range(1, 41))
    evaluation, folder = plant(score, prompts=prompts, samples=2)
    results = summarise(evaluation, build(evaluation.rewards), folder)
    folder.report.write_text(render_report(results, evaluation, folder, []))
    browser.open(folder.report)
    top = "document.querySelector('#prompt-30').getBoundingClientRect().top"
    height = browser.value("innerHeight")
    assert browser.value(top) > height
    browser.value("document.querySelector('.contents').open = true")
    browser.value("document.querySelector('a[href=\"#prompt-30\"]').click()")
    assert wait_for(lambda: 0 < browser.value(top) < height)
    assert browser.troubles() == []
