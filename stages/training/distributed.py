"""One training by several processes: each learns from its share of every batch, and all end with the same weights.

They are started here, on this host, or by torchrun, on one host or on several (PyTorch's DistributedDataParallel).
"""

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from stages.core.errors import StageError

SELDOM = 16  # steps between two questions about the time: all processes wait for the answer, two milliseconds or so


@dataclass(frozen=True)
class ProcessGroup:
    """This process among those of the training; alone unless told otherwise."""

    rank: int = 0
    world_size: int = 1

    @contextmanager
    def output_paths(self, *paths: Path) -> Iterator[list[Path]]:
        """Where this process writes: the first to the paths, the others to places that nobody reads."""
        if self.rank == 0:
            yield list(paths)
            return
        with tempfile.TemporaryDirectory() as folder:
            yield [Path(folder) / path.name for path in paths]

    def wrap_ddp(self, network: nn.Module) -> Callable[[Tensor], Tensor]:
        """The network, its gradients averaged over all processes as they are computed."""
        if self.world_size == 1:
            return network
        return nn.parallel.DistributedDataParallel(network)

    def all_reduce_sum(self, numbers: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world_size > 1:
            distributed.all_reduce(numbers)
        return numbers

    def broadcast(self, thing: Any) -> Any:
        """What the first process has."""
        things = [thing]
        if self.world_size > 1:
            distributed.broadcast_object_list(things)
        return things[0]

    def rank0_decides(self, clock: Callable[[], bool], step: int) -> bool:
        """Whether the first process's clock says so: each has its own, and what only some do the others wait for."""
        if self.world_size == 1:
            return clock()
        return (step + 1) % SELDOM == 0 and bool(self.broadcast(clock()))

    def sync_buffers(self, network: nn.Module) -> None:
        """Give all processes the first one's running statistics; parameters are equal as it is."""
        for buffer in network.buffers() if self.world_size > 1 else ():
            distributed.broadcast(buffer, 0)


def launch_workers(module: str, arguments: dict[str, Any], processes: int) -> bool:
    """Whether that many processes have done it, started here; not so if one is enough, or this is one of them."""
    if processes == 1 or "RANK" in os.environ:
        return False
    flags = [part for name, value in arguments.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    with socket.socket() as free, ExitStack() as stack:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(processes)}
        free.close()
        running, errors = [], []
        for rank in range(processes):
            errors.append(stack.enter_context(tempfile.TemporaryFile("w+")))
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            running.append(
                subprocess.Popen(  # noqa: S603, this module again
                    [sys.executable, "-m", module, *flags],
                    env={**os.environ, **meeting, **place},
                    stdout=subprocess.DEVNULL if rank else None,
                    stderr=errors[rank] if rank else None,
                )
            )
        wait(running, errors)
    return True


def wait(running: list[subprocess.Popen[bytes]], errors: list[Any]) -> None:
    """Until all have ended, or one has ended badly: then the others would wait for it for ever."""
    with ThreadPoolExecutor(len(running)) as threads:
        ends = {threads.submit(process.wait): rank for rank, process in enumerate(running)}
        try:
            for end in as_completed(ends):
                if end.result():
                    raise StageError(last_words(ends[end], len(running), end.result(), errors[ends[end]]))
        finally:  # also of an interruption; the threads end with them
            for process in running:
                process.kill()


def last_words(rank: int, processes: int, status: int, error: Any) -> str:
    said = ", see above"
    if rank:
        error.seek(0)
        said = ": " + (error.read().strip().splitlines() or ["no word"])[-1]
    return f"process {rank} of {processes} ended with status {status}{said}"


@contextmanager
def distributed_context(device: torch.device, processes: int) -> Iterator[ProcessGroup]:
    """Meet the other processes, if the environment says that there are some."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world != processes:
        raise StageError(f"train.processes is {processes}, but torchrun has started {world}; set the one to the other")
    if world == 1:
        yield ProcessGroup()
        return
    distributed.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield ProcessGroup(distributed.get_rank(), world)
        distributed.barrier()
    finally:
        distributed.destroy_process_group()
