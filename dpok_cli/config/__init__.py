"""Settings.

In: flags, TOML files and presets.
Out: one frozen, checked config for a command.

Nothing here imports torch.
"""

from dpok_cli.config.settings import *  # noqa: F403
