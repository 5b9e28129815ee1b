"""The contract of a reward: what its author writes, and what is checked around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dpok_cli.errors import DpokError, RewardError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class RewardModel(ABC):
    """A score for an image and its prompt; the docstring's first line is shown by ``dpok rewards``.

    A subclass gives ``name`` and ``score_batch``, most often ``load``, and the rest where it
    differs. Users call ``score``.
    """

    #: What ``--reward`` and the logs call it: lower case, digits and hyphens.
    name: ClassVar[str]
    #: Whether training should raise the score; if not, a weighted sum subtracts it.
    higher_is_better: ClassVar[bool] = True
    #: The least and the greatest possible score, where there are such.
    range: ClassVar[tuple[float, float] | None] = None
    #: Whether gradients flow from the score to the images.
    differentiable: ClassVar[bool] = False
    #: The most images that ``score_batch`` is given at a time.
    batch_size: ClassVar[int] = 32
    #: Whether ``score_batch`` computes on ``self.device``; if not (it asks a server, or measures a
    #: file), it can score in a thread while the next images are drawn.
    needs_device: ClassVar[bool] = True

    #: Whether its option ``model`` may be "tiny", for a twin that knows the bundled model's world.
    has_tiny: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Options:
        """The reward's options: bool, int, float, str, Literal, or one of these ``| None``."""

    def __init__(self, options: Any = None, device: str | torch.device = "cpu"):
        """Keep ``options`` (an ``Options``; by default one without arguments); must stay cheap."""
        self.options: Any = self.Options() if options is None else options
        self.device = device
        self._loaded = False

    def files(self, local_only: bool = False) -> tuple[Path, ...]:
        """Find the files that ``load`` reads, on the hub too unless ``local_only``.

        ``dpok rewards`` asks, to tell whether they are here. Raises ``RewardError`` if not.
        """
        return ()

    def load(self) -> None:  # noqa: B027 - many rewards have nothing to load
        """Load what ``score_batch`` needs, to ``self.device``; called once, before its first call.

        What is loaded must give gradients to images only, not to its own weights.
        """

    @abstractmethod
    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score RGB float32 images (B, 3, H, W) in [0, 1], on ``self.device``; return (B,)."""

    def stop(self) -> None:  # noqa: B027 - most scores are over soon
        """Give up scoring that is under way in another thread, where it might take long."""

    def score(self, images: Tensor, prompts: list[str], *, grad: bool = False) -> Tensor:
        """Score RGB float images (B, 3, H, W) in [0, 1] for their B prompts.

        Returns float32 (B,) on the images' device, with gradients to the images only if ``grad``.
        Raises ``RewardError``, which begins with the reward's name, if the reward raises anything,
        if it returns another shape, integers, NaN or infinity, or if ``grad`` is asked of a reward
        that is not differentiable.
        """
        import torch

        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise self._error(f"images must be float (B, 3, H, W), not {_describe(images)}")
        if not 0 < len(images) == len(prompts):
            raise self._error(f"{len(images)} images came with {len(prompts)} prompts")
        if grad and not self.differentiable:
            raise self._error("gives no gradients to images")
        self.prepare()
        scores = []
        with torch.set_grad_enabled(grad):
            for start in range(0, len(images), self.batch_size):
                chunk = slice(start, start + self.batch_size)
                scores.append(self._score_chunk(images[chunk], prompts[chunk]))
            return torch.cat(scores).to(images.device)

    def prepare(self) -> None:
        """Load now what would be loaded before the first score; raises ``RewardError``."""
        if not self._loaded:
            try:
                self.load()
            except Exception as error:
                raise self._error(error, "could not be loaded: ") from error
            self._loaded = True

    def _score_chunk(self, images: Tensor, prompts: list[str]) -> Tensor:
        import torch

        try:
            scores = self.score_batch(images.to(self.device, torch.float32), prompts)
        except Exception as error:
            raise self._error(error) from error
        if not isinstance(scores, torch.Tensor):
            raise self._error(f"returned {type(scores).__name__}, not a tensor")
        if scores.shape != (len(images),) or not scores.is_floating_point():
            raise self._error(f"returned {_describe(scores)}, not float ({len(images)},)")
        scores = scores.float()
        bad = ~scores.isfinite()
        if bad.any():
            first = int(bad.nonzero()[0])
            raise self._error(f"returned {scores[first].item()} for {prompts[first]!r}")
        return scores

    def _error(self, what: Exception | str, before: str = "") -> RewardError:
        """Make the one-line error of this reward, in its name."""
        if isinstance(what, DpokError):
            message = str(what).removeprefix(f"{self.name}: ")
        elif isinstance(what, Exception):
            message = f"{type(what).__name__}: {what}"
        else:
            message = what
        return RewardError(f"{self.name}: {before}{' '.join(message.split())}")


def _describe(tensor: Tensor) -> str:
    shape = ", ".join(map(str, tensor.shape)) + ("," if tensor.ndim == 1 else "")
    return f"{str(tensor.dtype).removeprefix('torch.')} ({shape})"
