"""The history of a training: a row of numbers at each of a few points, and the sums since the last one."""

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
FLUSH_INTERVAL = 50  # steps between two looks at the numbers: a GPU waits for whoever looks


class History:
    def __init__(
        self,
        path: Path,
        steps: int,
        points: int,
        per_epoch: int,
        ranks: ProcessGroup = ProcessGroup(),  # noqa: B008, frozen
    ) -> None:
        self.path, self.steps, self.per_epoch, self.ranks = path, steps, per_epoch, ranks
        self.points = min(points, steps)
        self.rows: list[list[Any]] = []
        self.sums = [0.0, 0.0, 0.0]  # loss, hits and images since the last row
        self.unseen: list[tuple[int, float, Tensor, Tensor, int]] = []  # the same of each step since the last look

    def record_step(self, step: int, rate: float, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Remember a step's training loss and hits."""
        hits = (logits.detach().argmax(1) == labels).sum()
        self.unseen.append((step + 1, rate, loss.detach() * len(labels), hits, len(labels)))
        if len(self.unseen) == FLUSH_INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Add up what was remembered; a loss that is not finite ends the training."""
        if not self.unseen:
            return
        steps, rates, losses, hits, images = zip(*self.unseen, strict=True)
        loss = torch.stack(losses)
        noted = torch.stack([loss, torch.stack(hits).to(loss), loss.new_tensor(images)], 1)
        numbers = self.ranks.all_reduce_sum(noted).cpu().double()
        if len(wrong := numbers[:, 0].isfinite().logical_not().nonzero()):
            first = int(wrong[0])
            raise StageError(
                f"the loss is not finite at step {steps[first]} of {self.steps}, learning rate {rates[first]:.3g}: "
                "lower train.learning_rate"
            )
        self.sums = [had + new for had, new in zip(self.sums, numbers.sum(0).tolist(), strict=True)]
        self.unseen = []

    def row_due(self, step: int) -> bool:
        """Whether a row is due after this step: they are spread evenly, the last after the last step."""
        return (step + 1) * self.points // self.steps > step * self.points // self.steps

    def add_row(self, step: int, rate: float, monitored: tuple[float, float] | None) -> None:
        """Add the row of this step, with the loss and accuracy of the monitored split, and rewrite the file."""
        self.flush()
        loss, hits, images = self.sums
        self.sums = [0.0, 0.0, 0.0]
        row: list[Any] = [step + 1, round((step + 1) / self.per_epoch, 4), float(f"{rate:.6g}")]
        row += [round(loss / images, 6), round(hits / images, 6)]
        row += [round(number, 6) for number in monitored] if monitored else ["", ""]
        self.rows.append(row)
        self.write()
        if not sys.stderr.isatty():
            watched = f", monitored {row[6]:.4f}" if monitored else ""
            echo(f"step {step + 1} of {self.steps}: loss {row[3]:.4f}, accuracy {row[4]:.4f}{watched}, rate {rate:.2g}")

    def write(self) -> None:
        write_csv(self.path, COLUMNS, self.rows)

    def state(self) -> dict[str, Any]:
        self.flush()
        return {"rows": self.rows, "sums": self.sums}

    def restore(self, state: dict[str, Any]) -> None:
        self.rows, self.sums = state["rows"], state["sums"]
