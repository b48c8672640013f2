"""Compares the ONNX file with the trained network. Writes a report, and a certificate if the outputs match."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import onnx
import onnxruntime
from cyclopts import Parameter
from numpy.typing import NDArray
from pydantic import Field

from stages.core.command import echo, run_stage
from stages.core.device import prepare_device, read_environment
from stages.core.errors import StageError
from stages.core.files import atomic_write, write_csv, write_json
from stages.core.params import Machine, Section, read_section
from stages.core.splits import read_images, read_labels, read_splits_info
from stages.network.weights import check_weights_fit, read_weights
from stages.proof.card import make_card
from stages.proof.certificate import describe_misses, hash_files, make_certificate, read_quality, refuse_certificate
from stages.proof.engines import OPTIMIZATION_LEVELS, REFERENCE_EVALUATOR, InferenceConfig, run_onnx, run_torch
from stages.proof.golden import read_golden
from stages.proof.onnx_file import find_declaration_errors, read_model
from stages.proof.parity import Difference, Outputs, build_sample, compare_outputs, thin_sample

COLUMNS = ("configuration", "engine", "level", "provider", "threads", "batch", "images", "logits_max", "logits_p999",
           "probabilities_max", "probabilities_p999", "flips", "flip_margin")  # fmt: skip
Comparison = tuple[InferenceConfig, Difference]


class ValidateParity(Section):
    renamed: ClassVar[dict[str, str]] = {"margin": "flip_margin", "sample": "sample_images", "batches": "batch_sizes"}

    atol: float = Field(gt=0)
    flip_margin: float = Field(ge=0)
    sample_images: int = Field(ge=1000, le=1_000_000)
    reference_images: int = Field(ge=1, le=1000)
    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    providers: list[str] = Field(min_length=1)
    seed: int = Field(ge=0)


def validate_parity(
    *,
    params: Annotated[Path, Parameter(help="params.yaml")],
    weights: Annotated[Path, Parameter(help="trained weights")],
    splits: Annotated[Path, Parameter(help="folder of splits")],
    model: Annotated[Path, Parameter(help="ONNX file")],
    golden: Annotated[Path, Parameter(help="golden sample of the ONNX file")],
    evaluation: Annotated[Path, Parameter(help="report of evaluate on these weights")],
    environment: Annotated[Path, Parameter(help="record of the machine that trained")],
    report: Annotated[Path, Parameter(help="JSON to write the result to")],
    measurements: Annotated[Path, Parameter(help="CSV to write the errors of each configuration on this CPU to")],
    certificate: Annotated[Path, Parameter(help="JSON to write if the outputs match and evaluate's gate passed")],
    card: Annotated[Path, Parameter(help="model card to write beside the certificate, Markdown")],
) -> None:
    """Compare the ONNX file with the trained network in every configuration, and certify it if the outputs match.

    The measured errors, whose last digits differ between CPUs, stand in the measurements and not in the report.
    """
    section = read_section(params, "validate_parity", ValidateParity)
    machine = read_section(params, "machine", Machine)
    for path in (certificate, card):
        path.unlink(missing_ok=True)
    files = {"model": model, "weights": weights, "golden": golden, "splits": splits}
    hashes = hash_files(files)
    network, header = read_weights(weights)
    info = read_splits_info(splits)
    check_weights_fit(weights, header, info)
    proto, golden_sample = read_model(model), read_golden(golden, header)
    prepare_device(machine.model_copy(update={"device": "cpu"}))
    test = read_images(splits, "test")
    sample = build_sample(test, section.sample_images, section.seed)
    images = {"test": test, "sample": sample, "reference": thin_sample(sample, section.reference_images)}
    expected = {name: run_torch(network, images[name]) for name in images}
    comparisons: list[Comparison] = []
    reasons = find_declaration_errors(proto, header, info, weights)
    if not reasons:
        reasons, comparisons = compare_configurations(proto, images, expected, section, machine.threads)
    if not reasons:
        outputs = run_onnx(proto, InferenceConfig("golden"), golden_sample.images)
        reasons = golden_sample.mismatches(outputs, header.classes, section.atol)
    accuracy = float((expected["test"].logits.argmax(axis=1) == read_labels(splits, "test")).mean())
    parity = {"configurations": len(comparisons), "images": len(test),
              "atol": section.atol, "margin": section.flip_margin}  # fmt: skip
    write_csv(measurements, COLUMNS, itertools.starmap(table_row, comparisons))
    write_json(report, {"same": not reasons, **parity, "accuracy": round(accuracy, 6), "reasons": reasons})
    if reasons:
        others = f" (and {len(reasons) - 1} more in {report})" if len(reasons) > 1 else ""
        raise StageError(f"{model} does not match {weights}: {reasons[0]}{others}")
    quality, trained_on = read_quality(evaluation, weights), read_environment(environment)
    if hash_files(files) != hashes:
        raise StageError(f"{model}, {weights}, {golden} or {splits} changed during the comparison: run it again")
    if misses := describe_misses(quality):  # evaluate.gate says that it is only recorded, as in an experiment
        write_json(certificate, refuse_certificate(misses))
        with atomic_write(card) as tmp:
            tmp.write_text(f"# Not certified\n\nThe model is not good enough: {misses}.\n", encoding="utf-8")
        echo(f"{model} matches {weights}, and is not certified: {misses}")
        return
    dataset = {"name": info.dataset, "origin": info.origin}
    content = make_certificate(hashes, dataset, quality, parity, trained_on)
    with atomic_write(card) as tmp:
        evaluated = json.loads(evaluation.read_text(encoding="utf-8"))
        tmp.write_text(make_card(content, evaluated, header, info), encoding="utf-8")
    write_json(certificate, content)
    largest_error = max(difference.logits_max for _, difference in comparisons)
    measured = f"logits within {largest_error:.2g} in {len(comparisons)} configurations"
    echo(f"{model} matches {weights}: {measured}; certified in {certificate}")


def compare_configurations(
    proto: onnx.ModelProto,
    images: dict[str, NDArray[np.uint8]],
    expected: dict[str, Outputs],
    section: ValidateParity,
    threads: int,
) -> tuple[list[str], list[Comparison]]:
    """Why outputs do not match, and all comparisons; ends at the first configuration that cannot be run."""
    reasons: list[str] = []
    comparisons: list[Comparison] = []
    for configuration in list_configurations(section, threads):
        name = configuration.image_set
        try:
            outputs = run_onnx(proto, configuration, images[name])
        except Exception as error:  # ONNX Runtime's errors share no other base class
            return [*reasons, f"{configuration}: cannot be run: {' '.join(str(error).split())}"], comparisons
        difference = compare_outputs(expected[name], outputs)
        comparisons.append((configuration, difference))
        reasons += [f"{configuration}: {reason}" for reason in difference.mismatches(section.atol, section.flip_margin)]
    return reasons, comparisons


def list_configurations(section: ValidateParity, threads: int) -> Iterator[InferenceConfig]:
    """Every optimization level on the test split; every batch size and number of threads on the sample."""
    available = onnxruntime.get_available_providers()
    providers = [provider for provider in section.providers if provider in available]
    if not providers:
        raise StageError(
            f"validate_parity.providers: none of {section.providers} is available; name one of {available}"
        )
    for provider in providers:
        for level in OPTIMIZATION_LEVELS:
            yield InferenceConfig("test", level=level, provider=provider, threads=threads)
        for batch in section.batch_sizes:
            for thread_count in sorted({1, max(2, threads)}):
                yield InferenceConfig("sample", provider=provider, threads=thread_count, batch=batch)
    yield InferenceConfig("reference", REFERENCE_EVALUATOR, "none", provider="none", batch=section.reference_images)


def table_row(configuration: InferenceConfig, difference: Difference) -> list[Any]:
    named = {"configuration": str(configuration), "images": difference.image_count}
    values = named | asdict(configuration) | asdict(difference)
    return [round_float(values[column]) for column in COLUMNS]


def round_float(value: Any) -> Any:
    """Round a float to three significant digits, or drop it if it is not finite; keep other values."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.3g}") if np.isfinite(value) else None


if __name__ == "__main__":
    run_stage(validate_parity)
