"""Weights and ONNX file in; the proof that the file is the network, or the reasons why it is not."""

import csv
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from stages.core.errors import StageError
from stages.network.weights import read_weights, write_weights
from stages.validate_parity import validate_parity

ROOT = Path(__file__).parent.parent
FEW = {"validate_parity.batches": [500], "validate_parity.reference_images": 1}
Change = Callable[[onnx.ModelProto], None]


def validated(folder: Path, params: Path, made: Path, **other: Path) -> dict[str, Any]:
    """What the report says, whether it passes or not; a failure that is not in the report is raised."""
    paths = {name: made / file for name, file in (("weights", "weights.safetensors"), ("splits", "splits"),
                                                   ("model", "model.onnx"), ("golden", "golden.json"),
                                                   ("quality", "evaluate.json"),
                                                   ("environment", "environment.json"))}  # fmt: skip
    made_here = {"measured": folder / "parity.csv", "certificate": folder / "certificate.json"}
    report = folder / "parity.json"
    try:
        validate_parity(params=params, report=report, **{**paths, **made_here, **other})
        failure = ""
    except StageError as problem:
        failure = str(problem)
        if not report.exists():
            raise
    content: dict[str, Any] = json.loads(report.read_text())
    assert content["same"] is not bool(failure)
    assert made_here["certificate"].exists() is not bool(failure)
    assert bool(content["reasons"]) is bool(failure)
    assert failure == "" or content["reasons"][0] in failure
    assert "\n" not in failure
    return content


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "parity.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def changed(made: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """The ONNX file after a change."""

    def make(change: Change) -> Path:
        proto = onnx.load(made / "model.onnx")
        change(proto)
        (tmp_path / "changed.onnx").write_bytes(proto.SerializeToString())
        return tmp_path / "changed.onnx"

    return make


def initializer(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name.endswith(name))


def rewrite(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], None]) -> None:
    tensor = initializer(proto, name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def nudge(array: np.ndarray) -> None:
    array.flat[3] += 0.01


def break_up(array: np.ndarray) -> None:
    array.flat[3] = np.nan


def swap(array: np.ndarray) -> None:
    array[[0, 1]] = array[[1, 0]]


def test_the_file_is_the_network_in_every_configuration(made: Path, tmp_path: Path, params: Any) -> None:
    batches = [1, 2, 7, 64, 1000]
    choices = params({"validate_parity.batches": batches, "validate_parity.reference_images": 8})
    report = validated(tmp_path, choices, made)
    assert report["same"] is True
    assert report["reasons"] == []
    assert (report["atol"], report["margin"], report["images"]) == (0.0001, 0.0001, 200)
    assert report["accuracy"] == json.loads((made / "evaluate.json").read_text())["accuracy"]
    rows = table(tmp_path)
    ways = [(row["engine"], row["level"], row["threads"], row["batch"], row["images"]) for row in rows]
    levels = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_LAYOUT", "ORT_ENABLE_ALL"]
    whole = [("onnxruntime", level, "1", "1000", "200") for level in levels]
    parts = [
        ("onnxruntime", "ORT_ENABLE_ALL", threads, str(batch), "1000") for batch in batches for threads in ("1", "2")
    ]
    assert ways == [*whole, *parts, ("reference evaluator", "none", "1", "8", "8")]
    assert len({row["configuration"] for row in rows}) == len(rows) == report["configurations"] == 16
    assert {row["provider"] for row in rows[:-1]} == {"CPUExecutionProvider"}
    assert all(0 <= float(row["logits_p999"]) <= float(row["logits_max"]) < 1e-4 for row in rows)
    assert {row["flips"] for row in rows} == {"0"}


def test_the_same_bytes_come_again(made: Path, tmp_path: Path, params: Any) -> None:
    for name in ("one", "two"):
        validated(tmp_path / name, params(FEW), made)
    for file in ("parity.json", "parity.csv", "certificate.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


@pytest.mark.parametrize("name", ["head.bias", "head.weight", "body.0.weight"])
def test_one_weight_nudged_fails_the_gate(name: str, changed: Any, made: Path, tmp_path: Path, params: Any) -> None:
    model = changed(lambda proto: rewrite(proto, name, nudge))
    report = validated(tmp_path, params(FEW), made, model=model)
    assert "logits off by" in report["reasons"][0]
    assert "more than atol 0.0001" in report["reasons"][0]
    assert max(float(row["logits_max"]) for row in table(tmp_path)) > 1e-4
    assert len(table(tmp_path)) == report["configurations"] == 8


def test_the_command_fails_in_one_line_with_the_report_written(
    changed: Any, made: Path, tmp_path: Path, params: Any
) -> None:
    given = {"params": params(FEW), "weights": made / "weights.safetensors", "splits": made / "splits",
             "model": changed(lambda proto: rewrite(proto, "head.bias", nudge)), "golden": made / "golden.json",
             "quality": made / "evaluate.json", "environment": made / "environment.json",
             "report": tmp_path / "parity.json",
             "measured": tmp_path / "parity.csv", "certificate": tmp_path / "certificate.json"}  # fmt: skip
    flags = [str(part) for name, path in given.items() for part in (f"--{name}", path)]
    command = [sys.executable, "-m", "stages.validate_parity", *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"validate_parity: {given['model']} is not the network of {given['weights']}: ")
    assert json.loads((tmp_path / "parity.json").read_text())["same"] is False


def test_a_difference_within_atol_and_margin_passes(changed: Any, made: Path, tmp_path: Path, params: Any) -> None:
    loose = {**FEW, "validate_parity.atol": 0.1, "validate_parity.margin": 0.1}
    model = changed(lambda proto: rewrite(proto, "head.bias", nudge))
    golden = tmp_path / "golden.json"
    golden.write_text(json.dumps({**json.loads((made / "golden.json").read_text()), "tolerance": 0.1}))
    assert validated(tmp_path, params(loose), made, model=model, golden=golden)["same"] is True
    network, _ = read_weights(made / "weights.safetensors")
    off = 0.01 / float(network.temperature)
    assert max(float(row["logits_max"]) for row in table(tmp_path)) == pytest.approx(off, 0.01)


def test_swapped_outputs_flip_labels(changed: Any, made: Path, tmp_path: Path, params: Any) -> None:
    model = changed(lambda proto: rewrite(proto, "head.weight", swap))
    report = validated(tmp_path, params(FEW), made, model=model)
    assert any("flipped labels, one decided by" in reason for reason in report["reasons"])
    assert all(int(row["flips"]) > 0 for row in table(tmp_path) if row["images"] == "200")


def test_a_number_that_is_not_finite_fails_the_gate(changed: Any, made: Path, tmp_path: Path, params: Any) -> None:
    model = changed(lambda proto: rewrite(proto, "head.weight", break_up))
    report = validated(tmp_path, params(FEW), made, model=model)
    assert "a number that is not finite" in report["reasons"][0]
    json.loads((tmp_path / "parity.json").read_text(), parse_constant=pytest.fail)


def fix_batch(proto: onnx.ModelProto) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def fix_batch_inside(proto: onnx.ModelProto) -> None:
    """Declared free, but flattened for one image only."""
    node = next(node for node in proto.graph.node if node.op_type in ("Reshape", "Flatten"))
    shape = numpy_helper.from_array(np.array([1, 320], np.int64), "fixed_shape")
    proto.graph.initializer.append(shape)
    node.CopyFrom(onnx.helper.make_node("Reshape", [node.input[0], "fixed_shape"], list(node.output)))


def rename_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "scores"
    for node in proto.graph.node:
        for names in (node.input, node.output):
            names[:] = ["scores" if name == "logits" else name for name in names]


def rename_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].name = "picture"
    for node in proto.graph.node:
        node.input[:] = ["picture" if name == "image" else name for name in node.input]


def drop_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.pop()


def dangle_output(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "scores"


def foreign_domain(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def foreign_node(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].domain = "com.microsoft"


def newer_ir(proto: onnx.ModelProto) -> None:
    proto.ir_version = 10


def without_metadata(proto: onnx.ModelProto) -> None:
    proto.ClearField("metadata_props")


def outside_data(proto: onnx.ModelProto) -> None:
    tensor = initializer(proto, "head.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def float_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def property_change(key: str, value: str) -> Change:
    def change(proto: onnx.ModelProto) -> None:
        next(entry for entry in proto.metadata_props if entry.key == key).value = value

    return change


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (fix_batch, "batch axis of image is not symbolic"),
        (rename_output, "inputs and outputs ['image', 'scores', 'probabilities'] where"),
        (rename_input, "inputs and outputs ['picture', 'logits', 'probabilities'] where"),
        (drop_output, "inputs and outputs ['image', 'logits'] where"),
        (dangle_output, "ONNX's checker refuses it"),
        (foreign_domain, "operator sets {'': 18, 'com.microsoft': 1}"),
        (foreign_node, "ONNX's checker refuses it"),
        (newer_ir, "operator sets {'': 18} with IR version 10"),
        (outside_data, "ONNX's checker refuses it"),
        (float_input, "image is FLOAT [1, 28, 28] where"),
        (without_metadata, "its metadata architecture is None"),
        (property_change("weights_sha256", "0" * 64), "its metadata weights_sha256 is '0000"),
        (property_change("classes", '["a"]'), "its metadata classes is '[\"a\"]'"),
        (property_change("preparation", "resize"), "its metadata preparation is 'resize'"),
        (property_change("dataset", "kmnist"), "its metadata dataset is 'kmnist' where 'mnist' should be"),
    ],
)
def test_a_file_that_says_other_of_itself_than_it_must_fails_with_the_reason(
    change: Change, reason: str, changed: Any, made: Path, tmp_path: Path, params: Any
) -> None:
    report = validated(tmp_path, params(FEW), made, model=changed(change))
    assert any(reason in each for each in report["reasons"]), report["reasons"]
    assert report["configurations"] == len(table(tmp_path)) == 0


def test_a_file_that_cannot_be_run_for_a_batch_fails_with_the_reason(
    changed: Any, made: Path, tmp_path: Path, params: Any
) -> None:
    report = validated(tmp_path, params(FEW), made, model=changed(fix_batch_inside))
    assert report["reasons"]


def test_the_weights_of_another_training_fail_the_gate(made: Path, tmp_path: Path, params: Any) -> None:
    network, header = read_weights(made / "weights.safetensors")
    write_weights(tmp_path / "w", network, header.model_copy(update={"params": {"seed": 1}}))
    assert "weights_sha256" in validated(tmp_path, params(FEW), made, weights=tmp_path / "w")["reasons"][0]


def swap_answers(golden: dict[str, Any]) -> None:
    first, second = golden["cases"][:2]
    first["logits"], second["logits"] = second["logits"], first["logits"]


def swap_images(golden: dict[str, Any]) -> None:
    first, second = golden["cases"][:2]
    first["image"], second["image"] = second["image"], first["image"]


def other_prediction(golden: dict[str, Any]) -> None:
    golden["cases"][0]["predicted"] = "9"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swap_answers, "golden sample: logits off by"),
        (swap_images, "golden sample: logits off by"),
        (other_prediction, "golden sample: other classes than it says"),
    ],
)
def test_a_golden_sample_that_the_file_does_not_answer_fails_the_gate(
    change: Callable[[dict[str, Any]], None], reason: str, made: Path, tmp_path: Path, params: Any
) -> None:
    golden = json.loads((made / "golden.json").read_text())
    change(golden)
    (tmp_path / "golden.json").write_text(json.dumps(golden))
    report = validated(tmp_path, params(FEW), made, golden=tmp_path / "golden.json")
    assert any(reason in each for each in report["reasons"]), report["reasons"]


def without_cases(golden: dict[str, Any]) -> None:
    golden["cases"] = []


def without_images(golden: dict[str, Any]) -> None:
    del golden["cases"][0]["image"]


def cut_image(golden: dict[str, Any]) -> None:
    golden["cases"][0]["image"].pop()


def bright_pixel(golden: dict[str, Any]) -> None:
    golden["cases"][0]["image"][0] = 300


def other_shape(golden: dict[str, Any]) -> None:
    golden["image_shape"] = [28, 28, 1]


def fewer_logits(golden: dict[str, Any]) -> None:
    for case in golden["cases"]:
        case["logits"].pop()


@pytest.mark.parametrize("change", [without_cases, without_images, cut_image, bright_pixel, other_shape, fewer_logits])
def test_a_damaged_golden_sample_is_a_problem(
    change: Callable[[dict[str, Any]], None], made: Path, tmp_path: Path, params: Any
) -> None:
    golden = json.loads((made / "golden.json").read_text())
    change(golden)
    (tmp_path / "golden.json").write_text(json.dumps(golden))
    with pytest.raises(StageError, match=r"golden\.json: not a golden sample .*; run `dvc repro -f export_onnx`"):
        validated(tmp_path, params(FEW), made, golden=tmp_path / "golden.json")


def test_a_golden_sample_that_is_no_json_is_a_problem(made: Path, tmp_path: Path, params: Any) -> None:
    (tmp_path / "golden.json").write_text("[")
    with pytest.raises(StageError, match=r"golden\.json: not a golden sample"):
        validated(tmp_path, params(FEW), made, golden=tmp_path / "golden.json")


@pytest.mark.parametrize("content", [b"", b"this is not a model\n" * 20, bytes(range(256)) * 4, b"\x00" * 100])
def test_a_file_that_is_not_onnx_is_a_problem_and_touches_no_report(
    content: bytes, made: Path, tmp_path: Path, params: Any
) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    for name in ("parity.json", "parity.csv"):
        (tmp_path / name).write_bytes(b"former")
    with pytest.raises(StageError, match=r"model\.onnx: not an ONNX file"):
        validate_parity(
            params=params(),
            weights=made / "weights.safetensors",
            splits=made / "splits",
            model=tmp_path / "model.onnx",
            golden=made / "golden.json",
            quality=made / "evaluate.json",
            environment=made / "environment.json",
            report=tmp_path / "parity.json",
            measured=tmp_path / "parity.csv",
            certificate=tmp_path / "certificate.json",
        )
    assert {(tmp_path / name).read_bytes() for name in ("parity.json", "parity.csv")} == {b"former"}


def test_half_of_the_file_is_a_problem(made: Path, tmp_path: Path, params: Any) -> None:
    content = (made / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(StageError, match=r"model\.onnx: not an ONNX file"):
        validated(tmp_path, params(), made, model=tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("weights", "train"),
        ("splits", "preprocess"),
        ("model", "export_onnx"),
        ("golden", "export_onnx"),
    ],
)
def test_a_missing_file_is_named_with_the_command_that_makes_it(
    name: str, command: str, made: Path, tmp_path: Path, params: Any
) -> None:
    with pytest.raises(StageError, match=rf"nowhere.*: missing; run `dvc repro {command}`"):
        validated(tmp_path, params(FEW), made, **{name: tmp_path / "nowhere"})


def test_no_named_provider_here_is_a_problem(made: Path, tmp_path: Path, params: Any) -> None:
    choices = params({"validate_parity.providers": ["AbacusExecutionProvider"]})
    with pytest.raises(
        StageError, match=r"validate_parity\.providers: none of .*Abacus.* is available here; there are"
    ):
        validated(tmp_path, choices, made)


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs CUDA")
def test_the_file_is_the_network_on_a_gpu_too(made: Path, tmp_path: Path, params: Any) -> None:
    choices = params({**FEW, "validate_parity.providers": ["CUDAExecutionProvider"]})
    assert validated(tmp_path, choices, made)["same"] is True


def test_a_test_split_smaller_than_the_sample_is_filled_up(made: Path, tmp_path: Path, params: Any) -> None:
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "about.json").write_bytes((made / "splits" / "about.json").read_bytes())
    for name in ("images", "labels"):
        np.save(splits / f"test-{name}.npy", np.load(made / "splits" / f"test-{name}.npy")[:11])
    report = validated(tmp_path, params({**FEW, "validate_parity.sample": 1500}), made, splits=splits)
    assert report["same"] is True
    assert [row["images"] for row in table(tmp_path)] == ["11"] * 5 + ["1500"] * 2 + ["1"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("atol", 0), ("margin", -1), ("sample", 10), ("reference_images", 0), ("batches", []), ("batches", [0]),
     ("batches", [-1]), ("providers", []), ("seed", -1), ("rtol", 1)],
)  # fmt: skip
def test_a_param_that_is_not_right_is_named(key: str, value: Any, made: Path, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=f"validate_parity.{key}"):
        validated(tmp_path, params({f"validate_parity.{key}": value}), made)


# The certificate.


def write_quality(folder: Path, made: Path, **changes: Any) -> Path:
    """evaluate's report with these numbers."""
    path = folder / "evaluate.json"
    path.write_text(json.dumps({**json.loads((made / "evaluate.json").read_text()), **changes}))
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_certificate_names_the_files_and_what_was_proven_of_them(made: Path, tmp_path: Path, params: Any) -> None:
    validated(tmp_path, params(FEW), made)
    found = json.loads((tmp_path / "certificate.json").read_text())
    assert found["model_sha256"] == sha256(made / "model.onnx")
    assert found["weights_sha256"] == sha256(made / "weights.safetensors")
    assert found["golden_sha256"] == sha256(made / "golden.json")
    lines = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted((made / "splits").iterdir()))
    assert found["dataset"] == {
        "name": "mnist",
        "origin": "made",
        "splits_sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }
    quality = json.loads((made / "evaluate.json").read_text())
    assert found["quality"] == {name: quality[name] for name in found["quality"]}
    assert found["quality"].keys() == {"accuracy", "accuracy_low", "accuracy_high", "min_accuracy", "images"}
    assert found["parity"] == {"configurations": 8, "images": 200, "atol": 0.0001, "margin": 0.0001}
    trained_on = json.loads((made / "environment.json").read_text())
    assert found["environment"] == {**trained_on, "onnxruntime": onnxruntime.__version__}
    content = {name: value for name, value in found.items() if name != "sha256"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert found["sha256"] == hashlib.sha256(canonical.encode()).hexdigest()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"min_accuracy": 1.1}, r"no certificate: accuracy .* is below evaluate\.min_accuracy 1\.1"),
        ({"weights": "0123456789ab"}, r"is of other weights than .*; run `dvc repro evaluate`"),
        ({"accuracy": "high"}, r"not a report of evaluate"),
    ],
)
def test_no_certificate_without_quality_and_a_former_one_goes(
    changes: dict[str, Any], reason: str, made: Path, tmp_path: Path, params: Any
) -> None:
    (tmp_path / "certificate.json").write_text("of a former model")
    quality = write_quality(tmp_path, made, **changes)
    given = {"weights": made / "weights.safetensors", "splits": made / "splits", "model": made / "model.onnx"}
    outputs = {
        "report": tmp_path / "parity.json",
        "measured": tmp_path / "m",
        "certificate": tmp_path / "certificate.json",
    }
    with pytest.raises(StageError, match=reason):
        validate_parity(params=params(FEW), **given, golden=made / "golden.json", quality=quality,
                        environment=made / "environment.json", **outputs)  # fmt: skip
    assert json.loads((tmp_path / "parity.json").read_text())["same"] is True
    assert not (tmp_path / "certificate.json").exists()


def test_a_missing_quality_report_is_named_with_the_command_that_makes_it(
    made: Path, tmp_path: Path, params: Any
) -> None:
    with pytest.raises(StageError, match=r"nowhere: missing; run `dvc repro evaluate`"):
        run_without_quality(made, tmp_path, params(FEW))


def run_without_quality(made: Path, folder: Path, params: Path) -> None:
    validate_parity(
        params=params,
        weights=made / "weights.safetensors",
        splits=made / "splits",
        model=made / "model.onnx",
        golden=made / "golden.json",
        quality=folder / "nowhere",
        environment=made / "environment.json",
        report=folder / "parity.json",
        measured=folder / "measured.csv",
        certificate=folder / "certificate.json",
    )
