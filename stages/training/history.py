"""Records the loss and accuracy of every step, and writes a table in which each row averages over several steps."""

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stages.core.command import echo
from stages.core.errors import StageError
from stages.core.files import write_csv
from stages.training.distributed import ProcessGroup

COLUMNS = ("step", "epoch", "learning_rate", "loss", "accuracy", "monitor_loss", "monitor_accuracy")
FLUSH_INTERVAL = 50  # steps between two reads of the numbers: a read waits for the GPU


class History:
    def __init__(self, path: Path, steps: int, points: int, steps_per_epoch: int, process_group: ProcessGroup) -> None:
        self.path, self.steps, self.steps_per_epoch = path, steps, steps_per_epoch
        self.process_group, self.points = process_group, min(points, steps)
        self.rows: list[list[Any]] = []
        self.sums = [0.0, 0.0, 0.0]  # of loss, correct predictions and images since the last row
        # Of each step: number, learning rate, loss, correct predictions and images, not yet read from the device.
        self.pending: list[tuple[int, float, Tensor, Tensor, int]] = []

    def record_step(self, step: int, lr: float, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Store the loss and accuracy of a step without waiting for the device."""
        correct = (logits.detach().argmax(1) == labels).sum()
        self.pending.append((step + 1, lr, loss.detach() * len(labels), correct, len(labels)))
        if len(self.pending) == FLUSH_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Add the stored steps to the sums; raise StageError if a loss is not finite."""
        if not self.pending:
            return
        steps, lrs, losses, correct, images = zip(*self.pending, strict=True)
        loss = torch.stack(losses)
        table = torch.stack([loss, torch.stack(correct).to(loss), loss.new_tensor(images)], 1)
        table = self.process_group.all_reduce_sum(table).cpu().double()
        if len(not_finite := table[:, 0].isfinite().logical_not().nonzero()):
            first = int(not_finite[0])
            raise StageError(
                f"the loss is not finite at step {steps[first]} of {self.steps}, learning rate {lrs[first]:.3g}: "
                "lower train.learning_rate"
            )
        self.sums = [total + new for total, new in zip(self.sums, table.sum(0).tolist(), strict=True)]
        self.pending = []

    def row_due(self, step: int) -> bool:
        """Whether a row follows this step: rows are spread evenly, the last one after the last step."""
        return (step + 1) * self.points // self.steps > step * self.points // self.steps

    def add_row(self, step: int, lr: float, monitored: tuple[float, float] | None) -> None:
        """Write the row of this step, with the loss and accuracy of the monitored split, if there is one."""
        self.flush()
        loss, correct, images = self.sums
        self.sums = [0.0, 0.0, 0.0]
        row: list[Any] = [step + 1, round((step + 1) / self.steps_per_epoch, 4), float(f"{lr:.6g}")]
        row += [round(loss / images, 6), round(correct / images, 6)]
        row += [round(number, 6) for number in monitored] if monitored else ["", ""]
        self.rows.append(row)
        self.write()
        if not sys.stderr.isatty():  # a terminal has a progress bar
            suffix = f", monitored {row[6]:.4f}" if monitored else ""
            echo(f"step {step + 1} of {self.steps}: loss {row[3]:.4f}, accuracy {row[4]:.4f}{suffix}, rate {lr:.2g}")

    def write(self) -> None:
        write_csv(self.path, COLUMNS, self.rows)

    def state_dict(self) -> dict[str, Any]:
        self.flush()
        return {"rows": self.rows, "sums": self.sums}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows, self.sums = state_dict["rows"], state_dict["sums"]
