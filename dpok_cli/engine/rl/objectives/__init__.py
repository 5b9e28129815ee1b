"""Objectives of online RL, one file each, found by being in this folder.

In: a batch of what a rollout kept.
Out: a loss with gradients, and what it measured.

To add one, add a file with a subclass of `Objective` (base.py lists what it must declare). Its
settings become flags, its measures rows of the view, and its name a choice of --objective.
Nothing here imports torch.
"""

from importlib import import_module
from inspect import isabstract, isclass
from pkgutil import iter_modules

from dpok_cli.engine.rl.objectives.base import Objective


def find_objectives() -> dict[str, type[Objective]]:
    """Return the objectives by name, in the order of their files."""
    modules = [import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__)]
    return {
        each.name: each
        for module in modules
        for each in vars(module).values()
        if isclass(each) and issubclass(each, Objective) and not isabstract(each)
    }


OBJECTIVES = find_objectives()
