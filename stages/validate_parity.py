"""Trained weights and the ONNX file in; the proof that the file is the network out. Then the gate."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator
from pydantic import Field

from stages.common.command import run, say
from stages.common.device import prepare
from stages.common.models import Classifier
from stages.common.onnx_file import INPUT, IR_VERSION, LOGITS, PROBABILITIES, metadata, read_model
from stages.common.params import Machine, Section, read_section
from stages.common.parity import Answer, Difference, compare, sample
from stages.common.problem import Problem
from stages.common.splits import read_about, read_images, read_labels
from stages.common.weights import Header, check_fits, read_weights
from stages.common.whole import write_csv, write_json

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")
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


@dataclass(frozen=True)
class Configuration:
    """One way to run the file. Batch 0: all images at once."""

    images: str  # test or sample
    engine: str = "onnxruntime"
    level: str = "ORT_ENABLE_ALL"
    provider: str = "CPUExecutionProvider"
    threads: int = 1
    batch: int = 1000

    def __str__(self) -> str:
        if self.engine != "onnxruntime":
            return self.engine
        level = self.level.removeprefix("ORT_").removeprefix("ENABLE_").replace("DISABLE_ALL", "NONE").lower()
        provider = self.provider.removesuffix("ExecutionProvider")
        return f"{provider} {level}, {self.images}, t{self.threads} b{self.batch}"  # short: it labels a plot


def validate_parity(
    *, params: Path, weights: Path, splits: Path, model: Path, golden: Path, report: Path, configurations: Path
) -> None:
    """Hold MODEL against WEIGHTS in every way that it may be run; fails, after all is written, if any differs."""
    section = read_section(params, "validate_parity", ValidateParity)
    machine = read_section(params, "machine", Machine)
    about = read_about(splits)
    network, header = read_weights(weights)
    check_fits(weights, header, about)
    proto = read_model(model)
    prepare(machine.model_copy(update={"device": "cpu"}))
    reasons = wrong_declarations(proto, header, weights)
    rows: list[tuple[Configuration, int, Difference]] = []
    test, labels = read_images(splits, "test"), read_labels(splits, "test")
    accuracy = {"network": float("nan"), "file": float("nan")}
    if not reasons:
        pictures = {"test": test, "sample": sample(test, section.sample, section.seed)}
        ours = {name: eager(network, images) for name, images in pictures.items()}
        pictures["reference"], ours["reference"] = reference_sample(pictures["sample"], ours["sample"], section)
        for configuration in ways(section, machine.threads):
            try:
                theirs = replies(proto, configuration, pictures[configuration.images])
            except Exception as error:  # ONNX Runtime's errors have no base class of their own
                reasons.append(f"{configuration}: cannot be run: {' '.join(str(error).split())}")
                break
            difference = compare(ours[configuration.images], theirs)
            rows.append((configuration, len(pictures[configuration.images]), difference))
            reasons += [f"{configuration}: {reason}" for reason in difference.reasons(section.atol, section.margin)]
            if configuration.images == "test":
                accuracy["file"] = float((theirs.logits.argmax(axis=1) == labels).mean())
        accuracy["network"] = float((ours["test"].logits.argmax(axis=1) == labels).mean())
        if not reasons:
            reasons += golden_differences(proto, golden, header, section.atol)
    write_csv(configurations, COLUMNS, (row(*each) for each in rows))
    write_json(report, summary(rows, accuracy, reasons))
    if reasons:
        more = f" (and {len(reasons) - 1} more in {report})" if len(reasons) > 1 else ""
        raise Problem(f"{model} is not the network of {weights}: {reasons[0]}{more}")
    worst = max(difference.logits_max for _, _, difference in rows)
    say(f"{model} is the network: {len(rows)} configurations, logits within {worst:.2g}, no label decided otherwise")


def wrong_declarations(proto: onnx.ModelProto, header: Header, weights: Path) -> list[str]:
    """What the file says of itself, against what it must say."""
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return [f"ONNX's checker refuses it: {' '.join(str(error).split())}"]
    image, classes = [header.channels, header.size, header.size], [len(header.classes)]
    wanted = {INPUT: ("UINT8", image), LOGITS: ("FLOAT", classes), PROBABILITIES: ("FLOAT", classes)}
    found = {value.name: value.type.tensor_type for value in (*proto.graph.input, *proto.graph.output)}
    wrong = [] if list(found) == list(wanted) else [f"inputs and outputs {list(found)} where {list(wanted)} should be"]
    for name in wanted.keys() & found.keys():
        dtype = onnx.TensorProto.DataType.Name(found[name].elem_type)
        first, *rest = found[name].shape.dim or [onnx.TensorShapeProto.Dimension()]
        if not first.dim_param:
            wrong.append(f"the batch axis of {name} is not symbolic")
        if (dtype, [dim.dim_value for dim in rest]) != wanted[name]:
            wrong.append(f"{name} is {dtype} {[dim.dim_value for dim in rest]} where {wanted[name]} should be")
    opsets = {entry.domain: entry.version for entry in proto.opset_import}
    if set(opsets) != {""} or IR_VERSION.get(opsets[""]) != proto.ir_version:
        return [*wrong, f"operator sets {opsets} with IR version {proto.ir_version}: not one that export_onnx writes"]
    properties = {entry.key: entry.value for entry in proto.metadata_props}
    for key, value in metadata(header, weights, opsets[""]).items():
        if properties.get(key) != value:
            wrong.append(f"its metadata {key} is {properties.get(key)!r} where {value!r} should be")
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in proto.graph.initializer):
        wrong.append("it keeps data in another file")
    return wrong


def ways(section: ValidateParity, threads: int) -> Iterator[Configuration]:
    """All that is tried: every level on the whole test split, every batch size and thread count on the sample."""
    available = onnxruntime.get_available_providers()
    providers = [provider for provider in section.providers if provider in available]
    if not providers:
        raise Problem(
            f"validate_parity.providers: none of {section.providers} is available here; there are {available}"
        )
    for provider in providers:
        for level in LEVELS:
            yield Configuration("test", level=level, provider=provider, threads=threads)
        for batch in section.batches:
            for number in sorted({1, max(2, threads)}):
                yield Configuration("sample", provider=provider, threads=number, batch=batch)
    yield Configuration(
        "reference", engine="reference evaluator", level="none", provider="none", batch=section.reference_images
    )


@torch.no_grad()
def eager(network: Classifier, images: NDArray[np.uint8]) -> Answer:
    logits = torch.cat([network(batch) for batch in torch.from_numpy(images).split(1000)])
    return Answer(logits.numpy(), logits.softmax(1).numpy())


def reference_sample(
    images: NDArray[np.uint8], answer: Answer, section: ValidateParity
) -> tuple[NDArray[np.uint8], Answer]:
    """A few of the sample's images, edge images among them, for ONNX's own slow evaluator."""
    some = np.linspace(0, len(images) - 1, section.reference_images).astype(int)
    return images[some], Answer(answer.logits[some], answer.probabilities[some])


def replies(proto: onnx.ModelProto, configuration: Configuration, images: NDArray[np.uint8]) -> Answer:
    """The file's answers, run as the configuration says."""
    if configuration.engine == "reference evaluator":
        return Answer(*ReferenceEvaluator(proto).run([LOGITS, PROBABILITIES], {INPUT: images}))
    session = open_session(proto, configuration)
    step = configuration.batch
    answers = [
        session.run([LOGITS, PROBABILITIES], {INPUT: images[start : start + step]})
        for start in range(0, len(images), step)
    ]
    return Answer(*(np.concatenate(part) for part in zip(*answers, strict=True)))


