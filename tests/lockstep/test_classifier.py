"""The library: images of any kind in, labels with their probabilities out."""

import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from conftest import ROOT
from PIL import Image
from served import certify, png_bytes

from lockstep import Classifier, ImageError, LockstepError, Prediction, ProofFiles
from lockstep.certificate import hash_content, serialize_certificate

Tested = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def classifier(stage_outputs: Path) -> Classifier:
    return Classifier(stage_outputs / "model.onnx")


def test_arrays_of_the_networks_size_are_its_input_without_preparation(
    classifier: Classifier, test_set: Tested
) -> None:
    images, labels = test_set
    predictions = classifier.predict(images)
    assert [int(prediction.label) for prediction in predictions] == labels.tolist()
    assert classifier.predict(images[:, 0]) == predictions
    for prediction in (images[3, 0], images[3, 0] / 255.0, images[3, 0].astype(np.int64)):
        assert classifier.predict(prediction) == predictions[3]
    assert classifier.predict(images[3]) == classifier.predict(images[3:4]) == [predictions[3]]


def test_a_prediction_has_label_probability_and_all_probabilities(classifier: Classifier, test_set: Tested) -> None:
    prediction = classifier.predict(test_set[0][0, 0])
    assert isinstance(prediction, Prediction)
    assert list(prediction.probabilities) == list("0123456789")
    assert (
        prediction.probability == prediction.probabilities[prediction.label] == max(prediction.probabilities.values())
    )
    assert sum(prediction.probabilities.values()) == pytest.approx(1, abs=1e-5)
    assert prediction.top(3)[0] == (prediction.label, prediction.probability)
    assert len(prediction.top(3)) == 3


def test_paths_bytes_pil_images_and_arrays_give_the_same_prediction(
    classifier: Classifier, test_set: Tested, tmp_path: Path
) -> None:
    large = Image.fromarray(test_set[0][5, 0]).resize((90, 90))
    (tmp_path / "one.png").write_bytes(png_bytes(large))
    forms = [tmp_path / "one.png", str(tmp_path / "one.png"), png_bytes(large), large, np.asarray(large)]
    prediction = classifier.predict(forms[0])
    assert [classifier.predict(form) for form in forms] == [prediction] * 5
    assert classifier.predict(forms) == [prediction] * 5
    assert classifier.predict(np.stack([np.asarray(large)[..., None]] * 2)) == [prediction] * 2


def test_the_batch_size_does_not_change_predictions(stage_outputs: Path, test_set: Tested) -> None:
    predictions = Classifier(stage_outputs / "model.onnx", batch_size=7, threads=None).predict(test_set[0])
    for prediction, expected in zip(
        predictions, Classifier(stage_outputs / "model.onnx").predict(test_set[0]), strict=True
    ):
        assert prediction.label == expected.label
        assert prediction.probability == pytest.approx(expected.probability, abs=1e-5)
    assert Classifier(stage_outputs / "model.onnx").predict([]) == []


def test_threads_can_share_a_classifier(classifier: Classifier, test_set: Tested) -> None:
    images = test_set[0][:, 0]
    expected = [classifier.predict(image) for image in images]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(classifier.predict, list(images) * 3)) == expected * 3


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n rest", "not a readable image"),
        (b"not an image", "not a readable image"),
        ("no/such.png", "no/such.png: cannot be read: No such file"),
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.full((28, 28), 256), "outside 0..255"),
        (np.full((28, 28), np.nan), "outside 0..1"),
        (np.zeros((0, 28), np.uint8), "shape"),
        (np.full((50, 50), 7, np.uint8), "nothing stands out"),
        (Image.new("RGBA", (40, 40)), "nothing stands out"),
        (Image.new("L", (0, 0)), "has no pixels"),
        (Image.new("1", (10_000, 10_000)), "more than 50,000,000 pixels"),
        ("a\0b", "null byte"),
    ],
)
def test_an_invalid_image_is_an_error_of_one_line(classifier: Classifier, image: Any, message: str) -> None:
    with pytest.raises(ImageError, match=message) as error:
        classifier.predict(image)
    assert "\n" not in str(error.value)
    with pytest.raises(ImageError, match=r"image 1: |no/such.png: |a.b: "):
        classifier.predict([np.eye(28), image])


@pytest.mark.parametrize("pixels", [np.zeros((28, 28), np.uint8), np.zeros((2, 1, 28, 28), np.float32)])
def test_prepared_inputs_of_another_shape_or_type_are_an_error_of_one_line(classifier: Classifier, pixels: Any) -> None:
    with pytest.raises(LockstepError) as error:
        classifier.predict_prepared(pixels)
    assert "prepared inputs are uint8[n, 1, 28, 28]" in str(error.value)
    assert str(error.value).endswith(f"these are {pixels.dtype}{list(pixels.shape)}")


