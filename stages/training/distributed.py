"""Training by several processes with DistributedDataParallel: each trains on its part of every batch.

The stage starts them on this host; torchrun may start them instead, on one host or several.
"""

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from stages.core.command import LAUNCHER, LAUNCHER_FOLDER
from stages.core.errors import StageError

DECISION_INTERVAL = 16  # steps between two decisions of rank 0: all processes wait for its answer, about 2 ms


@dataclass(frozen=True)
class ProcessGroup:
    """This process's rank among the processes of a training; by default there is only one."""

    rank: int = 0
    world_size: int = 1

    @contextmanager
    def output_paths(self, *paths: Path) -> Iterator[list[Path]]:
        """Where this process writes: rank 0 to the paths themselves, other ranks to a temporary folder."""
        if self.rank == 0:
            yield list(paths)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield [Path(folder) / path.name for path in paths]

    def wrap_ddp(self, network: nn.Module) -> nn.Module:
        """The network, with gradients averaged over all processes during the backward pass."""
        return network if self.world_size == 1 else nn.parallel.DistributedDataParallel(network)

    def all_reduce_sum(self, numbers: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world_size > 1:
            distributed.all_reduce(numbers)
        return numbers

    def broadcast(self, value: Any) -> Any:
        """The value that rank 0 has."""
        values = [value]
        if self.world_size > 1:
            distributed.broadcast_object_list(values)
        return values[0]

    def rank0_decides(self, is_due: Callable[[], bool], step: int) -> bool:
        """Whether `is_due` is true on rank 0: clocks differ, and all processes must do the same in the same step."""
        if self.world_size == 1:
            return is_due()
        return (step + 1) % DECISION_INTERVAL == 0 and bool(self.broadcast(is_due()))

    def sync_buffers(self, network: nn.Module) -> None:
        """Give all processes rank 0's running statistics; the parameters are always equal."""
        for buffer in network.buffers() if self.world_size > 1 else ():
            distributed.broadcast(buffer, 0)


def is_worker() -> bool:
    """Whether this process was started as one of several, by `launch_workers` or by torchrun."""
    return "RANK" in os.environ


def launch_workers(module: str, arguments: dict[str, Any], processes: int) -> None:
    """Run the module with these arguments in several processes on this host, as torchrun does, until all have ended."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    flags = [part for name, value in arguments.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    launcher_log = logging.getLogger("torch.distributed.elastic")
    launcher_log.addHandler(logging.NullHandler())
    launcher_log.propagate = False  # a failure is reported below, in one line
    # Until the launcher has handlers of its own, SIGTERM would end this process without removing the folder.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory() as log_dir:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=module,
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir, redirects=dict.fromkeys(range(1, processes), Std.ALL)),
        )
        # The workers inherit these. Killed, they cannot remove their temporary folders, which are in this one.
        os.environ |= {LAUNCHER: str(os.getpid()), LAUNCHER_FOLDER: log_dir, "TMPDIR": log_dir}
        try:
            elastic_launch(config, sys.executable)("-m", module, *flags)
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            reason = last_error_line(Path(log_dir), rank)
            raise StageError(f"process {rank} of {processes} ended with status {failure.exitcode}{reason}") from None
        except SignalException as error:
            if error.sigval == signal.SIGINT:
                raise KeyboardInterrupt from None
            sys.exit(128 + error.sigval)


def last_error_line(log_dir: Path, rank: int) -> str:
    if rank == 0:  # its stderr is not redirected
        return ", see above"
    log = next(log_dir.glob(f"*/attempt_0/{rank}/stderr.log"))
    return ": " + (log.read_text(errors="replace").strip().splitlines() or ["no error message"])[-1]


@contextmanager
def distributed_context(device: torch.device, processes: int) -> Iterator[ProcessGroup]:
    """Join the process group that the environment variables describe; without them there is only this process."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != processes:
        raise StageError(
            f"train.processes is {processes}, but torchrun has started {world_size}: set one to the other's value"
        )
    if world_size == 1:
        yield ProcessGroup()
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(distributed.get_rank(), world_size)
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
