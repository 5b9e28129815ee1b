"""Building the environment of a reward: by pip, with shared packages, and where that fails."""

import json
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from dpok_cli.errors import InputError, RewardError
from dpok_cli.inputs import CACHE
from dpok_cli.rewards.environment import MARKER, Environment, python_in, python_version
from dpok_cli.rewards.install import install, interpreter

HERE = Path(sys.executable)


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv(CACHE, str(tmp_path))
    return tmp_path / "environments"


def wheel(folder: Path, name: str, number: str, requires: str = "") -> str:
    """Make a wheel of one module, which knows its version."""
    info = f"{name}-{number}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {number}\n{requires}\n"
    kind = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    file = folder / f"{name}-{number}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}.py", f"number = {number!r}\n")
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(f"{info}/WHEEL", kind)
        archive.writestr(f"{info}/RECORD", "")
    return str(file)


def run(environment: Environment, code: str) -> str:
    python = python_in(environment.folder("one"))
    command = [python, "-I", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def test_it_has_what_it_requires_and_what_it_shares_and_nothing_else(tmp_path, home):
    """Rich is shared, with what it needs; its own pygments hides the shared one, which stays."""
    import pygments

    theirs = wheel(tmp_path, "pygments", "99.0", "Requires-Dist: pillow")
    environment = Environment((theirs, "pillow"), shared=("pillow", "rich", "not-installed"))
    assert not environment.is_here("one")
    with pytest.raises(InputError, match=r"^Reward 'one' needs .*: dpok rewards install one$"):
        environment.check("one")

    install("one", environment, HERE)

    assert environment.is_here("one")
    environment.check("one")
    folder = environment.folder("one")
    assert folder.parent == home
    marker = json.loads((folder / MARKER).read_text())
    assert marker == {"python": python_version(), "requirements": [theirs, "pillow"]}
    code = "import pygments, markdown_it, PIL; print(pygments.number, PIL.__version__)"
    assert run(environment, code) == f"99.0 {version('pillow')}"
    lines = (folder / "constraints.txt").read_text().splitlines()
    assert lines == [f"{name}=={version(name)}" for name in ("pillow", "rich")]
    code = "import importlib.util as u; print([u.find_spec(n) for n in ('torch', 'dpok_cli')])"
    assert run(environment, code) == "[None, None]"
    assert Path(pygments.__file__).is_file()
    assert version("pygments") == pygments.__version__ != "99.0"


def test_a_failure_is_named_and_nothing_is_there(tmp_path):
    failing = tmp_path / "python"
    failing.write_text("#!/bin/sh\necho ERROR: no network\necho; echo a hint >&2\nexit 1\n")
    failing.chmod(0o755)
    with pytest.raises(RewardError) as caught:
        install("one", Environment(), failing)
    log = Environment().folder("one") / "install.log"
    assert str(caught.value) == (
        f"The environment of 'one' could not be built: ERROR: no network (all of it is in {log})"
    )
    assert "a hint\n" in log.read_text()
    assert not Environment().is_here("one")


def test_what_an_attempt_left_is_built_anew():
    environment = Environment()
    folder = environment.folder("one")
    install("one", environment, HERE)
    (folder / MARKER).unlink()
    (folder / "rest").touch()
    assert not environment.is_here("one")
    install("one", environment, HERE)
    assert environment.is_here("one")
    assert not (folder / "rest").exists()


def test_an_environment_whose_python_is_gone_is_not_there():
    environment = Environment()
    install("one", environment, HERE)
    python_in(environment.folder("one")).unlink()
    assert not environment.is_here("one")


def test_other_needs_are_another_folder(home):
    needs = [
        Environment(),
        Environment(requirements=("a",)),
        Environment(requirements=("a",), python=("3.11",)),
        Environment(requirements=("a",), shared=("pillow",)),
    ]
    folders = {each.folder("one") for each in needs}
    assert len(folders) == 4
    assert {each.parent for each in folders} == {home}
    assert all(each.name.startswith("one-") for each in folders)
    assert Environment().folder("one") == Environment().folder("one")


def fake_python(folder: Path, name: str, number: str) -> Path:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\necho {number}\n")
    file.chmod(0o755)
    return file


def test_which_python_builds_it(tmp_path, monkeypatch):
    old = fake_python(tmp_path / "bin", "python3.7", "3.7")
    fake_python(tmp_path / "bin", "python3.6", "of another version")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert interpreter("one", Environment()) == HERE
    assert interpreter("one", Environment(python=("3.7", python_version()))) == HERE  # can share
    assert interpreter("one", Environment(python=("3.6", "3.7"))) == old
    assert interpreter("one", Environment(python=("3.7",)), str(old)) == old
    assert interpreter("one", Environment(), str(old)) == old
    for given, message in (
        (None, "needs Python 3.6 or 3.5, and none is on the path: install one, or name its"),
        (str(old), f"needs Python 3.6 or 3.5, and {old} is none"),
        ("no-such-python", "needs Python 3.6 or 3.5, and no-such-python is none"),
    ):
        with pytest.raises(InputError, match=message):
            interpreter("one", Environment(python=("3.6", "3.5")), given)
