"""Classifies images of any kind with an ONNX file of the pipeline."""

import hashlib
import io
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from lockstep.certificate import Certificate, check_metadata
from lockstep.decoding import MAX_PIXELS, open_image
from lockstep.errors import ImageError, LockstepError
from lockstep.golden import GoldenReplay, replay_golden_sample
from lockstep.metadata import ModelMetadata, read_metadata
from lockstep.preparation import Pixels, prepare_image
from lockstep.proof import ProofFiles, read_file
from lockstep.rejection import BELOW, RejectRule, read_reject_rule

ImageLike = str | Path | bytes | bytearray | io.IOBase | Image.Image | NDArray[Any]
BATCH_SIZE = 64


@dataclass(frozen=True)
class Prediction:
    label: str | None  # None: rejected, an image of none of the classes
    probability: float  # of the most probable class
    probabilities: dict[str, float]  # of all classes, in the order of the network's outputs

    def top(self, count: int) -> list[tuple[str, float]]:
        """The `count` most probable classes, the most probable first."""
        return sorted(self.probabilities.items(), key=lambda pair: -pair[1])[:count]


class Outputs(NamedTuple):
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float32]


class Classifier:
    """A loaded model.onnx. Threads may share it.

    Args:
        path: the ONNX file; unless given, data/model/model.onnx if there is one, else the published model.
        threads: CPU threads of the network. One is best for single images and beside other work, None for large
            batches: it uses all cores.
        batch_size: images that the network is given at once, at most.
        max_pixels: a larger image is refused before it is decoded.
        verify: load the model only if its certificate names this file, and its golden sample is reproduced. True
            expects certificate.json and golden.json beside the model, ProofFiles name other paths, False loads any
            model. The results are the attributes `certificate` and `replay`.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        threads: int | None = 1,
        batch_size: int = BATCH_SIZE,
        max_pixels: int = MAX_PIXELS,
        verify: bool | ProofFiles = True,
    ) -> None:
        if min(batch_size, max_pixels, 1 if threads is None else threads) < 1:
            raise ValueError("threads, batch_size and max_pixels must be at least 1")
        path = path or default_model()
        self.path = str(path)
        self.batch_size, self.max_pixels = batch_size, max_pixels
        data = read_file(Path(path), "`dvc repro` or `dvc pull` makes data/model/model.onnx")
        proof_files = ProofFiles.beside_model(Path(path)) if verify is True else verify
        contents = proof_files.read_and_check(data, self.path) if proof_files else None
        self.sha256 = hashlib.sha256(data).hexdigest()
        self._session = make_session(data, threads or available_cores(), self.path)
        self.metadata: ModelMetadata = read_metadata(read_properties(self._session, self.path), self.path)
        self.reject_rule: RejectRule | None = read_reject_rule(self.metadata.properties, self.path)
        check_inputs_and_outputs(self._session, self.metadata, self.path)
        self.certificate: Certificate | None = None
        self.replay: GoldenReplay | None = None
        if contents:
            check_metadata(contents.certificate, self.metadata, self.path)
            self.certificate, self.replay = contents.certificate, replay_golden_sample(contents.golden, self)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.metadata.classes

    @overload
    def predict(
        self, images: str | Path | bytes | bytearray | io.IOBase | Image.Image, *, reject: bool = False
    ) -> Prediction: ...

    @overload
    def predict(self, images: list[ImageLike] | tuple[ImageLike, ...], *, reject: bool = False) -> list[Prediction]: ...

    @overload
    def predict(
        self, images: NDArray[Any] | Iterable[ImageLike], *, reject: bool = False
    ) -> Prediction | list[Prediction]: ...

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, reject: bool = False
    ) -> Prediction | list[Prediction]:
        """Classify one image, or several.

        Args:
            images: a path, an open file, bytes, a PIL image or an array; or an iterable of these, which gives a list.
                An array of the network's own size is its input without preparation: of a network that takes 28 x 28,
                [28, 28] is one image and [n, 28, 28] are n, also if n is 1. Other arrays are [height, width] with 1, 3
                or 4 channels last, and are prepared as files are. Floating-point pixels must be within 0..1.
            reject: give the label None to an image that looks like none of the classes, by the rule in the metadata.
        """
        if isinstance(images, np.ndarray):
            shape = self.metadata.shape
            is_grey_batch = shape[0] == 1 and images.ndim == 3 and images.shape[1:] == shape[1:]
            if images.shape[1:] == shape or is_grey_batch:
                return self.predict_prepared(to_uint8(images).reshape(-1, *shape), reject=reject)
            if images.ndim == 4:
                images = list(images)
        if isinstance(images, (str, Path, bytes, bytearray, Image.Image, np.ndarray, io.IOBase)):
            return self.predict_prepared(self._prepare_batch([images]), reject=reject)[0]
        return self.predict_prepared(self._prepare_batch(list(images)), reject=reject)

    def prepare(self, image: ImageLike) -> Pixels:
        """The network's input for one image: uint8[channels, height, width]."""
        if isinstance(image, np.ndarray):
            array, shape = to_uint8(image), self.metadata.shape
            if array.shape == shape or (shape[0] == 1 and array.shape == shape[1:]):
                return array.reshape(shape)
            image = array_to_image(array)
        return prepare_image(open_image(image, self.max_pixels), self.metadata)

    def run(self, pixels: Pixels) -> Outputs:
        """The network's outputs for prepared inputs: uint8[n, channels, height, width]."""
        batches = [
            self._session.run(Outputs._fields, {"image": pixels[start : start + self.batch_size]})
            for start in range(0, len(pixels), self.batch_size)
        ]
        if len(batches) == 1:
            return Outputs(*batches[0])
        if not batches:
            batches = [[np.empty((0, len(self.classes)), np.float32)] * 2]
        return Outputs(*(np.concatenate(arrays) for arrays in zip(*batches, strict=True)))

    def predict_prepared(self, pixels: Pixels, *, reject: bool = False) -> list[Prediction]:
        """Predictions for prepared inputs: uint8[n, channels, height, width]."""
        if pixels.dtype != np.uint8 or pixels.shape[1:] != self.metadata.shape:
            takes = ", ".join(map(str, ("n", *self.metadata.shape)))
            raise LockstepError(
                f"prepared inputs are uint8[{takes}] for {self.path}; these are {pixels.dtype}{list(pixels.shape)}"
            )
        if reject:
            self.require_reject_rule()
        return self.to_predictions(pixels, self.run(pixels).probabilities, reject=reject)

    def require_reject_rule(self) -> RejectRule:
        if not self.reject_rule:
            raise LockstepError(
                f"{self.path}: cannot reject images, since its metadata have no {BELOW}; export it again, with "
                "export_onnx.reject_fraction above 0"
            )
        return self.reject_rule

    def to_predictions(
        self, pixels: Pixels, probabilities: NDArray[np.float32], *, reject: bool = False
    ) -> list[Prediction]:
        """Predictions from the outputs for these inputs."""
        rejected = self.require_reject_rule().rejects(pixels, probabilities) if reject else np.zeros(len(pixels), bool)
        predictions = []
        for row, is_rejected in zip(probabilities, rejected, strict=True):
            best, values = int(row.argmax()), row.tolist()
            label = None if is_rejected else self.classes[best]
            predictions.append(Prediction(label, values[best], dict(zip(self.classes, values, strict=True))))
        return predictions

    def _prepare_batch(self, images: list[ImageLike]) -> Pixels:
        prepared = []
        for index, image in enumerate(images):
            try:
                prepared.append(self.prepare(image))
            except ImageError as error:
                name = image if isinstance(image, (str, Path)) else f"image {index}"
                raise ImageError(f"{name}: {error}") from None
        return np.stack(prepared) if prepared else np.empty((0, *self.metadata.shape), np.uint8)


