"""Prompts.

In: files of prompts, and trained prompts.
Out: prompts, and partners that training has not seen.

Nothing here imports torch.
"""
