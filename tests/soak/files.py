"""What must hold of every file that a command wrote."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from safetensors import safe_open

#: Names of what is there only while a command runs: locks, and what is to replace another.
TEMPORARY = re.compile(r"\.tmp$|~$|\.part$|^tmp|^\.lock")


def strict(text: str):
    """Parse JSON as other languages do, where NaN and Infinity are none."""

    def refuse(constant: str):
        raise ValueError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def faults(file: Path, torn: bool) -> Iterator[str]:
    """Yield what is wrong with a file; a ``torn`` one may lack the end of its last line."""
    try:
        match file.suffix:
            case ".json":
                strict(file.read_text(encoding="utf-8"))
            case ".jsonl":
                text = file.read_bytes()
                assert torn or not text or text.endswith(b"\n"), "half a line at its end"
                for line in text.split(b"\n")[:-1]:
                    strict(line.decode()) if line or not torn else None
            case ".toml":
                tomllib.loads(file.read_text(encoding="utf-8"))
            case ".png":
                with Image.open(file) as picture:
                    picture.load()
            case ".safetensors":
                with safe_open(file, "pt") as opened:
                    for key in opened.keys():  # noqa: SIM118
                        opened.get_tensor(key)
            case ".html":
                text = file.read_text(encoding="utf-8")
                assert text.rstrip().endswith("</html>"), "no end"
    except Exception as error:
        yield f"{type(error).__name__}: {error}"
