"""Run folders.

In: a config and metrics.
Out: the files of a run, written atomically.
"""
