import platform
import subprocess
import sys

import pytest

from dpok_cli import allocator

MEASURE = """
import resource
from dpok_cli.allocator import keep_freed_memory
{tell}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        [bytearray(b"x") * (8 << 20) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(tell: str) -> int:
    """Return the page faults of using the same 32 MiB five times, in a fresh process."""
    command = [sys.executable, "-c", MEASURE.format(tell=tell)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="tells glibc's malloc only")
def test_freed_memory_is_used_again_without_page_faults():
    assert faults("assert keep_freed_memory()") < 0.2 * faults("")


def test_what_a_person_has_set_stands(monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")
    assert not allocator.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_freed_memory()
