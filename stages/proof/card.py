"""Writes the model card (Mitchell et al., 2019, "Model cards for model reporting") from what a run has measured."""

from typing import Any

from stages.core.splits import SplitsInfo
from stages.network.weights import WeightsHeader
from stages.proof.onnx_file import describe_preparation

TEMPLATE = """# Classifier of {dataset}

An image classifier in ONNX, with {class_count} classes: {classes}.

## What it takes and gives

- Input `image`: uint8[batch, {channels}, {size}, {size}], pixel values as they are.
- Other images are prepared first: {preparation}.
- Outputs `logits` and `probabilities`: float32[batch, {class_count}], in the order of the classes above.
- Network: `{architecture}`. Its normalization is inside the file.

## Data

| split | images |
|---|---|
{splits}

Data set `{dataset}`, from {origin}. SHA-256 of the splits: `{splits_sha256}`.

## Quality, on the test split

| what | value |
|---|---|
| accuracy | {accuracy:.2%} (95 % interval {accuracy_low:.2%} to {accuracy_high:.2%}); required: {min_accuracy:.2%} |
| macro F1 | {macro_f1:.4f}; required: {min_macro_f1:.4f} |
| log loss | {loss:.4f} |
| calibration error | {calibration_error:.4f} |

## Proof

The file's logits and probabilities differ from those of the trained network by at most {atol:g}, in {configurations}
configurations of ONNX Runtime (optimization levels, batch sizes, threads, providers) and ONNX's reference evaluator. A
label may differ only where the network's two highest logits are within {margin:g} of each other.

| file | SHA-256 |
|---|---|
| ONNX file | `{model_sha256}` |
| trained weights | `{weights_sha256}` |
| golden sample | `{golden_sha256}` |
| certificate, without this hash | `{sha256}` |

`lockstep verify` checks these hashes, and replays the golden sample on your machine.

## Recipe

{recipe}

## How to rebuild it

In a clone of the project, at the commit whose `dvc.lock` has these hashes: `make setup`, then `dvc repro --force`. With
{arithmetic} arithmetic the same bytes are promised {promise}.

| recorded | value |
|---|---|
{environment}

## Limits

- It was trained and measured on images of `{dataset}` only. Images of another kind, of a class that it does not know,
  or of nothing at all get one of its classes too, often with a high probability.
- Its probabilities are calibrated on images like those of the test split, and not on others.
- Whether it treats images of different people or groups of people differently was not measured.
"""
PORTABLE_PROMISE = "on every x86-64 CPU with AVX2, under Linux"
NATIVE_PROMISE = "on the same model of {device} only"


def make_card(certificate: dict[str, Any], evaluation: dict[str, Any], header: WeightsHeader, info: SplitsInfo) -> str:
    """The text of the card, in Markdown. It has no date and no host, so that equal runs give equal bytes."""
    environment = dict(certificate["environment"])
    libraries = environment.pop("libraries", {})
    arithmetic = str(environment.get("arithmetic", "native"))
    rows = {**environment, **libraries}
    return TEMPLATE.format(
        **certificate["quality"],
        **{key: evaluation[key] for key in ("loss", "calibration_error")},
        **{key: certificate["parity"][key] for key in ("atol", "margin", "configurations")},
        **{key: certificate[key] for key in ("model_sha256", "weights_sha256", "golden_sha256", "sha256")},
        splits_sha256=certificate["dataset"]["splits_sha256"],
        dataset=info.dataset,
        origin=info.origin,
        classes=", ".join(info.classes),
        class_count=len(info.classes),
        channels=info.channels,
        size=info.size,
        architecture=header.architecture,
        preparation=describe_preparation(info),
        splits="\n".join(f"| {name} | {count:,} |" for name, count in info.counts.items()),
        recipe=", ".join(f"`{name}` {value}" for name, value in header.params.items()),
        arithmetic=arithmetic,
        promise=PORTABLE_PROMISE if arithmetic == "portable" else NATIVE_PROMISE.format(**environment),
        environment="\n".join(f"| {name} | {value} |" for name, value in rows.items()),
    )
