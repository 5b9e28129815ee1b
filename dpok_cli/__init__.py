"""Fine-tune text-to-image diffusion models from a reward.

What a plugin's author imports: ``RewardModel`` to derive from, ``hookimpl`` to register it with.
"""

from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.hookspecs import hookimpl

__version__ = "0.1.0"
__all__ = ["RewardModel", "__version__", "hookimpl"]
