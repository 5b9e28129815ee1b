"""Find rewards through the entry-point group ``dpok``, built-in and third-party alike."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

from dpok_cli.errors import InputError, RewardError, suggest
from dpok_cli.rewards import hookspecs
from dpok_cli.rewards.base import RewardModel, defines
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.environment import Environment
from dpok_cli.rewards.guard import plugin_code
from dpok_cli.rewards.isolated import EnvironmentReward
from dpok_cli.rewards.spec import make_options, parse_spec

if TYPE_CHECKING:
    import torch

OWN_PACKAGE = "dpok"
UNKNOWN = "unknown"
#: The packages whose plugins are loaded (comma-separated; empty: only built-in; unset: all).
ALLOWED = "DPOK_PLUGINS"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")


@dataclass(frozen=True)
class Entry:
    """A reward and the package (distribution) that provides it."""

    cls: type[RewardModel]
    package: str
    version: str


@dataclass(frozen=True)
class Registry:
    """The rewards found, the plugins that failed to load, and names claimed more than once."""

    rewards: dict[str, Entry] = field(default_factory=dict)
    #: The reason a plugin was left out, keyed by "package (module)".
    failures: dict[str, str] = field(default_factory=dict)
    #: The packages that claim the same reward name, keyed by name; none of them gets it.
    clashes: dict[str, list[str]] = field(default_factory=dict)

    def get(self, name: str) -> type[RewardModel]:
        """Return the reward's class; raises ``InputError`` if there is none or more than one."""
        if name in self.clashes:
            raise InputError(
                f"Reward {name!r} is claimed by {' and by '.join(self.clashes[name])}. Uninstall"
                f" one, or list the packages to load in {ALLOWED}."
            )
        if name not in self.rewards:
            failed = "".join(f" {who} was left out: {why}." for who, why in self.failures.items())
            raise InputError(f"Unknown reward {name!r}.{suggest(name, self.rewards)}{failed}")
        return self.rewards[name].cls

    def left_out(self) -> list[str]:
        """Return one warning with the reason for each plugin or name that was left out."""
        return [
            f"Warning: reward plugin {plugin} was left out: {why}"
            for plugin, why in self.failures.items()
        ] + [
            f"Warning: reward {name!r} was left out: {' and '.join(packages)} both claim it"
            for name, packages in self.clashes.items()
        ]

    def add(self, entry: Entry) -> None:
        name = entry.cls.name
        if name in self.clashes:
            self.clashes[name].append(entry.package)
        elif name in self.rewards:
            self.clashes[name] = [self.rewards.pop(name).package, entry.package]
        else:
            self.rewards[name] = entry


@cache
def registry() -> Registry:
    """Load all allowed plugins, built-in first; one that fails is left out with its reason."""
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    found: list[type[RewardModel]] = []
    # The hook is historic: every plugin registered from now on is called with this immediately.
    manager.hook.register_rewards.call_historic(kwargs={"register": found.append})
    result = Registry()
    for point in _allowed_entry_points():
        package, version = _package(point)
        plugin = f"{package} ({point.value})"
        found.clear()
        try:
            with plugin_code(_one_line):
                manager.register(point.load(), plugin)
                manager.check_pending()
                for reward in found:
                    _check(reward)
                if not found:
                    raise RewardError("it registers no reward")
        except RewardError as error:
            result.failures[plugin] = str(error)
            if manager.has_plugin(plugin):
                manager.unregister(name=plugin)
            continue
        for reward in found:
            result.add(Entry(reward, package, version))
    return result


def provider(reward: type[RewardModel]) -> tuple[str, str]:
    """Return the package that a reward is from and its version; "unknown" for one of no plugin."""
    for entry in registry().rewards.values():
        if entry.cls is reward:
            return entry.package, entry.version
    return UNKNOWN, UNKNOWN


def check_specs(specs: Sequence[str], *, tiny: bool = False) -> None:
    """Check ``--reward`` specs without constructing a reward; ``tiny`` is that of `build`.

    Raises ``InputError`` for an invalid spec, name or option, for a reward whose environment is not
    installed, and if there is none.
    """
    _resolve(specs, tiny)


