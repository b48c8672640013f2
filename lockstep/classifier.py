"""The library: an ONNX file of the pipeline, and pictures of any kind -> labels with their probabilities."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from lockstep.certificate import Certificate, check_metadata
from lockstep.decoding import PIXELS, open_picture
from lockstep.errors import ImageError, LockstepError
from lockstep.golden import Replay, replay
from lockstep.metadata import ModelMetadata, read_metadata
from lockstep.preparation import Pixels, prepare
from lockstep.proof import Proof, read_file

Picture = str | Path | bytes | Image.Image | NDArray[Any]
BATCH = 64


@dataclass(frozen=True)
class Prediction:
    label: str
    probability: float
    probabilities: dict[str, float]  # of all classes, in the network's order

    def top(self, count: int) -> list[tuple[str, float]]:
        """The likeliest classes, first the likeliest."""
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:count]


class Outputs(NamedTuple):
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class Classifier:
    """Of one model.onnx. May be used by many threads at once.

    tuned_for "latency" computes with one thread: the best for one picture, and beside other work. "throughput" takes
    all cores for large batches. `threads` says it by number. A picture of more than `pixels` pixels is refused.

    With proven, a model is loaded only if certificate.json beside it names it, and golden.json beside it is replayed;
    a Proof says where else the two lie. What was proven is then in `certificate` and `replay`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        tuned_for: Literal["latency", "throughput"] = "latency",
        threads: int | None = None,
        batch: int = BATCH,
        pixels: int = PIXELS,
        proven: bool | Proof = False,
    ) -> None:
        if tuned_for not in ("latency", "throughput"):
            raise ValueError(f"tuned_for is {tuned_for!r}: latency or throughput")
        if batch < 1 or (threads is not None and threads < 1):
            raise ValueError("batch and threads are at least 1")
        self.name = str(path)
        self.batch, self.pixels = batch, pixels
        data = read_file(Path(path), "`dvc repro` or `dvc pull` makes data/model/model.onnx")
        proof = Proof.next_to(Path(path)) if proven is True else proven
        evidence = proof.read(data, self.name) if proof else None
        self.sha256 = hashlib.sha256(data).hexdigest()
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self._session = session(data, threads or (1 if tuned_for == "latency" else cores), self.name)
        self.facts: ModelMetadata = read_metadata(self._session.get_modelmeta().custom_metadata_map, self.name)
        agree(self._session, self.facts, self.name)
        self.certificate: Certificate | None = None
        self.replay: Replay | None = None
        if evidence:
            check_metadata(evidence.certificate, self.facts, self.name)
            self.certificate, self.replay = evidence.certificate, replay(evidence.golden, self)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.facts.classes

    @overload
    def predict(self, images: str | Path | bytes | Image.Image) -> Prediction: ...

    @overload
    def predict(self, images: list[Picture] | tuple[Picture, ...]) -> list[Prediction]: ...

    @overload
    def predict(self, images: NDArray[Any] | Iterable[Picture]) -> Prediction | list[Prediction]: ...

    def predict(self, images: Picture | Iterable[Picture]) -> Prediction | list[Prediction]:
        """One picture: a path, a file's bytes, a PIL image, an array. Or many of them, of any kinds: a list.

        Arrays of the network's own size are taken as they are: uint8[28, 28] is one, uint8[n, 28, 28] are many, also
        where n is 1. All else is prepared as the file's metadata say. Floating point pixels lie in 0..1.
        """
        if not isinstance(images, (str, Path, bytes, Image.Image, np.ndarray)):
            return self.predictions(self.pixels_of(list(images)))
        if isinstance(images, np.ndarray) and (many := self.stack(images)) is not None:
            return self.predictions(many)
        try:
            return self.predictions(self.prepare(images)[None])[0]
        except ImageError as error:
            raise ImageError(f"{images if isinstance(images, (str, Path)) else 'the picture'} {error}") from None

    def prepare(self, picture: Picture) -> Pixels:
        """What the network sees of it: uint8[channels, height, width]."""
        if isinstance(picture, np.ndarray):
            array = eight_bits(picture)
            if array.shape == self.facts.shape or (self.facts.channels == 1 and array.shape == self.facts.shape[1:]):
                return array.reshape(self.facts.shape)
            picture = picture_of(array)
        return prepare(open_picture(picture, self.pixels), self.facts)

    def pixels_of(self, pictures: list[Picture]) -> Pixels:
        prepared = []
        for index, picture in enumerate(pictures):
            try:
                prepared.append(self.prepare(picture))
            except ImageError as error:
                name = f" ({picture})" if isinstance(picture, (str, Path)) else ""
                raise ImageError(f"picture {index}{name} {error}") from None
        return np.stack(prepared) if prepared else np.empty((0, *self.facts.shape), np.uint8)

    def stack(self, array: NDArray[Any]) -> Pixels | None:
        """Many images of the network's own size in one array; None if it is one picture."""
        shape = self.facts.shape
        plain = self.facts.channels == 1 and array.ndim == 3 and array.shape[1:] == shape[1:]
        if (array.ndim == 4 and array.shape[1:] == shape) or plain:
            return eight_bits(array).reshape(-1, *shape)
        if array.ndim == 4:
            return self.pixels_of(list(array))
        return None

    def run(self, pixels: Pixels) -> Outputs:
        """The network's outputs for prepared pixels: uint8[n, channels, height, width]."""
        parts = [
            self._session.run(["logits", "probabilities"], {"image": pixels[start : start + self.batch]})
            for start in range(0, len(pixels), self.batch)
        ]
        if len(parts) == 1:
            return Outputs(*parts[0])
        empty = [np.empty((0, len(self.classes)), np.float32)] * 2
        return Outputs(*(np.concatenate(part) for part in zip(*(parts or [empty]), strict=True)))

    def predictions(self, pixels: Pixels) -> list[Prediction]:
        return [self.named(row) for row in self.run(pixels).probabilities]

    def named(self, probabilities: NDArray[np.float32]) -> Prediction:
        best = int(probabilities.argmax())
        values = probabilities.tolist()
        return Prediction(self.classes[best], values[best], dict(zip(self.classes, values, strict=True)))


