"""Other inference engines replay the golden sample: python tests/runtimes.py [MODEL] prints a table.

Each is installed from its package registry into a temporary folder and run by a program in tests/replays.
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
    equal_labels: int  # of all cases
    cases: int
    worst: float  # the largest difference of a logit or a probability
    tolerance: float


def replay_with_openvino(model: Path, golden: Path, folder: Path) -> Replay:
    return replay_with_python("with_openvino.py", ["openvino", "openvino-telemetry"], model, golden, folder)


def replay_with_opencv(model: Path, golden: Path, folder: Path) -> Replay:
    return replay_with_python("with_opencv.py", ["opencv-python-headless"], model, golden, folder)


def replay_with_node(model: Path, golden: Path, folder: Path) -> Replay:
    install_npm_package("onnxruntime-node", folder)
    return compare(golden, run_command(["node", str(REPLAYS / "with_node.mjs"), str(model), str(golden)], cwd=folder))


def replay_in_browser(model: Path, golden: Path, folder: Path) -> Replay:
    from browser import Chromium

    install_npm_package("onnxruntime-web", folder)
    site = folder / "site"
    shutil.copytree(folder / "node_modules" / "onnxruntime-web" / "dist", site / "ort")
    for source, name in ((model, "model.onnx"), (golden, "golden.json"), (REPLAYS / "with_wasm.html", "index.html")):
        shutil.copyfile(source, site / name)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with Chromium(folder / "profile") as chromium:
            page = chromium.page(f"http://127.0.0.1:{server.server_port}/")
            return compare(golden, page.wait_until("window.answer", 60))
    finally:
        server.shutdown()
        server.server_close()


ENGINES: dict[str, Callable[[Path, Path, Path], Replay]] = {
    "ONNX Runtime for Node": replay_with_node,
    "ONNX Runtime for the browser (WebAssembly)": replay_in_browser,
    "OpenVINO": replay_with_openvino,
    "OpenCV's DNN": replay_with_opencv,
}


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def guess_type(self, path: Any) -> str:
        known = {".mjs": "text/javascript", ".wasm": "application/wasm"}
        return known.get(Path(path).suffix) or super().guess_type(path)

    def log_message(self, *_: Any) -> None:
        pass


def replay_with_python(program: str, packages: list[str], model: Path, golden: Path, folder: Path) -> Replay:
    target = folder / "site-packages"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    run_command([*pip, "--target", str(target), *packages])
    return compare(
        golden, run_command([sys.executable, str(REPLAYS / program), str(model), str(golden)], PYTHONPATH=str(target))
    )


def install_npm_package(package: str, folder: Path) -> None:
    (folder / "package.json").write_text("{}")
    run_command(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", package], cwd=folder)


def run_command(command: list[str], cwd: Path | None = None, **environment: str) -> str:
    result = subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def compare(golden: Path, answer: str) -> Replay:
    outputs, content = json.loads(answer.splitlines()[-1] if "\n" in answer else answer), json.loads(golden.read_text())
    assert "error" not in outputs, outputs["error"]
    cases = content["cases"]
    assert len(outputs["answers"]) == len(cases)
    worst = max(
        float(np.abs(np.array(actual[key]) - np.array(expected[key])).max())
        for actual, expected in zip(outputs["answers"], cases, strict=True)
        for key in ("logits", "probabilities")
    )
    labels = [int(np.argmax(case["logits"])) for case in cases]
    equal_labels = sum(
        int(np.argmax(actual["logits"])) == label for actual, label in zip(outputs["answers"], labels, strict=True)
    )
    return Replay(outputs["version"], equal_labels, len(cases), worst, content["tolerance"])


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    model = Path(sys.argv[1] if len(sys.argv) > 1 else "data/model/model.onnx").absolute()
    print("| engine | version | labels | largest difference |\n|---|---|---|---|")
    for name, replay in ENGINES.items():
        with tempfile.TemporaryDirectory() as folder:
            result = replay(model, model.with_name("golden.json"), Path(folder))
        print(
            f"| {name} | {result.version} | {result.equal_labels} of {result.cases} the same | {result.worst:.1e} |",
            flush=True,
        )