def test_a_truncated_image_is_refused(classifier: Classifier) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (99, 99), dtype=np.uint8)
    with pytest.raises(ImageError, match="not a readable image"):
        classifier.predict(png_bytes(noise)[:-2000])


def test_an_image_with_too_many_pixels_is_refused_before_it_is_decoded(stage_outputs: Path) -> None:
    bomb = png_bytes(Image.new("1", (10_000, 10_000)))
    assert len(bomb) < 100_000
    with pytest.raises(ImageError, match="the image has more than 50,000,000 pixels"):
        Classifier(stage_outputs / "model.onnx").predict(bomb)
    with pytest.raises(ImageError, match="more than 100 pixels: 11 x 11"):
        Classifier(stage_outputs / "model.onnx", max_pixels=100).predict(png_bytes(np.eye(11, dtype=np.uint8)))


def test_an_invalid_model_is_an_error_of_one_line(stage_outputs: Path, tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"not a model")
    proto = onnx.load(stage_outputs / "model.onnx")
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    cases = {"missing": "there is no such file", "no": "does not load it", "bare": "its metadata lack 'classes'"}
    cases |= {"other": "are not those", "odd": "preparation 'odd'", "unfit": "fit 'odd'"}
    for name, changes in {
        "bare": {"classes": None},
        "other": {"classes": '["a"]'},
        "odd": {"preparation": "odd"},
        "unfit": {"fit": "odd"},
    }.items():
        del proto.metadata_props[:]
        for key, value in {**properties, **changes}.items():
            if value is not None:
                proto.metadata_props.add(key=key, value=value)
        (tmp_path / f"{name}.onnx").write_bytes(proto.SerializeToString())
    for name, message in cases.items():
        with pytest.raises(LockstepError, match=message) as error:
            Classifier(tmp_path / f"{name}.onnx", verify=False)
        assert str(tmp_path / name) in str(error.value)
        assert "\n" not in str(error.value)


def test_a_proven_model_has_its_certificate_and_an_unproven_one_is_refused(
    stage_outputs: Path, model_copy: Path, tmp_path: Path
) -> None:
    classifier = Classifier(model_copy, verify=True)
    assert classifier.certificate
    assert classifier.certificate.content == json.loads((stage_outputs / "certificate.json").read_text())
    assert classifier.certificate.hashes.model_sha256 == classifier.sha256
    assert classifier.certificate.quality.accuracy >= classifier.certificate.quality.min_accuracy == 0.97
    assert classifier.replay
    assert (classifier.replay.images, classifier.replay.tolerance) == (10, 0.0001)
    unverified = Classifier(model_copy, verify=False)
    assert unverified.certificate is unverified.replay is None

    proof = ProofFiles(stage_outputs / "golden.json", stage_outputs / "certificate.json")
    for name in ("golden.json", "certificate.json"):
        model_copy.with_name(name).unlink()
        with pytest.raises(LockstepError, match=f"{name}: there is no such file; .*`dvc repro`"):
            Classifier(model_copy, verify=True)
        shutil.copyfile(stage_outputs / name, model_copy.with_name(name))
    expected = Path(shutil.copyfile(model_copy, tmp_path / "alone.onnx"))
    assert Classifier(expected, verify=proof).certificate == classifier.certificate
    with pytest.raises(LockstepError, match="there is no such file"):
        Classifier(expected, verify=True)
    expected.write_bytes(expected.read_bytes() + b"\0")
    with pytest.raises(LockstepError, match=r"certificate.json: does not certify .*alone.onnx"):
        Classifier(expected, verify=proof)


BROKEN_GOLDEN = [
    (b"{", "is not a golden sample"),
    (b'{"cases": []}', "is not a golden sample"),
    (b'{"cases": [], "tolerance": 1, "image_shape": [1, 28, 28]}', "has no images"),
    (b"[" * 100_000, "is not a golden sample"),
]


@pytest.mark.parametrize(("data", "message"), BROKEN_GOLDEN, ids=["half", "no shape", "empty", "deep"])
def test_an_invalid_golden_sample_is_refused_even_if_it_is_certified(
    model_copy: Path, data: bytes, message: str
) -> None:
    model_copy.with_name("golden.json").write_bytes(data)
    certify(model_copy)
    with pytest.raises(LockstepError, match=f"the golden sample of .* {message}") as error:
        Classifier(model_copy, verify=True)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("classes", "it has 9 outputs for an image, the model has 10 classes"),
        ("size", r"images of \(1, 14, 56\), the model takes \(1, 28, 28\)"),
    ],
)
def test_a_golden_sample_of_another_model_says_what_differs(model_copy: Path, change: str, message: str) -> None:
    path = model_copy.with_name("golden.json")
    content = json.loads(path.read_text())
    if change == "size":
        content["image_shape"] = [1, 14, 56]
    for case in content["cases"] if change == "classes" else []:
        case["logits"].pop()
        case["probabilities"].pop()
    path.write_text(json.dumps(content))
    certify(model_copy)
    with pytest.raises(
        LockstepError, match=f"is of another model: {message}; copy all files of the model again, or run `dvc repro`"
    ):
        Classifier(model_copy)


