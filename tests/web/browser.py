"""A page of the viewer in a browser: what it shows, and that it asks nobody else."""

import base64
import contextlib
import time

import numpy as np


class Shown:
    """A page that is open, and what went wrong on it."""

    def __init__(self, page, served):
        self.page = page
        self.faults = []
        self._served = served
        page.on("console", lambda message: self.faults.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", self._check)
        page.on("response", lambda one: one.status >= 400 and self.faults.append(f"{one.status} {one.url}"))
        page.add_init_script(
            "window.addEventListener('securitypolicyviolation', (e) => console.error(e.violatedDirective))"
        )

    def _check(self, request):
        if not request.url.startswith((self._served.base + "/", "blob:")):
            self.faults.append(f"request to {request.url}")

    def open(self):
        self.page.goto(self._served.access.url)
        self.wait_until_read()
        return self

    def wait_until_read(self):
        self.wait("!document.querySelector('#main').hidden && document.querySelector('#panes').ariaBusy === 'false'")
        self.settle()

    def wait(self, condition):
        """Wait for an expression; `wait_for_function` would evaluate a string in the page, which its policy forbids."""
        deadline = time.monotonic() + 120
        while not self.page.evaluate(condition):
            assert time.monotonic() < deadline, condition
            time.sleep(0.02)

    def settle(self):
        """Wait until what is wanted was loaded and drawn: keys and answers are drawn with the next frame."""
        self.settle_frames()
        self.wait("![...document.querySelectorAll('.pane.is-waiting')].some((pane) => pane.offsetParent !== null)")
        self.settle_frames()

    def settle_frames(self):
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def press(self, *keys):
        for key in keys:
            self.page.keyboard.press(key)
        self.settle()

    def text(self, selector):
        return self.page.text_content(selector)

    def caption(self, plane="axial"):
        return self.text(f"[data-plane={plane}] .caption")

    def pixels(self, plane="axial"):
        """Return the canvas of a plane, uint8[height, width, 3]."""
        return read_canvas(self.page, f"[data-plane={plane}] .picture")


def read_canvas(page, selector):
    """Return a canvas, uint8[height, width, 3]."""
    width, height, data = page.evaluate(
        """(selector) => {
          const canvas = document.querySelector(selector);
          const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let text = "";
          for (let i = 0; i < data.length; i += 8192) text += String.fromCharCode(...data.subarray(i, i + 8192));
          return [canvas.width, canvas.height, btoa(text)];
        }""",
        selector,
    )
    pixels = np.frombuffer(base64.b64decode(data), np.uint8).reshape(height, width, 4)
    assert (pixels[..., 3] == 255).all()
    return pixels[..., :3]


@contextlib.contextmanager
def showing(browser, served, *, width=1200, height=800, scale=1, scheme="dark", **options):
    """Show a server's page; after the block, nothing may have gone wrong."""
    context = browser.new_context(
        viewport={"width": width, "height": height}, device_scale_factor=scale, color_scheme=scheme, **options
    )
    try:
        shown = Shown(context.new_page(), served)
        yield shown.open()
        assert shown.faults == [], shown.faults
    finally:
        context.close()
