"""The commands, one file each: flags, then a config, then the engine, then what a person sees.

Nothing here imports torch before the flags are checked.
"""