def default_model() -> Path:
    """The model that the pipeline has made here, or the published one, which is installed with this package."""
    made_here = Path("data/model/model.onnx")
    return made_here if made_here.exists() else Path(__file__).parent / "published" / "model.onnx"


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def make_session(data: bytes, threads: int, name: str) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Threads that spin while they wait take a core from other work. With 2 threads on two shared cores and 5 ms between
    # the calls, 64 images cost 7.4 ms of CPU with spinning and 1.7 without, and 95 % of the calls ended within 5.5 and
    # 1.8 ms. The medians are equal; for one image alone it is 0.02 ms longer without.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base class
        reason = " ".join(str(error).split())[:200]
        raise LockstepError(f"{name}: ONNX Runtime {onnxruntime.__version__} does not load it: {reason}") from None


def read_properties(session: onnxruntime.InferenceSession, name: str) -> dict[str, str]:
    """The metadata_props of the file."""
    try:
        properties: dict[str, str] = session.get_modelmeta().custom_metadata_map
    except UnicodeDecodeError as error:
        raise LockstepError(f"{name}: its metadata are not UTF-8 ({error.reason}); the file is damaged") from None
    return properties


def check_inputs_and_outputs(session: onnxruntime.InferenceSession, metadata: ModelMetadata, name: str) -> None:
    """LockstepError unless the graph's inputs and outputs are those that the metadata declare."""
    inputs = {value.name: (value.type, value.shape[1:]) for value in session.get_inputs()}
    outputs = {value.name: (value.type, value.shape[1:]) for value in session.get_outputs()}
    expected_output = ("tensor(float)", [len(metadata.classes)])
    if inputs != {"image": ("tensor(uint8)", list(metadata.shape))} or outputs != dict.fromkeys(
        Outputs._fields, expected_output
    ):
        raise LockstepError(f"{name}: its inputs {inputs} and outputs {outputs} are not those in its metadata")


def to_uint8(array: NDArray[Any]) -> Pixels:
    if array.dtype == np.uint8:
        return array
    if array.dtype.kind not in "biuf":
        raise ImageError(f"an array of {array.dtype} holds no pixels")
    if not array.size:
        return array.astype(np.uint8)
    maximum = 1 if array.dtype.kind in "bf" else 255
    if not (array.min() >= 0 and array.max() <= maximum):  # NaN fails too
        raise ImageError(f"its pixels are outside 0..{maximum}, the range of {array.dtype}")
    scaled: Pixels = np.rint(array * np.float32(255)).astype(np.uint8) if maximum == 1 else array.astype(np.uint8)
    return scaled


def array_to_image(array: Pixels) -> Image.Image:
    """Of uint8[height, width], or with 1, 3 (RGB) or 4 (RGBA) channels last."""
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.size == 0 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))):
        raise ImageError(f"an array of shape {array.shape} is not height x width with 1, 3 or 4 channels last")
    return Image.fromarray(array)
