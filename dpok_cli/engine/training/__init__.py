"""What both trainings share.

In: losses.
Out: optimizer steps, checkpoints, metrics and an adapter.
"""
