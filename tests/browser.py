"""A real Chromium without a window, told what to do over its own protocol."""

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
        target = page.tell("Target.createTarget", url="about:blank")["targetId"]
        page.session = page.tell("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            page.tell(f"{domain}.enable")
        page.shape(width, height)
        page.tell("Page.navigate", url=url)
        page.until("document.readyState === 'complete' && location.href !== 'about:blank'", 60)
        return page


class Page:
    numbers = itertools.count(1)

    def __init__(self, socket: ClientConnection) -> None:
        self.socket, self.session = socket, ""
        self.asked: list[str] = []  # the addresses of all requests
        self.complaints: list[str] = []  # errors in the console

    def tell(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        self.socket.send(json.dumps(message | ({"sessionId": self.session} if self.session else {})))
        while True:
            reply = json.loads(self.socket.recv(timeout=60))
            if reply.get("id") == number:
                assert "error" not in reply, reply
                result: dict[str, Any] = reply["result"]
                return result
            self.note(reply)

    def note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(params["exceptionDetails"]["text"])
        elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.complaints.append(params["entry"]["text"])

    def shape(self, width: int, height: int, mobile: bool = False, scale: float = 1) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": mobile}
        self.tell("Emulation.setDeviceMetricsOverride", **metrics)
        self.tell("Emulation.setTouchEmulationEnabled", enabled=mobile)

    def scheme(self, name: str) -> None:
        self.tell("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": name}])

    def value(self, expression: str) -> Any:
        result = self.tell("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def until(self, expression: str, seconds: float = 15) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := self.value(expression)):
            assert time.monotonic() < deadline, f"not within {seconds} s: {expression}; {self.complaints}"
            time.sleep(0.05)
        return found

    def key(self, name: str, times: int = 1) -> None:
        text = {"text": " "} if name == " " else {}
        for _ in range(times):
            self.tell("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
            self.tell("Input.dispatchKeyEvent", type="keyUp", key=name)

    def mouse(self, kind: str, x: float, y: float) -> None:
        self.tell("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        self.tell("Input.dispatchTouchEvent", type=kind, touchPoints=[{"x": x, "y": y} for x, y in points])

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.tell("Page.captureScreenshot", format="png")["data"]))
