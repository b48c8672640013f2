"""Engines that are not ours replay the golden sample: python tests/runtimes.py [MODEL] prints a table.

Each is installed into a folder of its own from the package registry, and run by a program in tests/replays.
"""

import http.server
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

REPLAYS = Path(__file__).parent / "replays"


@dataclass(frozen=True)
class Replay:
    version: str
    same: int  # labels as the sample says, of all
    cases: int
    worst: float  # the largest difference of a logit or a probability
    tolerance: float


def openvino(model: Path, golden: Path, folder: Path) -> Replay:
    return python("with_openvino.py", ["openvino", "openvino-telemetry"], model, golden, folder)


def opencv(model: Path, golden: Path, folder: Path) -> Replay:
    return python("with_opencv.py", ["opencv-python-headless"], model, golden, folder)


def node(model: Path, golden: Path, folder: Path) -> Replay:
    npm("onnxruntime-node", folder)
    return judged(golden, said(["node", str(REPLAYS / "with_node.mjs"), str(model), str(golden)], cwd=folder))


def browser(model: Path, golden: Path, folder: Path) -> Replay:
    from browser import Chromium

    npm("onnxruntime-web", folder)
    site = folder / "site"
    shutil.copytree(folder / "node_modules" / "onnxruntime-web" / "dist", site / "ort")
    for source, name in ((model, "model.onnx"), (golden, "golden.json"), (REPLAYS / "with_wasm.html", "index.html")):
        shutil.copyfile(source, site / name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Chromium(folder / "profile") as chromium:
            page = chromium.page(f"http://127.0.0.1:{server.server_port}/")
            return judged(golden, page.until("window.answer", 60))
    finally:
        server.shutdown()
        server.server_close()


ENGINES: dict[str, Callable[[Path, Path, Path], Replay]] = {
    "ONNX Runtime for Node": node,
    "ONNX Runtime for the browser (WebAssembly)": browser,
    "OpenVINO": openvino,
    "OpenCV's DNN": opencv,
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    def guess_type(self, path: Any) -> str:
        known = {".mjs": "text/javascript", ".wasm": "application/wasm"}
        return known.get(Path(path).suffix) or super().guess_type(path)

    def log_message(self, *_: Any) -> None:
        pass


def python(program: str, packages: list[str], model: Path, golden: Path, folder: Path) -> Replay:
    target = folder / "site-packages"
    said([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--target",
          str(target), *packages])  # fmt: skip
    return judged(
        golden, said([sys.executable, str(REPLAYS / program), str(model), str(golden)], PYTHONPATH=str(target))
    )


def npm(package: str, folder: Path) -> None:
    (folder / "package.json").write_text("{}")
    said(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", package], cwd=folder)


def said(command: list[str], cwd: Path | None = None, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def judged(golden: Path, answer: str) -> Replay:
    found, content = json.loads(answer.splitlines()[-1] if "\n" in answer else answer), json.loads(golden.read_text())
    assert "error" not in found, found["error"]
    cases = content["cases"]
    assert len(found["answers"]) == len(cases)
    worst = max(
        float(np.abs(np.array(mine[key]) - np.array(theirs[key])).max())
        for mine, theirs in zip(found["answers"], cases, strict=True)
        for key in ("logits", "probabilities")
    )
    labels = [int(np.argmax(case["logits"])) for case in cases]
    same = sum(int(np.argmax(mine["logits"])) == label for mine, label in zip(found["answers"], labels, strict=True))
    return Replay(found["version"], same, len(cases), worst, content["tolerance"])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    model = Path(sys.argv[1] if len(sys.argv) > 1 else "data/model/model.onnx").absolute()
    print("| engine | version | labels | largest difference |\n|---|---|---|---|")
    for name, replay in ENGINES.items():
        with tempfile.TemporaryDirectory() as place:
            done = replay(model, model.with_name("golden.json"), Path(place))
        print(f"| {name} | {done.version} | {done.same} of {done.cases} the same | {done.worst:.1e} |", flush=True)
