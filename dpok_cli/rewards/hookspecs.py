"""The hook through which a plugin registers its rewards."""

from collections.abc import Callable

import pluggy

from dpok_cli.rewards.base import RewardModel

#: The name of the plugin system and of its entry-point group.
GROUP = "dpok"

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec(historic=True)  # each plugin is called when it is registered
def register_rewards(register: Callable[[type[RewardModel]], None]) -> None:
    """Call ``register`` with each ``RewardModel`` subclass that the plugin offers."""
