"""Trained weights and the ONNX file in; a certificate that their outputs match out, or the reasons why not."""

import csv
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from conftest import ROOT, run_stage_in, stage_command
from onnx import numpy_helper

from lockstep import Classifier, LockstepError, ProofFiles
from stages.core.errors import StageError
from stages.core.files import file_sha256
from stages.network.weights import read_weights, write_weights
from stages.validate_parity import validate_parity

QUICK_PARITY = {"validate_parity.batch_sizes": [500], "validate_parity.reference_images": 1}
INPUTS = {"weights": "weights.safetensors", "splits": "splits", "model": "model.onnx", "golden": "golden.json",
          "evaluation": "evaluate.json", "environment": "environment.json"}  # fmt: skip
OUTPUTS = ("parity.json", "parity.csv", "certificate.json", "CARD.md")
ChangeModel = Callable[[onnx.ModelProto], None]
ChangeGolden = Callable[[dict[str, Any]], None]


def input_paths(stage_outputs: Path, **changed: Path) -> dict[str, Path]:
    return {name: stage_outputs / file for name, file in INPUTS.items()} | changed


def validate(folder: Path, params: Path, stage_outputs: Path, **changed: Path) -> dict[str, Any]:
    """The content of the report, whether parity holds or not; an error that is not in the report is raised."""
    failure = ""
    try:
        run_stage_in(folder, validate_parity, params=params, **input_paths(stage_outputs, **changed))
    except StageError as error:
        failure = str(error)
        if not (folder / "parity.json").exists():
            raise
    report: dict[str, Any] = json.loads((folder / "parity.json").read_text())
    passed = not failure
    assert report["same"] is passed
    assert (folder / "certificate.json").exists() is (folder / "CARD.md").exists() is passed
    assert (report["reasons"] == []) is passed
    assert passed or report["reasons"][0] in failure
    assert "\n" not in failure
    return report


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "parity.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def change_model(stage_outputs: Path, tmp_path: Path) -> Callable[[ChangeModel], Path]:
    """Write a changed copy of the ONNX file: change_model(fix_batch)."""

    def write(change: ChangeModel) -> Path:
        proto = onnx.load(stage_outputs / "model.onnx")
        change(proto)
        (tmp_path / "changed.onnx").write_bytes(proto.SerializeToString())
        return tmp_path / "changed.onnx"

    return write


@pytest.fixture
def change_golden(stage_outputs: Path, tmp_path: Path) -> Callable[[ChangeGolden], Path]:
    """Write a changed copy of the golden sample."""

    def write(change: ChangeGolden) -> Path:
        content = json.loads((stage_outputs / "golden.json").read_text())
        change(content)
        (tmp_path / "golden.json").write_text(json.dumps(content))
        return tmp_path / "golden.json"

    return write


def find_initializer(proto: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in proto.graph.initializer if tensor.name.endswith(name))


