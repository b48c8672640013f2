"""Trained weights in; a self-contained ONNX file and a golden sample out."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT, run_stage_in, stage_command

from lockstep import Classifier
from stages.core.errors import StageError
from stages.core.splits import read_images, read_labels, read_splits_info
from stages.export_onnx import export_onnx
from stages.network.models import ModelName, build_model
from stages.network.weights import WeightsHeader, read_weights, write_weights

IR_VERSION = {18: 8, 19: 9, 20: 9, 21: 10}  # https://onnx.ai/onnx/repo-docs/Versioning.html
ONNXRUNTIME = {18: ">=1.14", 19: ">=1.15", 20: ">=1.17", 21: ">=1.18"}


def export_in(folder: Path, params: Path, splits: Path, weights: Path) -> Path:
    run_stage_in(folder, export_onnx, params=params, splits=splits, weights=weights)
    return folder


def open_session(folder: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def read_metadata(folder: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(folder / "model.onnx").metadata_props}


@pytest.fixture(scope="module")
def opset_21(stage_outputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the model in opset 21."""
    folder = tmp_path_factory.mktemp("opset_21")
    content = json.loads((stage_outputs / "params.yaml").read_text())
    content["export_onnx"]["opset"] = 21
    (folder / "params.yaml").write_text(json.dumps(content))
    return export_in(folder, folder / "params.yaml", stage_outputs / "splits", stage_outputs / "weights.safetensors")


@pytest.fixture(params=[18, 21])
def opset_and_folder(request: pytest.FixtureRequest) -> tuple[int, Path]:
    """An opset and the folder with the exported files."""
    return request.param, request.getfixturevalue("stage_outputs" if request.param == 18 else "opset_21")


