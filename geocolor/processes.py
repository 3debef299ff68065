"""One run in several processes, as `torchrun` starts them: who am I, what is my share, and what do we know together.

Every function here is also right where there is one process, and then costs nothing.
"""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

T = TypeVar("T")

#: What a process waits for the slowest of the others; whose connection breaks is missed at once.
PATIENCE = timedelta(minutes=30)

LOST = (
    "another process of this run ended or cannot be reached, so this one ends too; what was measured is recorded: "
    "start the same command again, with as many processes, and it goes on from there"
)


def rank() -> int:
    """The number of this process, 0 for the one that prints and writes."""
    return dist.get_rank() if _together() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if _together() else 1


def is_mine(index: int) -> bool:
    """Whether this process does item `index` of work that is dealt out in turns."""
    return index % world() == rank()


def gathered(item: T) -> list[T]:
    """What every process gave, by rank, on each of them."""
    if world() == 1:
        return [item]
    items: list[Any] = [None] * world()
    _exchange(lambda: dist.all_gather_object(items, item))
    return items


def summed(tensor: Tensor) -> Tensor:
    """The sum over all processes, in place, on each of them bit for bit the same."""
    if world() > 1:
        _exchange(lambda: dist.all_reduce(tensor))
    return tensor


def exchange_device() -> torch.device:
    """Where tensors must be to be summed."""
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


def is_sharded(model: nn.Module) -> bool:
    """Whether the processes hold parts of one model (FSDP2), which they can only run together."""
    return world() > 1 and any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself; of one that is sharded the whole, for which all processes have to ask together."""
    if isinstance(tensor, DTensor):
        full: Tensor = tensor.full_tensor()
        return full
    return tensor


def wanted() -> int:
    """The number of processes that torchrun started; 1 where it did not."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def is_first() -> bool:
    """Whether this is the first of the processes that torchrun started, or the only one."""
    return wanted() == 1 or os.environ["RANK"] == "0"


def own_device() -> torch.device:
    """The GPU of this process where the machine has one for each, else the CPU."""
    local, here = int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return torch.device("cuda", local) if torch.cuda.device_count() >= here else torch.device("cpu")


@contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Within this context the processes of torchrun work together: over NCCL where `device` is a GPU, else over gloo.

    When another one is lost, ConnectionError is raised, which says what to do.
    """
    if wanted() == 1:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    before = signal.signal(signal.SIGTERM, _ended)  # torchrun's way to end those that are left
    try:
        _exchange(lambda: dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE))
        yield
        _exchange(dist.barrier)  # no one leaves while another still asks for something
    finally:
        signal.signal(signal.SIGTERM, before)
        if dist.is_initialized():
            dist.destroy_process_group()


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()


def _exchange(step: Callable[[], object]) -> None:
    try:
        step()
    except RuntimeError as error:
        raise ConnectionError(LOST) from error


def _ended(_number: int, _frame: FrameType | None) -> NoReturn:
    raise ConnectionError(LOST)