def session(data: bytes, threads: int, name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that spin while they wait take a core from other work. With 2 threads on two shared cores and 5 ms between
    # the calls, 64 images cost 7.4 ms of CPU with spinning and 1.7 without, and 95 % of the calls ended within 5.5 and
    # 1.8 ms. The medians are equal; for one image alone it is 0.02 ms longer without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        said = " ".join(str(error).split())[:200]
        raise LockstepError(f"{name}: ONNX Runtime {onnxruntime.__version__} does not load it: {said}") from None


def agree(session: onnxruntime.InferenceSession, facts: ModelMetadata, name: str) -> None:
    """What the file is has to be what it says of itself."""
    inputs = {value.name: (value.type, value.shape[1:]) for value in session.get_inputs()}
    outputs = {value.name: (value.type, value.shape[1:]) for value in session.get_outputs()}
    floats = ("tensor(float)", [len(facts.classes)])
    if inputs != {"image": ("tensor(uint8)", list(facts.shape))} or outputs != dict.fromkeys(Outputs._fields, floats):
        raise LockstepError(f"{name}: its inputs {inputs} and outputs {outputs} are not those that its metadata say")


def eight_bits(array: NDArray[Any]) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if not array.size or array.dtype.kind not in "biuf":
        raise ImageError(f"is an array of {array.dtype} {array.shape}, not of pixels")
    most = 1 if array.dtype.kind in "bf" else 255
    if not (array.min() >= 0 and array.max() <= most):  # not a number fails too
        raise ImageError(f"has pixels outside 0..{most}, which {array.dtype} ones lie in")
    scaled: Pixels = np.rint(array * np.float32(255)).astype(np.uint8) if most == 1 else array.astype(np.uint8)
    return scaled


def picture_of(array: Pixels) -> Image.Image:
    """Of an array: height x width, and perhaps grey, RGB or RGBA last."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(f"is an array of shape {array.shape}: height x width, with 1, 3 or 4 channels last")
    return Image.fromarray(array)