def change_initializer(proto: onnx.ModelProto, name: str, change: Callable[[np.ndarray], None]) -> None:
    tensor = find_initializer(proto, name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


def add_to_one_weight(array: np.ndarray) -> None:
    array.flat[3] += 0.01


def set_one_weight_to_nan(array: np.ndarray) -> None:
    array.flat[3] = np.nan


def swap_first_rows(array: np.ndarray) -> None:
    array[[0, 1]] = array[[1, 0]]


def test_the_file_is_the_network_in_every_configuration(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    batch_sizes = [1, 2, 7, 64, 1000]
    changes = {"validate_parity.batch_sizes": batch_sizes, "validate_parity.reference_images": 8}
    report = validate(tmp_path, params(changes), stage_outputs)
    assert report["same"] is True
    assert report["reasons"] == []
    assert (report["atol"], report["margin"], report["images"]) == (0.0001, 0.0001, 200)
    assert report["accuracy"] == json.loads((stage_outputs / "evaluate.json").read_text())["accuracy"]
    rows = read_table(tmp_path)
    settings = [(row["engine"], row["level"], row["threads"], row["batch"], row["images"]) for row in rows]
    levels = ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_LAYOUT", "ORT_ENABLE_ALL"]
    on_test_split = [("onnxruntime", level, "1", "1000", "200") for level in levels]
    on_sample = [
        ("onnxruntime", "ORT_ENABLE_ALL", threads, str(size), "1000") for size in batch_sizes for threads in ("1", "2")
    ]
    assert settings == [*on_test_split, *on_sample, ("reference evaluator", "none", "1", "8", "8")]
    assert len({row["configuration"] for row in rows}) == len(rows) == report["configurations"] == 16
    assert {row["provider"] for row in rows[:-1]} == {"CPUExecutionProvider"}
    assert all(0 <= float(row["logits_p999"]) <= float(row["logits_max"]) < 1e-4 for row in rows)
    assert {row["flips"] for row in rows} == {"0"}


def test_a_second_run_writes_the_same_bytes(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    for folder in ("first", "second"):
        validate(tmp_path / folder, params(QUICK_PARITY), stage_outputs)
    for file in OUTPUTS:
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize("name", ["head.bias", "head.weight", "body.0.weight"])
def test_one_changed_weight_fails_the_gate(
    name: str, change_model: Any, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    model = change_model(lambda proto: change_initializer(proto, name, add_to_one_weight))
    report = validate(tmp_path, params(QUICK_PARITY), stage_outputs, model=model)
    assert "logits off by" in report["reasons"][0]
    assert "more than atol 0.0001" in report["reasons"][0]
    assert max(float(row["logits_max"]) for row in read_table(tmp_path)) > 1e-4
    assert len(read_table(tmp_path)) == report["configurations"] == 8


def test_the_command_writes_the_report_and_fails_with_one_line(
    change_model: Any, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    changed = change_model(lambda proto: change_initializer(proto, "head.bias", add_to_one_weight))
    paths = input_paths(stage_outputs, params=params(QUICK_PARITY), model=changed)
    command = stage_command(tmp_path, validate_parity, **paths)
    completed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert completed.returncode == 1
    assert completed.stderr.count("\n") == 1
    assert completed.stderr.startswith(f"validate_parity: {changed} does not match {paths['weights']}: ")
    assert json.loads((tmp_path / "parity.json").read_text())["same"] is False


def test_a_difference_within_atol_and_flip_margin_passes(
    change_model: Any, change_golden: Any, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    loose = {**QUICK_PARITY, "validate_parity.atol": 0.1, "validate_parity.flip_margin": 0.1}
    model = change_model(lambda proto: change_initializer(proto, "head.bias", add_to_one_weight))
    golden = change_golden(lambda content: content.update(tolerance=0.1))
    assert validate(tmp_path, params(loose), stage_outputs, model=model, golden=golden)["same"] is True
    network, _ = read_weights(stage_outputs / "weights.safetensors")
    error = 0.01 / float(network.temperature)
    assert max(float(row["logits_max"]) for row in read_table(tmp_path)) == pytest.approx(error, 0.01)


def test_swapped_outputs_flip_labels(change_model: Any, stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    model = change_model(lambda proto: change_initializer(proto, "head.weight", swap_first_rows))
    report = validate(tmp_path, params(QUICK_PARITY), stage_outputs, model=model)
    assert any("flipped labels, one decided by" in reason for reason in report["reasons"])
    assert all(int(row["flips"]) > 0 for row in read_table(tmp_path) if row["images"] == "200")


def test_a_number_that_is_not_finite_fails_the_gate(
    change_model: Any, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    model = change_model(lambda proto: change_initializer(proto, "head.weight", set_one_weight_to_nan))
    report = validate(tmp_path, params(QUICK_PARITY), stage_outputs, model=model)
    assert "a number that is not finite" in report["reasons"][0]
    json.loads((tmp_path / "parity.json").read_text(), parse_constant=pytest.fail)


def fix_batch(proto: onnx.ModelProto) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 1


def fix_batch_of_reshape(proto: onnx.ModelProto) -> None:
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


def rename_output_declaration_only(proto: onnx.ModelProto) -> None:
    proto.graph.output[0].name = "scores"


def add_foreign_domain(proto: onnx.ModelProto) -> None:
    proto.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def use_foreign_domain(proto: onnx.ModelProto) -> None:
    proto.graph.node[-1].domain = "com.microsoft"


def raise_ir_version(proto: onnx.ModelProto) -> None:
    proto.ir_version = 10


def clear_metadata(proto: onnx.ModelProto) -> None:
    proto.ClearField("metadata_props")


def externalize_weights(proto: onnx.ModelProto) -> None:
    tensor = find_initializer(proto, "head.weight")
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")


def declare_float_input(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.FLOAT


def change_metadata(key: str, value: str) -> ChangeModel:
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
        (rename_output_declaration_only, "ONNX's checker refuses it"),
        (add_foreign_domain, "operator sets {'': 18, 'com.microsoft': 1}"),
        (use_foreign_domain, "ONNX's checker refuses it"),
        (raise_ir_version, "operator sets {'': 18} with IR version 10"),
        (externalize_weights, "ONNX's checker refuses it"),
        (declare_float_input, "image is FLOAT [1, 28, 28] where"),
        (clear_metadata, "its metadata architecture is None"),
        (change_metadata("weights_sha256", "0" * 64), "its metadata weights_sha256 is '0000"),
        (change_metadata("classes", '["a"]'), "its metadata classes is '[\"a\"]'"),
        (change_metadata("preparation", "resize"), "its metadata preparation is 'resize'"),
        (change_metadata("dataset", "kmnist"), "its metadata dataset is 'kmnist' where 'mnist' should be"),
    ],
)
def test_a_file_with_wrong_declarations_fails_with_the_reason(
    change: ChangeModel, reason: str, change_model: Any, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    report = validate(tmp_path, params(QUICK_PARITY), stage_outputs, model=change_model(change))
    assert any(reason in text for text in report["reasons"]), report["reasons"]
    assert report["configurations"] == len(read_table(tmp_path)) == 0


def test_a_file_that_cannot_run_a_batch_fails_with_the_reason(
    change_model: Any, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    report = validate(tmp_path, params(QUICK_PARITY), stage_outputs, model=change_model(fix_batch_of_reshape))
    assert report["reasons"]


def test_the_weights_of_another_training_fail_the_gate(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    network, header = read_weights(stage_outputs / "weights.safetensors")
    write_weights(tmp_path / "w", network, header.model_copy(update={"params": {"seed": 1}}))
    assert (
        "weights_sha256"
        in validate(tmp_path, params(QUICK_PARITY), stage_outputs, weights=tmp_path / "w")["reasons"][0]
    )


def swap_logits(golden: dict[str, Any]) -> None:
    first, second = golden["cases"][:2]
    first["logits"], second["logits"] = second["logits"], first["logits"]


def swap_images(golden: dict[str, Any]) -> None:
    first, second = golden["cases"][:2]
    first["image"], second["image"] = second["image"], first["image"]


def change_prediction(golden: dict[str, Any]) -> None:
    golden["cases"][0]["predicted"] = "9"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (swap_logits, "golden sample: logits off by"),
        (swap_images, "golden sample: logits off by"),
        (change_prediction, "golden sample: its predicted classes are others"),
    ],
)
def test_a_golden_sample_with_other_outputs_fails_the_gate(
    change: ChangeGolden, reason: str, change_golden: Any, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    report = validate(tmp_path, params(QUICK_PARITY), stage_outputs, golden=change_golden(change))
    assert any(reason in text for text in report["reasons"]), report["reasons"]


def remove_cases(golden: dict[str, Any]) -> None:
    golden["cases"] = []


def remove_image(golden: dict[str, Any]) -> None:
    del golden["cases"][0]["image"]


def shorten_image(golden: dict[str, Any]) -> None:
    golden["cases"][0]["image"].pop()


def set_pixel_to_300(golden: dict[str, Any]) -> None:
    golden["cases"][0]["image"][0] = 300


def change_image_shape(golden: dict[str, Any]) -> None:
    golden["image_shape"] = [28, 28, 1]


def shorten_logits(golden: dict[str, Any]) -> None:
    for case in golden["cases"]:
        case["logits"].pop()


@pytest.mark.parametrize(
    "change", [remove_cases, remove_image, shorten_image, set_pixel_to_300, change_image_shape, shorten_logits]
)
def test_a_damaged_golden_sample_is_named(
    change: ChangeGolden, change_golden: Any, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    with pytest.raises(StageError, match=r"golden\.json: not a golden sample .*; run `dvc repro -f export_onnx`"):
        validate(tmp_path, params(QUICK_PARITY), stage_outputs, golden=change_golden(change))


def test_a_golden_sample_that_is_not_json_is_named(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    (tmp_path / "golden.json").write_text("[")
    with pytest.raises(StageError, match=r"golden\.json: not a golden sample"):
        validate(tmp_path, params(QUICK_PARITY), stage_outputs, golden=tmp_path / "golden.json")


@pytest.mark.parametrize("content", [b"", b"this is not a model\n" * 20, bytes(range(256)) * 4, b"\x00" * 100])
def test_a_file_that_is_not_onnx_is_named_and_the_previous_report_stays(
    content: bytes, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    (tmp_path / "model.onnx").write_bytes(content)
    for name in ("parity.json", "parity.csv"):
        (tmp_path / name).write_bytes(b"previous")
    with pytest.raises(StageError, match=r"model\.onnx: not an ONNX file"):
        run_stage_in(
            tmp_path, validate_parity, params=params(), **input_paths(stage_outputs, model=tmp_path / "model.onnx")
        )
    assert {(tmp_path / name).read_bytes() for name in ("parity.json", "parity.csv")} == {b"previous"}


def test_a_truncated_file_is_named(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    content = (stage_outputs / "model.onnx").read_bytes()
    (tmp_path / "model.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(StageError, match=r"model\.onnx: not an ONNX file"):
        validate(tmp_path, params(), stage_outputs, model=tmp_path / "model.onnx")


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
    name: str, command: str, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    with pytest.raises(StageError, match=rf"nowhere.*: missing; run `dvc repro {command}`"):
        validate(tmp_path, params(QUICK_PARITY), stage_outputs, **{name: tmp_path / "nowhere"})


def test_providers_that_are_all_unavailable_are_named(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    params_file = params({"validate_parity.providers": ["AbacusExecutionProvider"]})
    with pytest.raises(StageError, match=r"validate_parity\.providers: none of .*Abacus.* is available; name one of"):
        validate(tmp_path, params_file, stage_outputs)


@pytest.mark.gpu
@pytest.mark.skipif("CUDAExecutionProvider" not in onnxruntime.get_available_providers(), reason="needs CUDA")
def test_the_file_is_the_network_on_a_gpu_too(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    params_file = params({**QUICK_PARITY, "validate_parity.providers": ["CUDAExecutionProvider"]})
    assert validate(tmp_path, params_file, stage_outputs)["same"] is True


def test_a_sample_larger_than_the_test_split_is_filled_with_noise(
    stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    splits = tmp_path / "splits"
    splits.mkdir()
    (splits / "about.json").write_bytes((stage_outputs / "splits" / "about.json").read_bytes())
    for name in ("images", "labels"):
        np.save(splits / f"test-{name}.npy", np.load(stage_outputs / "splits" / f"test-{name}.npy")[:11])
    report = validate(
        tmp_path, params({**QUICK_PARITY, "validate_parity.sample_images": 1500}), stage_outputs, splits=splits
    )
    assert report["same"] is True
    assert [row["images"] for row in read_table(tmp_path)] == ["11"] * 5 + ["1500"] * 2 + ["1"]


@pytest.mark.parametrize(
    ("key", "value"),
    [("atol", 0), ("flip_margin", -1), ("sample_images", 10), ("reference_images", 0), ("batch_sizes", []),
     ("batch_sizes", [0]), ("batch_sizes", [-1]), ("providers", []), ("seed", -1), ("rtol", 1)],
)  # fmt: skip
def test_an_invalid_param_is_named(key: str, value: Any, stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    with pytest.raises(StageError, match=f"validate_parity.{key}"):
        validate(tmp_path, params({f"validate_parity.{key}": value}), stage_outputs)


@pytest.mark.parametrize(
    ("old", "new"), [("margin", "flip_margin"), ("sample", "sample_images"), ("batches", "batch_sizes")]
)
def test_a_former_param_name_is_reported_with_the_new_name(
    old: str, new: str, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    with pytest.raises(StageError, match=f"validate_parity.{old} is now called validate_parity.{new}"):
        validate(tmp_path, params({f"validate_parity.{old}": 1}), stage_outputs)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_certificate_has_the_hashes_quality_and_parity(stage_outputs: Path, tmp_path: Path, params: Any) -> None:
    validate(tmp_path, params(QUICK_PARITY), stage_outputs)
    certificate = json.loads((tmp_path / "certificate.json").read_text())
    assert certificate["model_sha256"] == sha256(stage_outputs / "model.onnx")
    assert certificate["weights_sha256"] == sha256(stage_outputs / "weights.safetensors")
    assert certificate["golden_sha256"] == sha256(stage_outputs / "golden.json")
    lines = "".join(f"{sha256(path)}  {path.name}\n" for path in sorted((stage_outputs / "splits").iterdir()))
    assert certificate["dataset"] == {
        "name": "mnist",
        "origin": "made",
        "splits_sha256": hashlib.sha256(lines.encode()).hexdigest(),
    }
    quality = json.loads((stage_outputs / "evaluate.json").read_text())
    assert certificate["quality"] == {name: quality[name] for name in certificate["quality"]}
    assert certificate["quality"].keys() == {
        "accuracy", "accuracy_low", "accuracy_high", "min_accuracy", "macro_f1", "min_macro_f1", "images"
    }  # fmt: skip
    assert certificate["parity"] == {"configurations": 8, "images": 200, "atol": 0.0001, "margin": 0.0001}
    trained_on = json.loads((stage_outputs / "environment.json").read_text())
    assert certificate["environment"] == {**trained_on, "onnxruntime": onnxruntime.__version__}
    content = {name: value for name, value in certificate.items() if name != "sha256"}
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert certificate["sha256"] == hashlib.sha256(canonical.encode()).hexdigest()
    card = (tmp_path / "CARD.md").read_text()
    hashes = [value for name, value in certificate.items() if name.endswith("sha256")]
    assert all(f"`{digest}`" in card for digest in [*hashes, certificate["dataset"]["splits_sha256"]])
    assert f"| accuracy | {quality['accuracy']:.2%} (95 % interval {quality['accuracy_low']:.2%} to " in card
    assert "| train | 540 |\n| validation | 60 |\n| test | 200 |" in card
    assert "`optimizer` adamw, `learning_rate` 0.005" in card
    assert "on every x86-64 CPU with AVX2" in card
    assert "{" not in card


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"min_accuracy": 1.1}, r"accuracy .* is below the required 1\.1000, so no certificate is written"),
        ({"min_macro_f1": 1.1}, r"macro F1 .* is below the required 1\.1000, so no certificate is written"),
        ({"weights": "0123456789ab"}, r"not of the weights in .*; run `dvc repro evaluate`"),
        ({"accuracy": "high"}, r"not a report of evaluate"),
        ({}, r"evaluate\.json: missing; run `dvc repro evaluate`"),
    ],
)
def test_without_quality_there_is_no_certificate_and_the_previous_one_is_removed(
    changes: dict[str, Any], reason: str, stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    for name in ("certificate.json", "CARD.md"):
        (tmp_path / name).write_text("of a previous model")
    evaluation = tmp_path / "evaluate.json"
    if changes:
        evaluation.write_text(json.dumps({**json.loads((stage_outputs / "evaluate.json").read_text()), **changes}))
    paths = input_paths(stage_outputs, evaluation=evaluation)
    with pytest.raises(StageError, match=reason):
        run_stage_in(tmp_path, validate_parity, params=params(QUICK_PARITY), **paths)
    assert json.loads((tmp_path / "parity.json").read_text())["same"] is True
    assert not (tmp_path / "certificate.json").exists()
    assert not (tmp_path / "CARD.md").exists()


def test_a_model_below_a_floor_that_is_only_recorded_gets_a_refusal_in_place_of_a_certificate(
    stage_outputs: Path, tmp_path: Path, params: Any
) -> None:
    report = json.loads((stage_outputs / "evaluate.json").read_text())
    evaluation = tmp_path / "evaluate.json"
    evaluation.write_text(json.dumps({**report, "min_accuracy": 1.1, "gate": "record", "passed": False}))
    paths = input_paths(stage_outputs, evaluation=evaluation)
    run_stage_in(tmp_path, validate_parity, params=params(QUICK_PARITY), **paths)
    assert "is below the required 1.1" in (tmp_path / "CARD.md").read_text()
    files = ProofFiles(stage_outputs / "golden.json", tmp_path / "certificate.json")
    with pytest.raises(LockstepError, match=r"certificate\.json: certifies nothing: accuracy [01]\.\d+ is below the"):
        Classifier(stage_outputs / "model.onnx", verify=files)


@pytest.mark.slow
@pytest.mark.ci
def test_a_residual_network_for_colour_pictures_is_proven_without_a_change(colour_model: Path) -> None:
    folder = colour_model.parent
    assert json.loads((folder / "certificate.json").read_text())["model_sha256"] == file_sha256(colour_model)
    assert json.loads((folder / "parity.json").read_text())["same"]
    header = read_weights(folder / "weights.safetensors")[1]
    assert (header.architecture, header.depth, header.channels) == ("resnet", 1, 3)