def test_opset_and_ir_version_are_the_declared_ones_and_only_the_onnx_domain_is_used(
    opset_and_folder: tuple[int, Path],
) -> None:
    opset, folder = opset_and_folder
    proto = onnx.load(folder / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    assert proto.ir_version == IR_VERSION[opset]
    assert {node.domain for node in proto.graph.node} == {""}
    assert not proto.functions


def test_there_is_one_file_without_external_data(opset_and_folder: tuple[int, Path]) -> None:
    proto = onnx.load(opset_and_folder[1] / "model.onnx", load_external_data=False)
    assert not any(onnx.external_data_helper.uses_external_data(tensor) for tensor in proto.graph.initializer)
    assert [path.name for path in opset_and_folder[1].iterdir() if "model.onnx" in path.name] == ["model.onnx"]


def test_only_the_batch_axis_is_symbolic(opset_and_folder: tuple[int, Path]) -> None:
    graph = onnx.load(opset_and_folder[1] / "model.onnx").graph
    declared = {
        value.name: (
            onnx.TensorProto.DataType.Name(value.type.tensor_type.elem_type),
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in (*graph.input, *graph.output)
    }
    assert declared == {
        "image": ("UINT8", ["batch", 1, 28, 28]),
        "logits": ("FLOAT", ["batch", 10]),
        "probabilities": ("FLOAT", ["batch", 10]),
    }


@pytest.mark.parametrize("batch", [1, 2, 7, 200])
def test_outputs_of_onnxruntime_match_torch_for_any_batch_size(
    opset_and_folder: tuple[int, Path], batch: int, stage_outputs: Path
) -> None:
    images = np.array(read_images(stage_outputs / "splits", "test")[:batch])
    logits, probabilities = open_session(opset_and_folder[1]).run(["logits", "probabilities"], {"image": images})
    with torch.no_grad():
        expected = read_weights(stage_outputs / "weights.safetensors")[0](torch.from_numpy(images))
    assert logits.shape == (batch, 10)
    np.testing.assert_allclose(logits, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(probabilities, expected.softmax(1), atol=1e-5, rtol=0)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-6)


def test_the_metadata_are_complete(opset_and_folder: tuple[int, Path], stage_outputs: Path) -> None:
    opset, folder = opset_and_folder
    metadata = read_metadata(folder)
    layout = {"name": "image", "dtype": "uint8", "layout": "NCHW", "shape": ["batch", 1, 28, 28], "range": [0, 255]}
    assert json.loads(metadata.pop("input")) == layout
    assert json.loads(metadata.pop("classes")) == list("0123456789")
    description = metadata.pop("preparation_description")
    assert "centre of mass" in description
    assert "0 to 65535 of integers, 0 to 1 of floating-point numbers" in description
    assert 0 < float(metadata.pop("reject_below")) < 1
    lowest, highest = json.loads(metadata.pop("reject_roughness"))
    assert 0 < lowest < highest
    assert metadata == {
        "architecture": "reference_e",
        "dataset": "mnist",
        "fit": "stretch",
        "origin": "made",
        "preparation": "mnist",
        "weights_sha256": hashlib.sha256((stage_outputs / "weights.safetensors").read_bytes()).hexdigest(),
        "opset": str(opset),
        "ir_version": str(IR_VERSION[opset]),
        "onnxruntime": ONNXRUNTIME[opset],
    }


@pytest.mark.parametrize(
    "trace", [b"/work", b"/tmp", b"/home", b"/root", b".py", b"stack_trace", b'File "', b"site-packages", b"pkg.torch"]
)
def test_the_files_contain_no_trace_of_the_machine(opset_and_folder: tuple[int, Path], trace: bytes) -> None:
    for content in (
        (opset_and_folder[1] / "model.onnx").read_bytes(),
        (opset_and_folder[1] / "golden.json").read_bytes(),
    ):
        assert trace not in content
        assert str(ROOT).encode() not in content


def test_another_process_and_folder_write_the_same_bytes_and_print_one_line(
    stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    model = tmp_path / "deep" / "other.onnx"
    paths = {
        "params": params(),
        "weights": stage_outputs / "weights.safetensors",
        "splits": stage_outputs / "splits",
        "model": model,
    }
    command = stage_command(tmp_path, export_onnx, **paths)
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert model.read_bytes() == (stage_outputs / "model.onnx").read_bytes()
    assert (tmp_path / "golden.json").read_bytes() == (stage_outputs / "golden.json").read_bytes()
    assert completed.stderr == ""
    assert completed.stdout.count("\n") == 1
    assert "opset 18, onnxruntime >=1.14" in completed.stdout


@pytest.mark.parametrize("name", ["compact", "reference_b"])
def test_other_networks_with_colour_images_are_exported(name: ModelName, tmp_path: Path, params: Any) -> None:
    splits = tmp_path / "splits"
    splits.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (12, 3, 20, 20), dtype=np.uint8)
    for split in ("test", "validation"):
        np.save(splits / f"{split}-images.npy", images)
        np.save(splits / f"{split}-labels.npy", np.arange(12) % 3)
    about = {"dataset": "own", "origin": "here", "preparation": "resize", "classes": ["Öl", "水", "c"], "channels": 3,
             "size": 20, "counts": {}, "counts_by_class": {}, "mean": [0.5], "std": [0.5]}  # fmt: skip
    (splits / "about.json").write_text(json.dumps(about))
    network = build_model(name, 8, 20, 3, 3, [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])
    network(torch.from_numpy(images))  # moves the running statistics of batch normalisation
    write_weights(tmp_path / "w", network, WeightsHeader.of(name, 8, read_splits_info(splits), {}))
    export_in(tmp_path, params(), splits, tmp_path / "w")
    logits = open_session(tmp_path).run(["logits"], {"image": images})[0]
    with torch.no_grad():
        np.testing.assert_allclose(logits, network.eval()(torch.from_numpy(images)), atol=1e-5, rtol=0)
    assert json.loads(read_metadata(tmp_path)["classes"]) == ["Öl", "水", "c"]
    assert "stretched" in read_metadata(tmp_path)["preparation_description"]


def test_the_golden_sample_has_the_first_test_images(stage_outputs: Path) -> None:
    golden = json.loads((stage_outputs / "golden.json").read_text(encoding="utf-8"))
    images, labels = read_images(stage_outputs / "splits", "test"), read_labels(stage_outputs / "splits", "test")
    assert golden["image_shape"] == [1, 28, 28]
    assert golden["tolerance"] == 0.0001
    assert [case["class"] for case in golden["cases"]] == [str(label) for label in labels[:10]]
    stored = np.array([case["image"] for case in golden["cases"]]).reshape(-1, 1, 28, 28)
    np.testing.assert_array_equal(stored, images[:10])


def test_the_golden_sample_needs_only_json_numpy_and_onnxruntime(stage_outputs: Path) -> None:
    replay = """
import json, sys
import numpy, onnxruntime
golden = json.load(open(sys.argv[1], encoding="utf-8"))
session = onnxruntime.InferenceSession(sys.argv[2], providers=["CPUExecutionProvider"])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
for case in golden["cases"]:
    image = numpy.array(case["image"], numpy.uint8).reshape(1, *golden["image_shape"])
    logits, probabilities = session.run(["logits", "probabilities"], {"image": image})
    assert abs(logits[0] - case["logits"]).max() <= golden["tolerance"]
    assert abs(probabilities[0] - case["probabilities"]).max() <= golden["tolerance"]
    assert classes[logits[0].argmax()] == case["predicted"]
assert "torch" not in sys.modules
print(len(golden["cases"]))
"""
    command = [sys.executable, "-c", replay, stage_outputs / "golden.json", stage_outputs / "model.onnx"]
    completed = subprocess.run(command, capture_output=True, text=True)
    assert (completed.stdout, completed.stderr) == ("10\n", "")


@pytest.mark.parametrize(("golden_images", "cases"), [(3, 3), (500, 200)])
def test_golden_images_limits_the_golden_sample(
    golden_images: int, cases: int, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    params_file = params({"export_onnx.golden_images": golden_images, "export_onnx.tolerance": 1e-6})
    export_in(tmp_path, params_file, stage_outputs / "splits", stage_outputs / "weights.safetensors")
    golden = json.loads((tmp_path / "golden.json").read_text())
    assert len(golden["cases"]) == cases
    assert golden["tolerance"] == 1e-6


@pytest.mark.parametrize(
    ("key", "value"), [("opset", 17), ("opset", 22), ("golden_images", 0), ("tolerance", 0), ("fp", 16)]
)
def test_an_invalid_param_is_named(key: str, value: Any, stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=f"export_onnx.{key}"):
        export_in(
            tmp_path,
            params({f"export_onnx.{key}": value}),
            stage_outputs / "splits",
            stage_outputs / "weights.safetensors",
        )
    assert not (tmp_path / "model.onnx").exists()


def test_a_former_param_name_is_reported_with_the_new_name(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=r"export_onnx\.golden is now called export_onnx\.golden_images"):
        export_in(
            tmp_path,
            params({"export_onnx.golden": 10}),
            stage_outputs / "splits",
            stage_outputs / "weights.safetensors",
        )


def test_weights_for_other_classes_are_rejected(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    network, header = read_weights(stage_outputs / "weights.safetensors")
    write_weights(tmp_path / "w", network, header.model_copy(update={"classes": list("abcdefghij")}))
    with pytest.raises(StageError, match=r"trained for classes .* but the splits have"):
        export_in(tmp_path, params(), stage_outputs / "splits", tmp_path / "w")
    assert not (tmp_path / "model.onnx").exists()


def test_missing_weights_are_named(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match="nowhere: missing; run `dvc repro train`"):
        export_in(tmp_path, params(), stage_outputs / "splits", tmp_path / "nowhere")


@pytest.mark.parametrize("fraction", [0.01, 0.2])
def test_the_reject_rule_is_fitted_on_the_validation_images(
    fraction: float, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    inputs = {"splits": stage_outputs / "splits", "weights": stage_outputs / "weights.safetensors"}
    run_stage_in(tmp_path, export_onnx, params=params({"export_onnx.reject_fraction": fraction}), **inputs)
    classifier = Classifier(tmp_path / "model.onnx", verify=False)
    images = np.load(stage_outputs / "splits" / "validation-images.npy")
    rejected = [one.label for one in classifier.predict(images, reject=True)].count(None) / len(images)
    assert 0 < rejected <= 1.1 * fraction + 3 / len(images)


def test_without_a_reject_fraction_the_model_cannot_reject(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    inputs = {"splits": stage_outputs / "splits", "weights": stage_outputs / "weights.safetensors"}
    run_stage_in(tmp_path, export_onnx, params=params({"export_onnx.reject_fraction": 0.0}), **inputs)
    properties = {entry.key for entry in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert not {key for key in properties if key.startswith("reject")}
