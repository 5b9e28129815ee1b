"""LoRA adapters.

In: a denoiser, or a file of weights.
Out: weights to train, files and model cards.
"""
