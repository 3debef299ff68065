"""How much memory there is to use, and how much this process has used."""

import ctypes
import errno
import gc
import re
import sys
from contextlib import suppress
from pathlib import Path

from geocolor.quantities import size

STATUS = Path("/proc/self/status")

#: glibc's name of the size from which memory is asked of the system, and the size: a matrix of 181 × 181 doubles.
M_MMAP_THRESHOLD, LARGE = -3, 2**18


#: How torch and the system say that there is none left, in exceptions of no type of their own.
RAN_OUT = re.compile(
    r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc|ALLOC_FAILED", re.IGNORECASE
)
ASKED = re.compile(r"(?:allocate|mmap) ([\d.]+) ?(bytes|[KMGTPE]iB)")


def ran_out(error: BaseException) -> bool:
    """Whether an exception says that memory could not be had; not where it is told in a sentence already."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, MemoryError) or (not isinstance(error, ValueError) and bool(RAN_OUT.search(str(error))))


def what_ran_out(error: BaseException) -> str:
    """Which memory, and how much more of it was wanted where the exception tells.

    >>> what_ran_out(RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of ..."))
    'the memory of the GPU ran out (2.00 GiB more were asked for)'
    """
    text = str(error)
    memory = "the memory of the GPU" if re.search("CUDA|HIP|MPS|XPU", text) else "memory"
    if found := ASKED.search(text):
        amount = size(int(found[1])) if found[2] == "bytes" else f"{found[1]} {found[2]}"
        return f"{memory} ran out ({amount} more were asked for)"
    return f"{memory} ran out"


def peak() -> int:
    """The most bytes that this process has held at a time, since `forget_peak` where the system can forget."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def resident() -> int:
    """The bytes that this process holds now (where the system does not say: at most so far)."""
    with suppress(OSError):
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
    return peak()


def available() -> int | None:
    """Bytes that processes may still take without swapping; None where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def forget_peak() -> None:
    """Give back what is free, and let `peak` begin anew (Linux; elsewhere it stays what it was)."""
    gc.collect()
    give_back()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def give_back() -> None:
    """Return freed memory to the system: glibc keeps it, in pieces between what is in use that fit nothing new."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def hold_no_free() -> None:
    """From now on large pieces go back to the system once they are free.

    By itself glibc begins to keep those that it has seen freed once, and what is left between small ones fits nothing.
    A plan of 56 layers of width 256 held 39 MB with this and 55 MB without, and took 5 % longer.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)
