"""Base models.

In: a hub id or a folder.
Out: a `DiffusionModel`, which the engine draws with and trains.
"""
