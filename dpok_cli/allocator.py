"""Keep the memory that a large tensor frees, for the next one."""

import ctypes
import os
import platform

# glibc's mallopt(3): parameter, value, and the variable by which a person may have set it.
_SETTINGS = (
    # Blocks of up to 32 MiB, which is its greatest value, come from the heap,
    (-3, 32 << 20, "MALLOC_MMAP_THRESHOLD_"),
    # which never shrinks,
    (-1, -1, "MALLOC_TRIM_THRESHOLD_"),
    # and grows by 256 MiB at a time.
    (-2, 256 << 20, "MALLOC_TOP_PAD_"),
)


def keep_freed_memory() -> bool:
    """Tell glibc's malloc to keep freed blocks in the process; return whether it was told.

    By default every large tensor is mapped anew from the system and its pages are zeroed at first
    touch, which on the CPU takes longer than many of a small model's operations. Does nothing with
    another C library, or if a person has set one of the ``MALLOC_*_`` variables.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for *_, name in _SETTINGS):
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(parameter, value) for parameter, value, _ in _SETTINGS)
