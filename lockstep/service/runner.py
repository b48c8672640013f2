"""Runs the model on the images of requests: within a capacity that all share, and in a thread if it takes long."""

import asyncio
import io
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType

import numpy as np
from PIL import Image

from lockstep.classifier import Classifier, Outputs
from lockstep.decoding import FORMATS
from lockstep.errors import ImageError
from lockstep.preparation import Pixels
from lockstep.service.asgi import RequestError
from lockstep.service.metrics import Metrics
from lockstep.service.reloader import ModelReloader
from lockstep.service.request_body import ImageFile
from lockstep.service.settings import Settings

MAX_BLOCKING_SECONDS = 0.002  # shorter computations are not worth a thread: the switch costs 0.7 ms
MAX_BLOCKING_BYTES, MAX_BLOCKING_PIXELS = 65_536, 40_000  # of a picture that is prepared in a millisecond
BUSY = "too busy; try again in a second"


class Capacity:
    """An amount of bytes or images that all requests share while they are answered."""

    def __init__(self, limit: int, report: Callable[[int], None] = lambda _: None) -> None:
        self.limit, self.report, self.used = limit, report, 0

    def reservation(self) -> "Reservation":
        return Reservation(self)


class Reservation:
    """Called with an amount, reserves it until the end of its block, or answers with 503."""

    def __init__(self, capacity: Capacity) -> None:
        self.capacity, self.amount = capacity, 0

    def __enter__(self) -> "Reservation":
        return self

    def __call__(self, amount: int) -> None:
        if self.capacity.used + amount > self.capacity.limit:
            raise RequestError(503, BUSY)
        self.amount += amount
        self.add(amount)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.add(-self.amount)

    def add(self, amount: int) -> None:
        self.capacity.used += amount
        self.capacity.report(self.capacity.used)


class ModelRunner:
    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings = settings
        self.reloader = ModelReloader(settings, metrics)
        self.bytes = Capacity(16 * settings.max_bytes)
        self.images = Capacity(settings.max_concurrent_images, metrics.images_in_progress.set)
        self.executor = ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2), "lockstep")
        self.measured: Classifier | None = None  # the classifier that seconds_per_image was measured of
        self.seconds_per_image = math.inf

    def close(self) -> None:
        self.executor.shutdown(wait=False, cancel_futures=True)

    async def predict(self, classifier: Classifier, images: Pixels | list[ImageFile]) -> tuple[Pixels, Outputs]:
        """The network's inputs and outputs. Image files are decoded in a thread, one at a time; a small one at once."""
        if not isinstance(images, list) and self.is_short(classifier, len(images)):
            return images, self.run(classifier, images)
        try:
            async with asyncio.timeout(self.settings.answer_timeout):
                pixels = await self.prepare(classifier, images) if isinstance(images, list) else images
                return pixels, await self.compute(classifier, pixels)
        except TimeoutError:
            raise RequestError(503, BUSY) from None

    async def prepare(self, classifier: Classifier, files: list[ImageFile]) -> Pixels:
        loop, prepared = asyncio.get_running_loop(), []
        for index, file in enumerate(files):
            try:
                if len(files) == 1 and is_small(file.content):
                    await asyncio.sleep(0)  # other connections come first: else some starve
                    return classifier.prepare(file.content)[None]
                prepared.append(await loop.run_in_executor(self.executor, classifier.prepare, file.content))
            except ImageError as error:
                name = f" ({file.name:.200})" if file.name else ""
                raise RequestError(422, f"image {index}{name}: {error}") from None
        return np.stack(prepared)

    async def compute(self, classifier: Classifier, pixels: Pixels) -> Outputs:
        if self.is_short(classifier, len(pixels)):
            return self.run(classifier, pixels)
        return await asyncio.get_running_loop().run_in_executor(self.executor, self.run, classifier, pixels)

    def is_short(self, classifier: Classifier, images: int) -> bool:
        return self.measured is classifier and images * self.seconds_per_image <= MAX_BLOCKING_SECONDS

    def run(self, classifier: Classifier, pixels: Pixels) -> Outputs:
        started = time.perf_counter()
        outputs = classifier.run(pixels)
        seconds = (time.perf_counter() - started) / len(pixels)
        # One slow call, during which other processes had the core, does not send the next ones into threads.
        self.seconds_per_image = min(seconds, 2 * self.seconds_per_image) if self.measured is classifier else seconds
        self.measured = classifier
        return outputs


def is_small(content: bytes) -> bool:
    """By the header, since a small file can hold a large picture; and without compressed texts, as large as that."""
    if len(content) > MAX_BLOCKING_BYTES or any(chunk in content for chunk in (b"zTXt", b"iTXt", b"iCCP")):
        return False
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            return image.width * image.height <= MAX_BLOCKING_PIXELS
    except Exception:  # of many types; the decoder says what is wrong
        return False
