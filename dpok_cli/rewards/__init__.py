"""Rewards: their contract, the grammar of ``--reward``, and plugin discovery.

In: reward specs, then images and their prompts.
Out: scores, raw by reward and as a weighted sum.

Nothing here imports torch before a reward is used.
"""
