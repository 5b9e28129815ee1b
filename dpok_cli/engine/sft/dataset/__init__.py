"""The image set.

In: the reference model, or a folder of images.
Out: latents, prompts and scores.
"""
