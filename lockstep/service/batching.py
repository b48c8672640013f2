"""Pixels of many requests -> answers, computed together: a queue with a bound, and a worker that empties it."""

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from lockstep.classifier import Classifier, Outputs
from lockstep.preparation import Pixels
from lockstep.service.metrics import Counts

HERE = 0.002  # seconds; a batch that is computed sooner is not worth another thread, which costs 0.7 ms


class Busy(Exception):
    """More waits than may."""


@dataclass(frozen=True)
class Job:
    classifier: Classifier
    pixels: Pixels
    answer: "asyncio.Future[Outputs]"


class Batcher:
    """At most `limit` images are inside; a batch holds `most`, or the images of one request.

    A batch is begun when the last one has ended. It waits for requests that are inside and not yet prepared, for
    `seconds` at most: a lone request never waits.
    """

    def __init__(self, counts: Counts, most: int, limit: int, seconds: float) -> None:
        self.counts, self.most, self.limit, self.seconds = counts, most, limit, seconds
        self.inside = 0  # images, from their request's arrival to its answer
        self.coming = 0  # requests whose pictures are being prepared
        self.jobs: deque[Job] = deque()
        self.changed = asyncio.Event()
        self.pace = math.inf  # seconds an image, in the last batch

    @contextmanager
    def admitted(self, images: int) -> Iterator[None]:
        if self.inside + images > self.limit:
            raise Busy
        self.inside += images
        try:
            yield
        finally:
            self.inside -= images

    @contextmanager
    def preparing(self) -> Iterator[None]:
        self.coming += 1
        try:
            yield
        finally:
            self.coming -= 1
            self.changed.set()

    def submit(self, classifier: Classifier, pixels: Pixels) -> "asyncio.Future[Outputs]":
        job = Job(classifier, pixels, asyncio.get_running_loop().create_future())
        self.jobs.append(job)
        self.changed.set()
        return job.answer

    async def work(self) -> None:
        """For ever."""
        loop = asyncio.get_running_loop()
        with ThreadPoolExecutor(1, "network") as thread:
            while True:
                await self.gather()
                jobs = self.take()
                if not jobs:
                    continue
                pixels = np.concatenate([job.pixels for job in jobs]) if len(jobs) > 1 else jobs[0].pixels
                self.counts.batch(len(pixels))
                try:
                    if len(pixels) * self.pace <= HERE:
                        whole = self.run(jobs[0].classifier, pixels)
                    else:
                        whole = await loop.run_in_executor(thread, self.run, jobs[0].classifier, pixels)
                except Exception as error:
                    for job in jobs:
                        if not job.answer.done():
                            job.answer.set_exception(error)
                    continue
                start = 0
                for job in jobs:
                    end = start + len(job.pixels)
                    if not job.answer.done():  # its request has not given up
                        job.answer.set_result(Outputs(whole.logits[start:end], whole.probabilities[start:end]))
                    start = end

    def run(self, classifier: Classifier, pixels: Pixels) -> Outputs:
        started = time.perf_counter()
        whole = classifier.run(pixels)
        self.pace = (time.perf_counter() - started) / len(pixels)  # without the way to another thread and back
        return whole

    async def gather(self) -> None:
        """Until there is something, and then for what is about to come."""
        while not self.jobs:
            self.changed.clear()
            await self.changed.wait()
        if not self.seconds:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.seconds):
                while self.coming and sum(len(job.pixels) for job in self.jobs) < self.most:
                    self.changed.clear()
                    await self.changed.wait()

    def take(self) -> list[Job]:
        """The next jobs that fit into a batch, all of one model: it may change between two requests."""
        jobs: list[Job] = []
        images = 0
        while self.jobs and (not jobs or (self.jobs[0].classifier is jobs[0].classifier)):
            if jobs and images + len(self.jobs[0].pixels) > self.most:
                break
            job = self.jobs.popleft()
            if not job.answer.done():
                jobs.append(job)
                images += len(job.pixels)
        return jobs