def test_waiting_threads_do_not_spin(stage_outputs: Path, test_set: Tested) -> None:
    """Spinning threads would take a core from other work on the machine."""
    classifier, images = Classifier(stage_outputs / "model.onnx", threads=2), test_set[0][:64]
    classifier.run(images)
    started = time.process_time()
    for _ in range(20):
        classifier.run(images)
        time.sleep(0.02)  # a spinning thread spins for several milliseconds
    assert time.process_time() - started < 0.1


def test_library_and_command_import_nothing_but_onnxruntime_numpy_and_pillow(
    stage_outputs: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(png_bytes(np.eye(28) > 0))
    program = f"""
import json, sys
from lockstep.__main__ import main
assert main(["verify", {str(stage_outputs / "model.onnx")!r}]) == 0
main(["predict", {str(tmp_path / "x.png")!r}, "--model", {str(stage_outputs / "model.onnx")!r}])
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = set(json.loads(result.stdout.splitlines()[-1]))
    assert {"numpy", "onnxruntime", "PIL"} <= imported
    assert not imported & {"torch", "onnx", "stages", "flows", "fastapi", "pydantic", "starlette", "sklearn", "scipy"}


def test_noise_and_blank_images_are_rejected_and_real_ones_are_not(classifier: Classifier, test_set: Tested) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 28, 28), dtype=np.uint8)
    blank = np.stack([np.full((28, 28), value, np.uint8) for value in (0, 100, 255)])
    for images in (noise, blank):
        assert {one.label for one in classifier.predict(images, reject=True)} == {None}
        assert None not in {one.label for one in classifier.predict(images)}
    real, rejecting = classifier.predict(test_set[0]), classifier.predict(test_set[0], reject=True)
    assert [one.label for one in rejecting].count(None) <= 10  # of 200
    assert [one.probabilities for one in rejecting] == [one.probabilities for one in real]
    unsure = min(real, key=lambda one: one.probability)
    assert classifier.reject_rule
    assert (unsure.probability < classifier.reject_rule.min_probability) <= (
        rejecting[real.index(unsure)].label is None
    )


def change_metadata(model: Path, **changes: str | None) -> Path:
    proto = onnx.load(model)
    properties = {entry.key: entry.value for entry in proto.metadata_props} | changes
    onnx.helper.set_model_props(proto, {key: value for key, value in properties.items() if value is not None})
    model.write_bytes(proto.SerializeToString())
    return model


def test_a_model_without_a_rule_cannot_reject(model_copy: Path, test_set: Tested) -> None:
    path = change_metadata(model_copy, reject_below=None)
    old = Classifier(path, verify=False)
    assert None not in {one.label for one in old.predict(test_set[0])}
    with pytest.raises(LockstepError, match="cannot reject images, since its metadata have no reject_below; export it"):
        old.predict(test_set[0], reject=True)


@pytest.mark.parametrize("value", ["high", "NaN", ""])
def test_a_rule_that_is_not_valid_is_refused(value: str, model_copy: Path) -> None:
    with pytest.raises(LockstepError, match="its metadata reject_below or reject_roughness are not valid"):
        Classifier(change_metadata(model_copy, reject_below=value), verify=False)


def test_a_certificate_of_an_earlier_version_is_read(model_copy: Path) -> None:
    certificate = model_copy.parent / "certificate.json"
    content = json.loads(certificate.read_text())
    for key in ("macro_f1", "min_macro_f1", "sha256"):
        (content["quality"] if key != "sha256" else content).pop(key)
    content["sha256"] = hash_content(content)
    certificate.write_bytes(serialize_certificate(content))
    quality = Classifier(model_copy).certificate.quality
    assert (quality.macro_f1, quality.min_accuracy) == (None, 0.97)


def test_a_certificate_below_its_floor_of_macro_f1_is_refused(model_copy: Path) -> None:
    certificate = model_copy.parent / "certificate.json"
    content = json.loads(certificate.read_text())
    content["quality"]["min_macro_f1"] = 1.1
    content["sha256"] = hash_content(content)
    certificate.write_bytes(serialize_certificate(content))
    with pytest.raises(LockstepError, match=r"macro F1 \S+ is below the required 1.1; train a better model"):
        Classifier(model_copy)
