"""The tiny world: bundled models in Stable Diffusion's own format, small enough to ship.

``folder()`` returns their location; ``README.md`` there is the model card.
"""

from pathlib import Path


def folder(name: str = "pipeline") -> Path:
    """Return the folder of a bundled model: ``pipeline``, or a reward's (``judge``, ``clip``)."""
    return Path(__file__).parent / name