def build(
    specs: Sequence[str],
    device: str | torch.device = "cpu",
    *,
    tiny: bool = False,
    rest: bool = False,
) -> WeightedReward:
    """Build the weighted reward of ``--reward`` specs; weights are loaded at the first score.

    With ``tiny``, for images of the bundled model, rewards with a tiny version use it unless the
    spec sets ``model=``. With ``rest`` they are on the CPU while they do not score. Raises
    ``InputError`` as `check_specs` does before any reward is constructed, and ``RewardError`` for
    one whose constructor fails.
    """
    return WeightedReward(
        [(_make(cls, options, device), weight) for cls, options, weight in _resolve(specs, tiny)],
        rest,
    )


def _resolve(specs: Sequence[str], tiny: bool) -> list[tuple[type[RewardModel], Any, float]]:
    """Return the class, options and weight of each spec; raises ``InputError``."""
    if not specs:
        raise InputError("No reward was given: use --reward NAME. `dpok rewards` lists them.")
    resolved = []
    for text in specs:
        spec = parse_spec(text)
        cls = registry().get(spec.name)
        default = {"model": "tiny"} if tiny and cls.has_tiny else {}
        options = make_options(cls, default | spec.options)
        if issubclass(cls, EnvironmentReward):
            cls.environment.check(cls.name)
        resolved.append((cls, options, spec.weight))
    return resolved


def _make(cls: type[RewardModel], options: Any, device: str | torch.device) -> RewardModel:
    with plugin_code(lambda error: RewardError(f"{cls.name}: {type(error).__name__}: {error}")):
        return cls(options, device)


def local_files(make: Callable[[], RewardModel]) -> tuple[Path, ...] | None:
    """Return the files that a reward reads, if it can be made and all are on this machine."""
    with suppress(RewardError), plugin_code(_one_line):
        files = tuple(make().files(local_only=True))
        if all(file.exists() for file in files):
            return files
    return None


def _one_line(error: BaseException) -> RewardError:
    return RewardError(" ".join(f"{type(error).__name__}: {error}".split()))


def _allowed_entry_points() -> list[EntryPoint]:
    allowed = os.environ.get(ALLOWED)
    names = {_canonical(name) for name in (allowed or "").split(",")} | {OWN_PACKAGE}
    points = [
        point
        for point in entry_points(group=hookspecs.GROUP)
        if allowed is None or _package(point)[0] in names
    ]
    return sorted(points, key=lambda point: (_package(point)[0] != OWN_PACKAGE, *_package(point)))


def _package(point: EntryPoint) -> tuple[str, str]:
    """Return the name and version of the distribution of an entry point."""
    if point.dist is None:
        return UNKNOWN, UNKNOWN
    return _canonical(point.dist.name), point.dist.version


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def _check(reward: object) -> None:
    if not isinstance(reward, type) or not issubclass(reward, RewardModel):
        raise TypeError(f"{reward!r} is not a subclass of RewardModel")
    name = getattr(reward, "name", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"{reward.__name__}.name is {name!r}, not of the form 'my-reward'")
    if not dataclasses.is_dataclass(reward.Options):
        raise TypeError(f"{reward.__name__}.Options is not a dataclass")
    if issubclass(reward, EnvironmentReward):
        if not isinstance(getattr(reward, "environment", None), Environment):
            raise TypeError(f"{reward.__name__}.environment is not an Environment")
        if not isinstance(getattr(reward, "worker", None), Path):
            raise TypeError(f"{reward.__name__}.worker is not the Path of a file")
    scoring = [method for method in ("score_batch", "score_group") if defines(reward, method)]
    if not scoring:
        raise TypeError(f"{reward.__name__} defines neither score_batch nor score_group")
    if len(scoring) == 2 and not defines(reward, "compares"):
        raise TypeError(
            f"{reward.__name__} defines score_batch and score_group, but not compares, which says"
            " which of them scores"
        )
