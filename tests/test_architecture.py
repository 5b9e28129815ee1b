"""The layout holds: imports run one way, nothing is in a circle, no file or folder grows too large.

All of it is read from the source, without importing it.
"""

import ast
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

#: The packages and modules of `dpok_cli`, the lowest first. Each imports from those before it, from
#: its own folder and from the folders in it; a folder in a package is a line of its own.
LAYERS = """
errors
strict_json
inputs
allocator
tiny
prompts
config
rewards
engine.runs
engine.distributed
engine.lora
engine.bases
engine.sampling
engine.evaluation.statistics
engine.evaluation.diversity
engine.training
engine.rl.rollout
engine.rl.objectives
engine.rl
engine.sft.dataset
engine.sft
engine.evaluation
engine.evaluation.report
display
memory
commands
cli
__main__
""".split()

MOST_LINES, MOST_OF_ALL = 400, 0.2


def sources(root=ROOT):
    """Return the text of every module, by its dotted name."""
    found = {}
    for top, package in (("dpok_cli", "dpok_cli"), ("plugins", "dpok_plugins")):
        for file in sorted((root / top).rglob("*.py")):
            parts = [package, *file.relative_to(root / top).with_suffix("").parts]
            name = ".".join(parts).removesuffix(".__init__")
            found[name] = file.read_text(encoding="utf-8")
    return found


def imports(name, text, known):
    """Return the modules of ours that a module imports, also within functions; not for types."""
    tree = ast.parse(text)
    for node in ast.walk(tree):  # what is there for type checkers alone is no import
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level and node.module:
            for each in node.names:
                inner = f"{node.module}.{each.name}"
                found.add(inner if inner in known else node.module)
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return {each for each in found if each in known and each != name}


def layer_of(name):
    """Return the place of a module in LAYERS: that of the longest name that it is in."""
    inner = name.removeprefix("dpok_cli.")
    fitting = [layer for layer in LAYERS if f"{inner}.".startswith(f"{layer}.")]
    return LAYERS.index(max(fitting, key=len))


def upward(modules):
    """Return the imports that run from a lower layer to a higher one."""
    faults = []
    for name, text in modules.items():
        for other in imports(name, text, modules):
            if other == "dpok_cli":  # the face for plugins' authors, and the version
                continue
            if name.startswith("dpok_plugins"):
                allowed = other.startswith(("dpok_plugins.", "dpok_cli.rewards.")) or other in (
                    "dpok_cli.errors",
                    "dpok_cli.tiny",
                    "dpok_cli.tiny.words",
                )
            elif name in ("dpok_cli", "dpok_cli.engine"):
                allowed = other.startswith("dpok_cli.rewards.")
            else:
                allowed = layer_of(other) <= layer_of(name)
            if not allowed:
                faults.append(f"{name} imports {other}")
    return sorted(faults)


def circles(modules):
    """Return modules that import each other, directly or through others."""
    graph = {name: imports(name, text, modules) for name, text in modules.items()}
    done, on_path, found = set(), [], []

    def visit(name):
        if name in on_path:
            found.append(on_path[on_path.index(name) :])
        elif name not in done:
            on_path.append(name)
            for other in sorted(graph[name]):
                visit(other)
            done.add(on_path.pop())

    for name in graph:
        visit(name)
    return found


def test_nothing_imports_upward():
    assert upward(sources()) == []


def test_no_imports_in_a_circle():
    assert circles(sources()) == []


@pytest.mark.parametrize(
    ("name", "line", "check", "fault"),
    [
        (
            "dpok_cli.engine.sampling.step",
            "from dpok_cli.engine.rl.rollout import Trajectories",
            upward,
            "dpok_cli.engine.sampling.step imports dpok_cli.engine.rl.rollout",
        ),
        (
            "dpok_cli.config.fields",
            "def late():\n    from dpok_cli.engine.runs import folder",
            upward,
            "dpok_cli.config.fields imports dpok_cli.engine.runs.folder",
        ),
        (
            "dpok_plugins.jpeg",
            "import dpok_cli.engine.distributed",
            upward,
            "dpok_plugins.jpeg imports dpok_cli.engine.distributed",
        ),
        (
            "dpok_cli.engine.rl.rollout",
            "from dpok_cli.engine.rl.buffer import Buffer",
            circles,
            ["dpok_cli.engine.rl.buffer", "dpok_cli.engine.rl.rollout"],
        ),
    ],
)
def test_a_fault_that_is_put_in_is_found(name, line, check, fault):
    modules = sources()
    modules[name] += f"\n{line}\n"
    found = check(modules)
    assert fault in ([sorted(each) for each in found] if check is circles else found)


def test_every_layer_is_there():
    known = set(sources())
    assert [layer for layer in LAYERS if f"dpok_cli.{layer}" not in known] == []


def test_no_file_and_no_folder_is_too_large():
    lines = {
        file.relative_to(ROOT): len(file.read_text(encoding="utf-8").splitlines())
        for top in ("dpok_cli", "plugins")
        for file in (ROOT / top).rglob("*.py")
    }
    assert {str(file): count for file, count in lines.items() if count > MOST_LINES} == {}
    folders: Counter = Counter()
    for file, count in lines.items():
        folders[str(file.parent)] += count
    most = MOST_OF_ALL * sum(lines.values())
    assert {folder: count for folder, count in folders.items() if count > most} == {}


def test_every_package_says_what_goes_in_and_what_comes_out():
    for file in (ROOT / "dpok_cli").rglob("__init__.py"):
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        name = file.parent.relative_to(ROOT)
        if name.name not in ("dpok_cli", "tiny"):  # the face for plugins' authors, and data
            assert re.search(r"^In: ", doc, re.M), name
            assert re.search(r"^Out: ", doc, re.M), name


def test_the_distribution_holds_every_package():
    import tomllib

    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        ".".join(file.parent.relative_to(ROOT).parts)
        for file in (ROOT / "dpok_cli").rglob("__init__.py")
    }
    assert set(listed) == found | {"dpok_plugins"}


# ---------------------------------------------------------------------------- docs/architecture.md


def page():
    return (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_the_table_of_files_is_the_tree():
    rows = re.findall(r"^\| `([^`]+)` \|", page(), re.M)
    assert len(rows) == len(set(rows))
    named = {row.rstrip("/") for row in rows}
    for row in named:
        assert (ROOT / row).exists(), row
    for file in (ROOT / "dpok_cli").rglob("*.py"):
        path = file.relative_to(ROOT)
        if path.name not in ("__init__.py", "__main__.py"):
            covered = {path.as_posix(), *(each.as_posix() for each in path.parents)}
            assert named & covered, path


def test_the_way_from_the_command_line_to_the_loss():
    """Each file that the page lists imports the next, and there are six at most."""
    (way,) = re.findall(r"From the command line to the loss.*?:\n\n(.*?)\n\n", page(), re.S)
    files = re.findall(r"`([^`]+\.py)`", way)
    assert files[0] == "dpok_cli/cli.py"
    assert len(files) <= 6
    assert "def dpok_loss" in (ROOT / files[-1]).read_text()
    modules = sources()
    names = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in files]
    for name, following in pairwise(names):
        found = imports(name, modules[name], modules)
        if name.endswith(".objectives"):  # it imports every file beside it
            found |= {each for each in modules if each.startswith(f"{name}.")}
        assert following in found, f"{name} does not import {following}"


def test_the_glossary_is_short():
    (glossary,) = re.findall(r"^## Words\n\n(.*?)(?=^## |\Z)", page(), re.M | re.S)
    assert 5 <= len(glossary.strip().splitlines()) <= 25
