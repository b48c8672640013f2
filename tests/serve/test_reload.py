"""A new model file under a running service: taken up if it is proven, and no request is dropped on the way."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from served import Service, running
from toys import until

from stages.common.onnx_file import LOGITS


def nudged(model: Path, to: Path, amount: float) -> None:
    """Another model: a bias is larger by the amount."""
    proto = onnx.load(model)
    bias = next(one for one in proto.graph.initializer if list(one.dims) == [10])
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(amount), bias.name))
    to.write_bytes(proto.SerializeToString())


def with_golden(model: Path) -> None:
    """Write the golden sample of the model as it is now beside it."""
    import onnxruntime

    path = model.with_name("golden.json")
    content = json.loads(path.read_text())
    session = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"])
    for case in content["cases"]:
        image = np.array(case["image"], np.uint8).reshape(1, *content["image_shape"])
        logits, probabilities = session.run([LOGITS, "probabilities"], {"image": image})
        case["logits"], case["probabilities"] = logits[0].tolist(), probabilities[0].tolist()
    path.write_text(json.dumps(content))


@pytest.fixture
def served(copied: Path, tmp_path: Path) -> Iterator[Service]:
    with running(tmp_path, copied) as service:
        yield service


def test_a_proven_model_is_taken_up_and_no_request_is_dropped(
    copied: Path, served: Service, tested: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    before = served.ask("/model").json["sha256"]
    statuses: list[int] = []
    models: list[str] = []
    stop = threading.Event()

    def go_on() -> None:
        while not stop.is_set():
            reply = served.pixels(tested[0][0, 0])
            statuses.append(reply.status)
            models.append(reply.json["model"])

    threads = [threading.Thread(target=go_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    nudged(copied, tmp_path / "new.onnx", 0.5)
    shutil.copyfile(tmp_path / "new.onnx", copied)
    with_golden(copied)
    try:
        until(lambda: served.ask("/model").json["sha256"] != before, 30)
        seen = len(models)
        until(lambda: len(models) > seen + 20, 30)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(statuses) == {200}
    assert set(models) == {before, served.ask("/model").json["sha256"]}
    assert 'lockstep_model_reloads_total{result="taken_up"} 1' in served.ask("/metrics").content.decode()
    assert served.ask("/model").json["refused"] is None


@pytest.mark.parametrize("case", ["unproven", "no model", "missing", "half a golden sample"])
def test_a_model_that_is_not_proven_is_refused_and_the_old_one_stays(
    copied: Path, served: Service, tested: tuple[np.ndarray, np.ndarray], case: str
) -> None:
    before = served.ask("/model").json["sha256"]
    answer = served.pixels(tested[0][0, 0]).json
    good = copied.read_bytes()
    said = {
        "unproven": "differs from its golden sample by ",
        "no model": "does not load it",
        "missing": "there is no such file",
        "half a golden sample": "not a golden sample",
    }[case]
    if case == "unproven":
        nudged(copied, copied, 0.5)
    elif case == "no model":
        copied.write_bytes(b"no model")
    elif case == "missing":
        copied.unlink()
    else:
        copied.with_name("golden.json").write_text('{"cases": [')
    until(lambda: served.ask("/model").json["refused"], 30)
    about = served.ask("/model").json
    assert about["sha256"] == before
    assert said in about["refused"]
    assert served.pixels(tested[0][0, 0]).json == answer
    assert served.ask("/readyz").status == 200
    assert 'lockstep_model_reloads_total{result="refused"} 1' in served.ask("/metrics").content.decode()
    assert len(served.log.read_text().splitlines()) == 1
    if case != "half a golden sample":
        copied.write_bytes(good)
        until(lambda: served.ask("/model").json["refused"] is None, 30)
