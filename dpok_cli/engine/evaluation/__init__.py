"""Evaluation.

In: models, prompts, seeds and rewards.
Out: scores of every image, and results.
"""
