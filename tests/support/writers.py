"""Another process that writes to a folder."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOLD = """
import sys
from pathlib import Path
from dpok_cli.engine.runs.lock import one_writer
with one_writer(Path(sys.argv[1]), *sys.argv[2:]):
    print("holds it", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_writer(folder: Path, before: str = "", file: str = "") -> Iterator[subprocess.Popen]:
    """Within the block another process writes to the folder, or to one file in it.

    It runs ``before`` first.
    """
    arguments = [sys.executable, "-c", before + _HOLD, str(folder), file]
    streams = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with subprocess.Popen(arguments, **streams) as process:
        assert process.stdout.readline() == "holds it\n"
        yield process
