"""Records checksums of the network's tensors every few steps.

If two trainings end with different bytes, their traces show in which steps and tensors they begin to differ.
"""

import zlib
from pathlib import Path

from torch import Tensor, nn

from stages.core.files import write_csv

INTERVAL = 10  # steps between two rows: a row takes 0.1 ms for 100,000 parameters
FINAL = "final"  # in the step column of the last row: the weights that were written, after keep: best and calibration


class Trace:
    def __init__(self, network: nn.Module, steps: int) -> None:
        self.network, self.steps = network, steps
        self.rows: list[list[int | str]] = []

    def record(self, step: int) -> None:
        """Add a row after this number of steps if one is due: at the start, every INTERVAL steps and at the end."""
        if step % INTERVAL == 0 or step == self.steps:
            self.rows.append(self.make_row(step))

    def write(self, path: Path) -> None:
        write_csv(path, ("step", *self.network.state_dict()), [*self.rows, self.make_row(FINAL)])

    def make_row(self, step: int | str) -> list[int | str]:
        return [step, *(checksum(tensor) for tensor in self.network.state_dict().values())]


def checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.detach().cpu().contiguous().numpy().tobytes()):08x}"
