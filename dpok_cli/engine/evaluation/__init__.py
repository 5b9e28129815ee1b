"""Evaluation.

In: models, prompts, seeds and rewards.
Out: a score of every image, and results with their reports.
"""
