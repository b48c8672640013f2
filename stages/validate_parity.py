"""Trained weights, the ONNX file and its quality in; the proof that the file is the network out, or a failure."""

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from pydantic import Field

from stages.core.command import echo, run_stage
from stages.core.device import prepare_device, read_environment
from stages.core.errors import StageError
from stages.core.files import write_csv, write_json
from stages.core.params import Machine, Section, read_section
from stages.core.splits import read_images, read_labels, read_splits_info
from stages.network.models import Classifier
from stages.network.weights import check_weights_fit, read_weights
from stages.proof.certificate import CertifiedFiles, make_certificate, read_quality
from stages.proof.engines import LEVELS, REFERENCE, Configuration, run_onnx
from stages.proof.golden import read_golden
from stages.proof.onnx_file import read_model, wrong_declarations
from stages.proof.parity import Difference, Outputs, compare_outputs, parity_sample, thin_sample

COLUMNS = ("configuration", "engine", "level", "provider", "threads", "batch", "images", "logits_max", "logits_p999",
           "probabilities_max", "probabilities_p999", "flips", "flip_margin")  # fmt: skip


class ValidateParity(Section):
    atol: float = Field(gt=0)
    margin: float = Field(ge=0)
    sample: int = Field(ge=1000, le=1_000_000)
    reference_images: int = Field(ge=1, le=1000)
    batches: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    providers: list[str] = Field(min_length=1)
    seed: int = Field(ge=0)


def validate_parity(
    *,
    params: Path,
    weights: Path,
    splits: Path,
    model: Path,
    golden: Path,
    quality: Path,
    environment: Path,
    report: Path,
    measured: Path,
    certificate: Path,
) -> None:
    """Compare MODEL with WEIGHTS in every configuration; write CERTIFICATE only if parity and QUALITY pass.

    Where parity holds REPORT has bounds, which are equal on other CPUs; MEASURED has the errors on this one.
    """
    section = read_section(params, "validate_parity", ValidateParity)
    machine = read_section(params, "machine", Machine)
    certificate.unlink(missing_ok=True)
    files = CertifiedFiles(model, weights, golden, splits)
    hashes = files.hashes()
    network, header = read_weights(weights)
    about = read_splits_info(splits)
    check_weights_fit(weights, header, about)
    proto, replay = read_model(model), read_golden(golden, header)
    prepare_device(machine.model_copy(update={"device": "cpu"}))
    test, labels = read_images(splits, "test"), read_labels(splits, "test")
    pictures = {"test": test, "sample": parity_sample(test, section.sample, section.seed)}
    pictures["few"] = thin_sample(pictures["sample"], section.reference_images)
    ours = {name: run_torch(network, images) for name, images in pictures.items()}
    rows: list[tuple[Configuration, int, Difference]] = []
    reasons = wrong_declarations(proto, header, weights)
    for configuration in [] if reasons else configurations(section, machine.threads):
        try:
            theirs = run_onnx(proto, configuration, pictures[configuration.images])
        except Exception as error:  # ONNX Runtime's errors have no base class of their own
            reasons.append(f"{configuration}: cannot be run: {' '.join(str(error).split())}")
            break
        difference = compare_outputs(ours[configuration.images], theirs)
        rows.append((configuration, len(pictures[configuration.images]), difference))
        reasons += [f"{configuration}: {reason}" for reason in difference.reasons(section.atol, section.margin)]
    if not reasons:
        answer = run_onnx(proto, Configuration("golden"), replay.images)
        reasons += replay.differences(answer, header.classes, section.atol)
    accuracy = round(accuracy_of(ours["test"], labels), 6)
    bounds = {"configurations": len(rows), "images": len(test), "atol": section.atol, "margin": section.margin}
    write_csv(measured, COLUMNS, (row(*each) for each in rows))
    write_json(report, {"same": not reasons, **bounds, "accuracy": accuracy, "reasons": reasons})
    if reasons:
        more = f" (and {len(reasons) - 1} more in {report})" if len(reasons) > 1 else ""
        raise StageError(f"{model} is not the network of {weights}: {reasons[0]}{more}")
    proven, trained_on = read_quality(quality, weights), read_environment(environment)
    if files.hashes() != hashes:
        raise StageError(f"{model}, {weights}, {golden} or {splits} changed while they were compared: run it again")
    write_json(certificate, make_certificate(hashes, about.dataset, about.origin, proven, bounds, trained_on))
    worst = max(difference.logits_max for _, _, difference in rows)
    flips = sum(difference.flips for _, _, difference in rows)
    echo(
        f"{model} is the network: {len(rows)} configurations, logits within {worst:.2g} here, {flips} flipped labels; "
        f"certified in {certificate}"
    )


def configurations(section: ValidateParity, threads: int) -> Iterator[Configuration]:
    """All that is tried: every level on the whole test split, every batch size and thread count on the sample."""
    available = onnxruntime.get_available_providers()
    providers = [provider for provider in section.providers if provider in available]
    if not providers:
        raise StageError(
            f"validate_parity.providers: none of {section.providers} is available here; there are {available}"
        )
    for provider in providers:
        for level in LEVELS:
            yield Configuration("test", level=level, provider=provider, threads=threads)
        for batch in section.batches:
            for number in sorted({1, max(2, threads)}):
                yield Configuration("sample", provider=provider, threads=number, batch=batch)
    yield Configuration("few", engine=REFERENCE, level="none", provider="none", batch=section.reference_images)


@torch.no_grad()
def run_torch(network: Classifier, images: NDArray[np.uint8]) -> Outputs:
    logits = torch.cat([network(batch) for batch in torch.from_numpy(images).split(1000)])
    return Outputs(logits.numpy(), logits.softmax(1).numpy())


def accuracy_of(answer: Outputs, labels: NDArray[np.int64]) -> float:
    return float((answer.logits.argmax(axis=1) == labels).mean())


def row(configuration: Configuration, images: int, difference: Difference) -> list[Any]:
    known = {"configuration": str(configuration), **asdict(configuration), **asdict(difference), "images": images}
    return [number(known[name]) if isinstance(known[name], float) else known[name] for name in COLUMNS]


def number(value: float, digits: int = 3) -> float | None:
    """Short; None for what JSON has no number for."""
    return float(f"{value:.{digits}g}") if np.isfinite(value) else None


if __name__ == "__main__":
    run_stage(validate_parity)
