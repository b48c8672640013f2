"""What the service counts, in the text form that Prometheus reads."""

import bisect
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass
class Histogram:
    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        seen = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            seen += count
            yield f'{name}_bucket{{{labels}{"," if labels else ""}le="{bound}"}} {seen}'
        braces = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{braces} {self.total}"
        yield f"{name}_count{braces} {seen}"


class Counts:
    def __init__(self) -> None:
        self.requests: Counter[tuple[str, int]] = Counter()
        self.reloads: Counter[str] = Counter(taken_up=0, refused=0)
        self.waiting = False  # for a model whose files are all there and agree
        self.seconds: dict[str, Histogram] = {}
        self.batches = Histogram(IMAGES)

    def request(self, path: str, status: int, seconds: float) -> None:
        self.requests[path, status] += 1
        self.seconds.setdefault(path, Histogram(SECONDS)).add(seconds)

    def batch(self, images: int) -> None:
        self.batches.add(images)

    def text(self, inside: int, model: str) -> str:
        return "\n".join([*self.lines(inside, model), ""])

    def lines(self, inside: int, model: str) -> Iterator[str]:
        yield from head("lockstep_requests_total", "counter", "Requests answered, by path and status.")
        for (path, status), count in sorted(self.requests.items()):
            yield f'lockstep_requests_total{{path="{path}",status="{status}"}} {count}'
        yield from head("lockstep_request_seconds", "histogram", "Time from a request's headers to its answer.")
        for path, histogram in sorted(self.seconds.items()):
            yield from histogram.lines("lockstep_request_seconds", f'path="{path}"')
        yield from head("lockstep_batch_images", "histogram", "Images that the network was given at once.")
        yield from self.batches.lines("lockstep_batch_images")
        yield from head("lockstep_images_inside", "gauge", "Images of requests that are being answered.")
        yield f"lockstep_images_inside {inside}"
        yield from head("lockstep_model_reloads_total", "counter", "New model files, by what became of them.")
        for result, count in sorted(self.reloads.items()):
            yield f'lockstep_model_reloads_total{{result="{result}"}} {count}'
        meaning = "1 while the files are missing or of different models, as in a run; for long: a run failed."
        yield from head("lockstep_model_waiting", "gauge", meaning)
        yield f"lockstep_model_waiting {int(self.waiting)}"
        yield from head("lockstep_model_info", "gauge", "The model that answers.")
        yield f'lockstep_model_info{{sha256="{model}"}} 1'


def head(name: str, kind: str, meaning: str) -> Iterator[str]:
    yield f"# HELP {name} {meaning}"
    yield f"# TYPE {name} {kind}"
