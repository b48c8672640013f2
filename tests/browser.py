"""Headless Chromium, controlled over the Chrome DevTools Protocol."""

import base64
import itertools
import json
import re
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect


class Chromium:
    def __init__(self, profile: Path) -> None:
        program = next(
            (path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None
        )
        assert program, "these tests need Chromium"
        self.log = profile.with_suffix(".log")
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                 "--no-first-run", "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
                stdout=log,
                stderr=log,
            )  # fmt: skip
        self.socket: ClientConnection | None = None

    def __enter__(self) -> "Chromium":
        deadline = time.monotonic() + 60
        while not (found := re.search(r"ws://\S+", self.log.read_text(errors="replace"))):
            assert self.process.poll() is None, self.log.read_text(errors="replace")
            assert time.monotonic() < deadline, "Chromium does not start"
            time.sleep(0.1)
        self.socket = connect(found[0], max_size=None, proxy=None)
        return self

    def __exit__(self, *_: object) -> None:
        if self.socket:
            self.socket.close()
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()
            self.process.wait()

    def page(self, url: str, width: int = 900, height: int = 800) -> "Page":
        assert self.socket
        page = Page(self.socket)
        target = page.send("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            page.send(f"{domain}.enable")
        page.set_viewport(width, height)
        page.send("Page.navigate", url=url)
        page.wait_until("document.readyState === 'complete' && location.href !== 'about:blank'", 60)
        return page


class Page:
    numbers = itertools.count(1)

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.session = socket, ""
        self.requested_urls: list[str] = []  # of all requests
        self.errors: list[str] = []  # errors in the console

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            reply = json.loads(self.socket.recv(timeout=60))
            if reply.get("id") == number:
                assert "error" not in reply, reply
                result: dict[str, Any] = reply["result"]
                return result
            self.record_event(reply)

    def record_event(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requested_urls.append(params["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(params["exceptionDetails"]["text"])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])

    def set_viewport(self, width: int, height: int, mobile: bool = False, scale: float = 1) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.send("Emulation.setDeviceMetricsOverride", **metrics)
        self.send("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def set_color_scheme(self, name: str) -> None:
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def evaluate(self, expression: str) -> Any:
        result = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait_until(self, expression: str, seconds: float = 15) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := self.evaluate(expression)):
            assert time.monotonic() < deadline, f"not within {seconds} s: {expression}; {self.errors}"
            time.sleep(0.05)
        return found

    def press_key(self, name: str, times: int = 1) -> None:
        text = {"text": " "} if name == " " else {}
        for _ in range(times):
            self.send("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=name)

    def send_mouse(self, kind: str, x: float, y: float) -> None:
        self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def send_touch(self, kind: str, *points: tuple[float, float]) -> None:
        self.send("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])

    def save_screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))