def open_session(proto: onnx.ModelProto, configuration: Configuration) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, configuration.level)
    options.intra_op_num_threads = configuration.threads
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=[configuration.provider])


def golden_differences(proto: onnx.ModelProto, golden: Path, header: Header, atol: float) -> list[str]:
    """What a consumer would find that replays the golden sample."""
    try:
        sample = json.loads(golden.read_text(encoding="utf-8"))
        shape, tolerance, cases = sample["image_shape"], sample["tolerance"], sample["cases"]
        if shape != [header.channels, header.size, header.size]:
            raise ValueError(f"images of shape {shape}")
        images = np.array([case["image"] for case in cases], np.uint8).reshape(len(cases), *shape)
        answer = replies(proto, Configuration("golden"), images)
        wanted = Answer(*(np.array([case[key] for case in cases], np.float32) for key in (LOGITS, PROBABILITIES)))
        difference = compare(wanted, answer)
        labels = [header.classes[label] for label in answer.logits.argmax(axis=1)]
    except FileNotFoundError:
        raise Problem(f"{golden}: missing; run `dvc repro export_onnx`") from None
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise Problem(f"{golden}: not a golden sample ({error}); run `dvc repro -f export_onnx`") from None
    wrong = difference.reasons(min(tolerance, atol), 0.0)
    if labels != [case["predicted"] for case in cases]:
        wrong.append("other classes than it says")
    return [f"golden sample: {reason}" for reason in wrong]


def row(configuration: Configuration, images: int, difference: Difference) -> list[Any]:
    known = {"configuration": str(configuration), **asdict(configuration), **asdict(difference), "images": images}
    return [float(f"{known[name]:.3g}") if isinstance(known[name], float) else known[name] for name in COLUMNS]


def summary(
    rows: list[tuple[Configuration, int, Difference]], accuracy: dict[str, float], reasons: list[str]
) -> dict[str, Any]:
    differences = [difference for _, _, difference in rows]
    worst = {
        name: float(f"{max((getattr(each, name) for each in differences), default=float('nan')):.3g}")
        for name in ("logits_max", "logits_p999", "probabilities_max", "probabilities_p999", "flip_margin")
    }
    return {
        "same": not reasons,
        "configurations": len(rows),
        "flips": sum(each.flips for each in differences),
        **{name: number if np.isfinite(number) else None for name, number in worst.items()},
        **{f"accuracy_{name}": round(number, 6) if np.isfinite(number) else None for name, number in accuracy.items()},
        "reasons": reasons,
    }


if __name__ == "__main__":
    run(validate_parity)
