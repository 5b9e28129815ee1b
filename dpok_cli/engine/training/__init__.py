"""What both trainings hold.

In: losses.
Out: optimizer steps, checkpoints, metrics and an adapter.
"""
