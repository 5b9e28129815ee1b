"""Supervised fine-tuning.

In: a model, a reward and settings.
Out: a trained adapter, and records.
"""
