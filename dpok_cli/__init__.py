"""Fine-tune text-to-image diffusion models from a reward.

What a plugin's author imports: ``RewardModel`` to derive from, ``hookimpl`` to register it with;
``EnvironmentReward`` and ``Environment`` for a reward whose libraries need an environment of their
own.
"""

from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.environment import Environment
from dpok_cli.rewards.hookspecs import hookimpl
from dpok_cli.rewards.isolated import EnvironmentReward

__version__ = "0.1.0"
__all__ = ["Environment", "EnvironmentReward", "RewardModel", "__version__", "hookimpl"]
