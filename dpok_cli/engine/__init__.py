"""The engine. Nothing in it prints.

In: a checked config, a reward, and what is on disk.
Out: records, images, adapters and results.
"""
