"""Sampling.

In: a model, prompts and seeds.
Out: denoising steps with their Gaussians, and images.
"""
