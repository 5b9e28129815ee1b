"""The commands, one file each: resolve settings, load, iterate, show.

In: flags.
Out: an exit code and terminal output.

Nothing here imports torch before the flags are checked.
"""
