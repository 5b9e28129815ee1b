"""Random commands for a while, and what must hold after each of them.

Twenty seconds in the suite; ``make soak`` takes half an hour, prints each command, and repeats them
for the same SEED. A violation does not end it: all are listed at the end.
"""

import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random
from types import SimpleNamespace

import pytest

from soak.actions import Action, Training, random_step
from soak.files import TEMPORARY, faults
from soak.odd import PLACES
from soak.world import Command, Streams, Tree, World

SECONDS = float(os.environ.get("DPOK_SOAK", "20"))
SEED = int(os.environ.get("DPOK_SOAK_SEED", "1"))
NOISE = ("Traceback (most recent call last)", "Exception ignored", "Fatal Python error")


@pytest.mark.slow
def test_what_must_hold_holds_after_random_commands(
    pipeline_folder, tmp_path, tmp_path_factory, monkeypatch, capsys
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path_factory.mktemp("matplotlib")))
    monkeypatch.delenv("DPOK_DEBUG", raising=False)
    world, runs, found = World(tmp_path, pipeline_folder), [], []
    began, number, codes = time.monotonic(), 0, []
    with capsys.disabled():
        print(f"\nSEED={SEED}")
    while time.monotonic() - began < SECONDS:
        number += 1
        chance = Random(f"{SEED}/{number}")
        if chance.random() < 0.03:
            world.remove(chance.choice(PLACES))
        done, violations = take(world, random_step(chance, runs, pipeline_folder))
        codes += [each.code for each in done]
        lines = [f"{number:4} {each.action}  -> {each.code}" for each in done]
        lines += [f"     VIOLATION: {each}" for each in violations]
        found += [f"{number}: {each}" for each in violations]
        if "DPOK_SOAK" in os.environ or violations:
            with capsys.disabled():
                print(*map(printable, lines), sep="\n", flush=True)
    counts = {code: codes.count(code) for code in sorted({*codes})}
    with capsys.disabled():
        print(f"SEED={SEED}: {number} steps; how often which exit code: {counts}")
    assert not found, printable("\n".join(found))


def take(world: World, actions: list[Action]) -> tuple[list[Command], list[str]]:
    """Run commands at once; returns them and what did not hold."""
    for each in actions:
        each.alone = len(actions) == 1
        each.expect(world)
    before = world.tree()
    done = world.run(actions)
    after = world.tree()
    found = [text for each in done for text in of_command(world, each)]
    return done, found + list(of_both(done)) + list(of_files(world, done, before, after))


def of_both(done: list[Command]) -> Iterator[str]:
    """Yield what two commands that ran at once must not both do."""
    if len(done) == 1:
        return
    one, other = (each.action for each in done)
    codes = [each.code for each in done]
    # A resume may follow a new run that has ended by then.
    if one.once and other.once and one.writes == other.writes and codes == [0, 0]:
        yield f"both wrote {one.writes}"
    if str(one) == str(other) and one.codes == other.codes == {0} and 0 not in codes:
        yield f"neither of two succeeded: {codes}"


def of_command(world: World, done: Command) -> Iterator[str]:
    """Yield what a command did that it must not, or failed to do."""
    action, code, err = done.action, done.code, done.err
    assert code is not None
    if action.hangs:
        yield "it hung"
    for noise in NOISE:
        if noise in err or noise in done.out:
            yield f"it printed {noise}: {err[-600:]!r}"
    codes = action.codes | (set() if action.alone else {0, 2})
    for _, which in action.signals:
        codes |= {128 + which, -which}
    if action.streams.out or action.streams.err:
        codes |= {1}
        if "broken" in (action.streams.out, action.streams.err):
            codes |= {129, 141}
    if code not in codes:
        yield f"exit code {code}, not one of {sorted(codes)}: {err[-400:]!r}"
    silent = action.streams.err or (code == 1 and action.streams.out == "broken")
    if code in (1, 2) and not silent and not re.search("^Error: ", err, re.M):
        yield f"exit code {code} without its reason: {err[-300:]!r}"
    began = "Run folder:" in err and "Stopped; resume with:" not in err
    if code in (-1, -2, -15) and began and not action.is_complete(world):
        yield f"a signal ended it with nothing saved: {err[-300:]!r}"
    if code == 0:
        if action.streams.out == "full":
            yield "exit code 0, but its result was lost on a full disk"
        try:
            yield from action.check(world, done)
        except Exception as error:
            yield f"exit code 0 without its result: {type(error).__name__}: {error}"


