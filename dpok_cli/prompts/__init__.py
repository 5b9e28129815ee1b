"""Prompts.

In: files of prompts, and trained prompts.
Out: prompts, and partners not trained on.

Nothing here imports torch.
"""
