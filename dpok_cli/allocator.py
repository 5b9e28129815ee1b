"""Keep the memory freed by a large tensor for the next one."""

import ctypes
import os
import platform

# glibc's mallopt(3): parameter, value, and the environment variable that sets it.
_SETTINGS = (
    # Blocks of up to 32 MiB (the maximum) come from the heap,
    (-3, 32 << 20, "MALLOC_MMAP_THRESHOLD_"),
    # which never shrinks,
    (-1, -1, "MALLOC_TRIM_THRESHOLD_"),
    # and grows by 256 MiB at a time.
    (-2, 256 << 20, "MALLOC_TOP_PAD_"),
)


def keep_freed_memory() -> bool:
    """Make glibc's malloc keep freed blocks in the process; return whether it was set.

    By default every large tensor is newly mapped from the system and its pages are zeroed on first
    access. On the CPU this takes longer than many operations of a small model. Does nothing with
    another C library, or if one of the ``MALLOC_*_`` variables is set.
    """
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for *_, name in _SETTINGS):
        return False
    libc = ctypes.CDLL(None)
    return all(libc.mallopt(parameter, value) for parameter, value, _ in _SETTINGS)
