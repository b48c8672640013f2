"""The smallest input of each failure that fuzzing has found: each ends in one line of the project's own errors."""

import gzip
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import idx_bytes
from fuzz import find_target, use
from targets_of_consumers import PUBLISHED
from valid_inputs import npy_bytes, tiny_model

from lockstep.certificate import hash_content, serialize_certificate

DEEP, LONG = b"[" * 100_000, f"[0, 1{'0' * 400}]"
DIGITS = {"dataset": "digits", "origin": "", "preparation": "mnist", "classes": ["0", "1"], "files": {}}
IMAGES, LABELS = np.zeros((2, 8, 8), np.uint8), np.arange(2, dtype=np.uint8)
METADATA = {"classes": '["0", "1"]', "input": '{"shape": ["batch", 1, 28, 28]}', "preparation": "mnist"}


def raw(images: Any = IMAGES, labels: Any = LABELS, **changes: Any) -> tuple[bytes, bytes, bytes]:
    source = {key: value for key, value in {**DIGITS, **changes}.items() if value is not None}
    return json.dumps(source).encode(), npy_bytes(images), npy_bytes(labels)


def huge_idx() -> tuple[bytes, bytes]:
    """Of one image of 2**64 pixels, or nearly."""
    return gzip.compress(struct.pack(">IIII", 0x0803, 1, 2**32 - 1, 2**32 - 1)), idx_bytes(LABELS[:1])


def forged_certificate() -> bytes:
    """With an accuracy of 2, and the right hash of its content."""
    content = json.loads((PUBLISHED / "certificate.json").read_bytes())
    content["quality"]["accuracy"] = 2.0
    return serialize_certificate({**content, "sha256": hash_content(content)})


CASES: list[tuple[str, str, Any]] = [
    ("idx", "a header of 2**64 bytes", huge_idx()),
    ("raw_folder", "no classes", raw(classes=None)),
    ("raw_folder", "classes that are a number", raw(classes=3)),
    ("raw_folder", "no files", raw(files=None)),
    ("raw_folder", "a data set that is a list", raw(dataset=["digits"])),
    ("raw_folder", "deep nesting", (DEEP, *raw()[1:])),
    ("raw_folder", "a file outside the folder", raw(dataset="own", files={"../../0/1.png": ""})),
    ("raw_folder", "a file of no class", raw(dataset="own", files={"2/1.png": ""})),
    ("raw_folder", "images that are fractions", raw(images=IMAGES + 0.5)),
    ("raw_folder", "labels of two dimensions", raw(labels=LABELS[:, None])),
    ("raw_folder", "a damaged header", (raw()[0], npy_bytes(IMAGES).replace(b"(2, 8, 8)", b"((2, 8, 8"), raw()[2])),
    ("splits", "labels that are texts", ("train-labels.npy", npy_bytes(np.array(["a"] * 10)))),
    ("splits", "a damaged header", ("test-images.npy", npy_bytes(IMAGES).replace(b"(2, 8, 8)", b"((2, 8, 8"))),
    ("splits", "names that are not UTF-8", ("test-names.txt", b"\xff\n" * 10)),
    ("params", "a date that does not exist", b"machine: {threads: 2026-13-45}"),
    ("params", "deep nesting", b"machine: " + b"[" * 400),
    ("params", "a line break in a param", b'machine: {"a\\nb": 1}'),
    ("params", "a section that is no text", b"2: {}\nmachine: {}"),
    ("overrides", "a date that does not exist", "train.epochs=2026-13-45"),
    ("overrides", "a line break", "a\nb"),
    ("dag", "not UTF-8", b"stages: \xff"),
    ("dag", "a date that does not exist", b"stages: 2026-13-45"),
    ("dag", "an empty item", b"stages: {a: {cmd: x, outs: [{}]}}"),
    ("dag", "a stage that is a number", b"stages: {1: {cmd: x}}"),
    ("dag", "a line break in a name", b'stages: {"a\\nb": {cmd: x, meta: {prefect: {retries: x}}}}'),
    ("lock_file", "a damaged number", b"stages:\n  a:\n    cmd: !!int x\n"),
    ("lock_file", "another version of YAML", b"stages:\n  a:\n%YAML 9.9\n    cmd: x\n"),
    ("metadata", "a side that is a text", {**METADATA, "input": '{"shape": ["batch", 1, "x", 28]}'}),
    ("metadata", "deep nesting", {**METADATA, "classes": DEEP.decode()}),
    ("metadata", "classes that are one text", {**METADATA, "classes": '"01"'}),
    ("metadata", "a class that occurs twice", {**METADATA, "classes": '["0", "0"]'}),
    ("metadata", "half of a surrogate pair", {**METADATA, "classes": '["\\ud800", "0"]'}),
    ("metadata", "a roughness that no float holds", {**METADATA, "reject_below": "1", "reject_roughness": LONG}),
    ("model_file", "metadata that are not UTF-8", tiny_model().replace(b"mnist", b"mnis\xff")),
    ("certificate", "an accuracy above 1", forged_certificate()),
    ("certificate", "a reason of two lines", b'{"format": 1, "refused": "a\\nb"}'),
]  # fmt: skip


@pytest.mark.parametrize(("target", "data"), [pytest.param(*case[::2], id=f"{case[0]}: {case[1]}") for case in CASES])
def test_an_input_that_once_failed_is_one_line(target: str, data: Any, tmp_path: Path) -> None:
    outcome, reason = use(find_target(target)(tmp_path), data)
    assert not reason
    assert outcome != "result"
