"""A headless Chromium for tests of pages, driven through chromedriver's W3C WebDriver interface."""

import json
import math
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest


class Browser:
    """One page in one window, through chromedriver at `address`."""

    def __init__(self, address: str, profile: Path, arguments: list[str], phone: bool) -> None:
        flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
        flags += " disable-component-update disable-sync disable-dev-shm-usage"
        options: dict[str, Any] = {"args": [f"--{flag}" for flag in flags.split()] + [f"--user-data-dir={profile}"]}
        options["args"] += ["--host-resolver-rules=MAP * ~NOTFOUND", *arguments]
        if phone:
            metrics = {"width": 390, "height": 844, "pixelRatio": 2, "touch": True}
            options["mobileEmulation"] = {"deviceMetrics": metrics}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._address = address
        self._path = f"/session/{self.call('POST', '/session', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"

    def call(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self._address + path, data, headers, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=120) as reply:
            return json.load(reply)["value"]

    def post(self, path: str, **body: Any) -> Any:
        return self.call("POST", f"{self._path}/{path}", body)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.post("execute/sync", script=script, args=list(arguments))

    def open(self, page: Path | str, fragment: str = "") -> None:
        """A file, or an address."""
        for url in ("about:blank", (page if isinstance(page, str) else page.as_uri()) + fragment):
            self.post("url", url=url)
        waits = "document.getElementById('sheet') && !document.documentElement.dataset.ready"
        self.until(f"return document.readyState === 'complete' && !({waits})")

    def until(self, script: str) -> None:
        end = time.monotonic() + 60
        while not self.run(script):
            assert time.monotonic() < end, script
            time.sleep(0.02)

    def keys(self, *keys: str) -> None:
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self.post("actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def point(self, selector: str, click: bool = False) -> None:
        element = self.run("return document.querySelector(arguments[0])", selector)
        actions: list[dict[str, Any]] = [{"type": "pointerMove", "duration": 0, "origin": element, "x": 0, "y": 0}]
        actions += [{"type": kind, "button": 0} for kind in ("pointerDown", "pointerUp") if click]
        pointer = {"type": "pointer", "id": "mouse", "parameters": {"pointerType": "mouse"}, "actions": actions}
        self.post("actions", actions=[pointer])

    def drop(self, selector: str, path: Path) -> None:
        """A file on an element, as from a file manager."""
        box = self.box(selector)
        place = {"x": box["x"] + box["width"] / 2, "y": box["y"] + box["height"] / 2}
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.command("Input.dispatchDragEvent", type=kind, data=data, **place)

    def put(self, name: str, value: str | bool) -> None:
        script = """const input = document.getElementById(arguments[0]);
            if (typeof arguments[1] === 'boolean') input.checked = arguments[1]; else input.value = arguments[1];
            input.dispatchEvent(new Event('input', {bubbles: true}));"""
        self.run(script, name, value)

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)

    def box(self, selector: str) -> dict[str, float]:
        """In pixels of the window: x, y, width, height, top, bottom, left, right."""
        return self.run("return document.querySelector(arguments[0]).getBoundingClientRect()", selector)

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).innerText", selector)

    def pixels(self, selector: str) -> np.ndarray:
        script = """const canvas = document.querySelector(arguments[0]);
            return Array.from(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"""
        values = np.array(self.run(script, selector))
        side = math.isqrt(len(values) // 4)
        return values.reshape(side, side, 4)[..., :3]

    def shown(self) -> list[int]:
        """Errors of the cards that exist, in their order."""
        return [error for error, _ in self.cards("0")]

    def cards(self, expression: str) -> list[Any]:
        """A JavaScript expression of `card`, for every card, with the number of its error before it."""
        script = f"(card) => [Number(card.dataset.error), {expression}]"
        return self.run(f"return [...document.querySelectorAll('.card')].map({script})")

    def complaints(self) -> list[str]:
        """What the console says, but for the advice about reading canvases back, which only these tests do."""
        entries = self.post("se/log", type="browser")
        return [entry["message"] for entry in entries if "willReadFrequently" not in entry["message"]]

    def dark(self, dark: bool) -> None:
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[feature])

    def command(self, name: str, **parameters: Any) -> None:
        """One of Chromium's DevTools."""
        self.post("goog/cdp/execute", cmd=name, params=parameters)

    def quit(self) -> None:
        self.call("DELETE", self._path)


@contextmanager
def browsers(folder: Callable[[], Path]) -> Iterator[Callable[..., Browser]]:
    """A function that starts a browser, with flags of Chromium's, whose profile is in a new `folder()`.

    Skips where there is no Chromium.
    """
    for name in ("chromedriver", "chromium"):
        if shutil.which(name) is None:
            pytest.skip(f"needs Debian's chromium and chromium-driver: there is no {name}")
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    driver = subprocess.Popen(["chromedriver", "--port=0"], text=True, **pipes)
    assert driver.stdout is not None
    started: list[Browser] = []
    try:
        ports = (re.search(r"successfully on port (\d+)", line) for line in driver.stdout)
        port = next((found[1] for found in ports if found), None)
        assert port, "chromedriver does not start"

        def start_one(*arguments: str, phone: bool = False) -> Browser:
            started.append(Browser(f"http://127.0.0.1:{port}", folder(), list(arguments), phone))
            return started[-1]

        yield start_one
        for browser in started:
            browser.quit()
    finally:
        driver.terminate()
        driver.wait()