def of_files(world: World, done: list[Command], before: Tree, after: Tree) -> Iterator[str]:
    """Yield what is wrong with the files that are new or changed."""
    changed = {
        name for name in before.keys() | after.keys() if before.get(name, "") != after.get(name, "")
    }
    allowed: list[str] = []
    for each in done:
        own = [world.shown(world.path(place)) for place in each.action.writes]
        allowed += own if each.code != 2 else []
        if each.code == 0:
            world.torn -= {*own}
    for each in done:
        if each.code is not None and each.code < 0:
            world.torn |= {world.shown(world.path(place)) for place in each.action.writes}
    wrong: list[str] = []
    for name in sorted(changed):
        killed = any(each.code is not None and each.code < 0 for each in done)
        if (killed or name not in after) and TEMPORARY.search(Path(name).name):
            continue  # left by a command that was killed, now or before
        if not any(is_within(name, place) or is_within(place, name) for place in allowed):
            if not any(is_within(name, place) for place in wrong):  # one line for a folder
                kind = "changed" if name in before else "left behind"
                yield f"{name} was {kind if name in after else 'removed'}"
                wrong.append(name)
        elif name in after:
            torn = any(is_within(name, place) for place in world.torn)
            if not any(TEMPORARY.search(part) for part in Path(name).parts):
                yield from (f"{name}: {text}" for text in faults(world.folder / name, torn))
            elif not torn:
                yield f"{name} was left"
    if not any(each.code is not None and each.code < 0 for each in done):
        yield from (f"{file} was left" for file in (world.folder / ".tmp").iterdir())
    for file in (world.folder / ".tmp").iterdir():
        file.unlink() if file.is_file() else None


def is_within(name: str, place: str) -> bool:
    return f"{name}/".startswith(f"{place}/")


def printable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def test_a_step_is_repeated_by_its_seed(tmp_path):
    def steps(runs: list[Training]) -> list[str]:
        each = [random_step(Random(f"5/{number}"), runs, tmp_path) for number in range(60)]
        return ["\n".join(map(str, step)) for step in each]

    first = steps([])
    assert first == steps([])
    assert len({*first}) > 50


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("runs/a/metrics.jsonl", '{"loss": NaN}\n', "NaN is not JSON"),
        ("runs/a/metrics.jsonl", '{"loss": 1}\n{"lo', "half a line"),
        ("runs/a/summary.json", "{", "JSONDecodeError"),
        ("runs/a/config.toml", "rounds =", "TOMLDecodeError"),
        ("runs/a/samples/1.png", "", "UnidentifiedImageError"),
        ("runs/a/adapter/.README.md.tmp", "", ".README.md.tmp was left"),
        ("runs/b/run.json", "{}", "runs/b was left behind"),
    ],
)
def test_a_faulty_file_would_be_seen(file, content, said, tmp_path):
    world = World(tmp_path, tmp_path)
    (tmp_path / ".tmp").mkdir()
    before = world.tree()
    written = tmp_path / file
    written.parent.mkdir(parents=True)
    written.write_text(content)
    done = SimpleNamespace(code=0, action=SimpleNamespace(writes=["runs/a"]))
    (found,) = of_files(world, [done], before, world.tree())
    assert said in found
    done.code = -9  # what a kill leaves may be half a line or a temporary file, but nothing else
    found = list(of_files(world, [done], before, world.tree()))
    assert bool(found) == (said not in ("half a line", ".README.md.tmp was left"))


def test_a_command_that_fails_would_be_seen(tmp_path):
    def found(code: int, err: str = "", **more):
        action = Action("rewards")
        vars(action).update(more)
        return list(of_command(world, SimpleNamespace(action=action, code=code, out="", err=err)))

    world = World(tmp_path, tmp_path)
    assert found(0) == []
    assert found(1, "Error: it failed") == ["exit code 1, not one of [0]: 'Error: it failed'"]
    assert found(2, "it failed", codes={2}) == ["exit code 2 without its reason: 'it failed'"]
    (said,) = found(0, "Traceback (most recent call last)")
    assert said.startswith("it printed Traceback")
    assert found(0, hangs=True) == ["it hung"]

    def unfinished(world: World) -> bool:
        return False

    assert found(143, signals=[(1.0, signal.SIGTERM)]) == []
    asked = [(1.0, signal.SIGTERM)]
    (said,) = found(-15, "Run folder: runs/a\n", signals=asked, is_complete=unfinished)
    assert said.startswith("a signal ended it with nothing saved")
    saved = "Run folder: runs/a\nStopped; resume with: dpok train-rl --resume runs/a\n"
    assert found(-15, saved, signals=asked, is_complete=unfinished) == []
    assert found(0, streams=Streams("full")) == [
        "exit code 0, but its result was lost on a full disk"
    ]
    (said,) = found(0, check=lambda world, done: 1 / 0)
    assert said.startswith("exit code 0 without its result: ZeroDivisionError")
