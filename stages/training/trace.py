"""The trace of a training: a checksum of every tensor of the network each few steps.

Where two trainings end with different bytes, their traces tell between which steps, and in which tensors, they part.
"""

import zlib
from pathlib import Path

from torch import Tensor, nn

from stages.core.files import write_csv

INTERVAL = 10  # steps between two rows: a row costs 0.1 ms for 100,000 parameters
FINAL = "final"  # the step of the last row: the network as it is kept, calibrated and perhaps with former weights


class Trace:
    def __init__(self, network: nn.Module, steps: int) -> None:
        self.network, self.steps = network, steps
        self.rows: list[list[int | str]] = []

    def record(self, done: int) -> None:
        """Add the row of this many steps, if one is due: before the first step, every few steps, after the last."""
        if done % INTERVAL == 0 or done == self.steps:
            self.rows.append(self.row(done))

    def write(self, path: Path) -> None:
        write_csv(path, ("step", *self.network.state_dict()), [*self.rows, self.row(FINAL)])

    def row(self, step: int | str) -> list[int | str]:
        return [step, *(checksum(tensor) for tensor in self.network.state_dict().values())]


def checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes()):08x}"
