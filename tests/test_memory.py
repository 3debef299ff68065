"""What is taken for memory that ran out, and what is not."""

import errno

import pytest
import torch

from geocolor.memory import ran_out, what_ran_out


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (MemoryError(), "memory ran out"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "the memory of the GPU ran out (2"),
        (RuntimeError("unable to mmap 4096 bytes from file <a>: Cannot allocate memory (12)"), "(4.10 kB more were"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"), "the memory of the GPU ran out"),
    ],
)
def test_memory_that_ran_out_is_known(error: Exception, said: str) -> None:
    assert ran_out(error)
    assert said in what_ran_out(error)


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        ValueError("cannot map a parameter from its file (Cannot allocate memory): raise vm.max_map_count"),
    ],
)
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    assert not ran_out(error)
