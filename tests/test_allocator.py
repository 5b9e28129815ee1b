import platform
import subprocess
import sys

import pytest

from dpok_cli import allocator

MEASURE = """
import resource
from dpok_cli.allocator import keep_freed_memory
{setting}
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        [bytearray(b"x") * (8 << 20) for _ in range(4)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""


def faults(setting: str) -> int:
    """Return the page faults of using the same 32 MiB five times, in a fresh process."""
    command = [sys.executable, "-c", MEASURE.format(setting=setting)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's malloc only")
def test_freed_memory_is_used_again_without_page_faults():
    assert faults("assert keep_freed_memory()") < 0.2 * faults("")


def test_the_users_own_setting_is_kept(monkeypatch):
    monkeypatch.setenv("MALLOC_TOP_PAD_", "0")
    assert not allocator.keep_freed_memory()


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not allocator.keep_freed_memory()
