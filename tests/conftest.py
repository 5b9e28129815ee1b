"""What the tests share: a command line run in this process, from an empty folder."""

import os
from collections.abc import Callable
from typing import NamedTuple

import pytest

# No test reaches for the hub, whether there is a network or not.
os.environ["HF_HUB_OFFLINE"] = "1"


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def dpok(tmp_path, monkeypatch, capfd) -> Callable[..., Result]:
    """Run a command line in an empty folder; returns exit code, stdout and stderr."""
    from dpok_cli import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DPOK_DEBUG", raising=False)

    def run(*arguments: str) -> Result:
        capfd.readouterr()
        code = cli.run(arguments)
        return Result(code, *capfd.readouterr())

    return run
