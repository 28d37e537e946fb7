"""Debian's Firefox by WebDriver BiDi (https://w3c.github.io/webdriver-bidi), with the few methods that `Shown` uses."""

import contextlib
import json
import re
import subprocess
import tempfile
import time
from pathlib import Path

from websocket import create_connection

FIREFOX = Path("/usr/bin/firefox-esr")
KEYS = {"ArrowUp": "\ue013", "ArrowDown": "\ue015", "ArrowRight": "\ue014", "ArrowLeft": "\ue012", "Home": "\ue011"}
SECONDS = 120


class FirefoxPage:
    """A page, with the methods of Playwright's of the same names."""

    def __init__(self, socket):
        self._socket = socket
        self._count = 0
        self.faults = []
        self.keyboard = self
        self._call("session.new", capabilities={})
        self._call("session.subscribe", events=["log.entryAdded"])
        self._context = self._call("browsingContext.getTree")["contexts"][0]["context"]

    def _call(self, method, **params):
        self._count += 1
        self._socket.send(json.dumps({"id": self._count, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("method") == "log.entryAdded" and answer["params"]["level"] in ("error", "warn"):
                self.faults.append(answer["params"]["text"])
            if answer.get("id") == self._count:
                assert answer["type"] == "success", answer
                return answer["result"]

    def set_viewport(self, width, height, scale):
        viewport = {"width": width, "height": height}
        self._call("browsingContext.setViewport", context=self._context, viewport=viewport, devicePixelRatio=scale)

    def goto(self, url):
        self._call("browsingContext.navigate", context=self._context, url=url, wait="complete")

    def evaluate(self, expression, argument=None):
        """Return the value of an expression, or of a function of one argument."""
        is_function = re.match(r"\s*(async )?\(\w*\) =>", expression)
        code = f"({expression})({json.dumps(argument)})" if is_function else f"({expression})"
        found = self._call(
            "script.evaluate",
            expression=f"(async () => JSON.stringify(await {code}) ?? 'null')()",
            target={"context": self._context},
            awaitPromise=True,
        )
        assert found["type"] == "success", found
        return json.loads(found["result"]["value"])

    def text_content(self, selector):
        return self.evaluate("(selector) => document.querySelector(selector).textContent", selector)

    def wait_for_selector(self, selector):
        end = time.monotonic() + SECONDS
        while not self.evaluate("(selector) => document.querySelector(selector) !== null", selector):
            assert time.monotonic() < end, selector
            time.sleep(0.05)

    def press(self, key):
        keys = [{"type": kind, "value": KEYS.get(key, key)} for kind in ("keyDown", "keyUp")]
        action = {"type": "key", "id": "keys", "actions": keys}
        self._call("input.performActions", context=self._context, actions=[action])

    def set_input_files(self, selector, files):
        nodes = self._call(
            "browsingContext.locateNodes", context=self._context, locator={"type": "css", "value": selector}
        )
        element = {"sharedId": nodes["nodes"][0]["sharedId"]}
        self._call("input.setFiles", context=self._context, element=element, files=list(map(str, files)))

    def on(self, *_):
        """Errors on the page are in `faults` in any case."""

    def add_init_script(self, _):
        """The console names violations of the page's policy."""


@contextlib.contextmanager
def open_firefox(width=1200, height=800, scale=1):
    """Yield a page of a new browser; after the block, nothing may have gone wrong on it."""
    with tempfile.TemporaryDirectory() as profile:
        words = [FIREFOX, "--headless", "--no-remote", "--profile", profile, "--remote-debugging-port", "0"]
        with subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            try:
                line = next(line for line in process.stderr if "WebDriver BiDi listening on" in line)
                url = f"{line.split()[-1]}/session"
                with contextlib.closing(create_connection(url, timeout=SECONDS, suppress_origin=True)) as socket:
                    page = FirefoxPage(socket)
                    page.set_viewport(width, height, scale)
                    yield page
                    assert page.faults == []
            finally:
                process.kill()
