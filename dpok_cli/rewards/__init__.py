"""Rewards: their contract, their grammar on the command line, and how plugins are found.

Nothing here imports torch before a reward is used.
"""
