"""The contract of a reward: what its author writes, and the checks around it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dpok_cli.errors import DpokError, RewardError
from dpok_cli.rewards.guard import plugin_code

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class RewardModel:
    """A score for an image and its prompt; the docstring's first line is shown by ``dpok rewards``.

    A subclass defines ``name`` and either ``score_batch`` or, if it compares the images of a prompt
    with each other, ``score_group``; usually ``load``; and overrides the other members as needed.
    Callers use ``score``.
    """

    #: The name in ``--reward`` and in the logs: lower case, digits and hyphens.
    name: ClassVar[str]
    #: Whether training should raise the score; if not, a weighted sum subtracts it.
    higher_is_better: ClassVar[bool] = True
    #: The minimum and maximum score, if they exist.
    range: tuple[float, float] | None = None
    #: Whether gradients flow from the score to the images.
    differentiable: ClassVar[bool] = False
    #: The maximum number of images per call of ``score_batch``.
    batch_size: ClassVar[int] = 32
    #: Whether it computes on ``self.device``. If not (it calls a server or measures a file),
    #: ``score_batch`` can run in a thread while the next images are sampled.
    needs_device: ClassVar[bool] = True

    #: Whether the option ``model`` accepts "tiny", for a version that knows the tiny world.
    has_tiny: ClassVar[bool] = False

    @dataclass(frozen=True)
    class Options:
        """The reward's options: bool, int, float, str, Literal, or one of these ``| None``."""

    def __init__(self, options: Any = None, device: str | torch.device = "cpu"):
        """Store ``options`` (an ``Options``; default: all defaults). Must stay cheap."""
        self.options: Any = self.Options() if options is None else options
        self.device = device
        self._loaded = False

    def files(self, local_only: bool = False) -> tuple[Path, ...]:
        """Find the files that ``load`` reads, also on the hub unless ``local_only``.

        ``dpok rewards`` uses it to show whether they are on this machine. Raises ``RewardError`` if
        they are not found.
        """
        return ()

    def load(self) -> None:
        """Load what scoring needs to ``self.device``; called once, before the first score.

        Gradients must flow to the images only, not to the loaded weights.
        """

    def unread(self, prompt: str) -> str:
        """Return the end of a prompt that is not read, or ""; called once loaded.

        Commands name it, so that nobody takes a score for one of the whole prompt.
        """
        return ""

    @property
    def compares(self) -> bool:
        """Whether ``score_group`` gives the scores; a class that has both overrides this."""
        return defines(type(self), "score_group")

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score RGB float32 images (B, 3, H, W) in [0, 1], on ``self.device``; return (B,).

        ``images`` and ``prompts`` are copies, which may be changed.
        """
        raise NotImplementedError

    def score_group(self, images: Tensor, prompt: str) -> Tensor:
        """Compare RGB float32 images (N, 3, H, W) in [0, 1] of one prompt; return (N,).

        These are all images of the prompt that are scored together, whatever ``batch_size`` is: in
        training those of a round, in an evaluation those of all models. N may be 1. They are on
        ``self.device``, and a copy, which may be changed.
        """
        raise NotImplementedError

    def stop(self) -> None:
        """Cancel scoring that is running in another thread, if it can take long."""

    def score(self, images: Tensor, prompts: list[str], *, grad: bool = False) -> Tensor:
        """Score RGB float images (B, 3, H, W) in [0, 1] for their B prompts.

        Returns float32 (B,) on the images' device, with gradients to the images only if ``grad``.
        A reward that ``compares`` takes images of the same prompt as one group, in their order.
        Raises ``RewardError``, starting with the reward's name, if the reward raises an exception,
        if it returns a wrong shape, integers, NaN or infinity, or if ``grad`` is requested but the
        reward is not differentiable.
        """
        import torch

        if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
            raise self._error(f"images must be float (B, 3, H, W), not {_describe(images)}")
        if not 0 < len(images) == len(prompts):
            raise self._error(f"got {len(images)} images but {len(prompts)} prompts")
        if grad and not self.differentiable:
            raise self._error("is not differentiable")
        self.prepare()
        score = self._score_groups if self.compares else self._score_batches
        with torch.set_grad_enabled(grad):
            return score(images, prompts).to(images.device)

    def prepare(self) -> None:
        """Load now instead of before the first score; raises ``RewardError``."""
        if not self._loaded:
            with plugin_code(lambda error: self._error(error, "could not be loaded: ")):
                self.load()
            self._loaded = True

    def _score_batches(self, images: Tensor, prompts: list[str]) -> Tensor:
        import torch

        scores = []
        for start in range(0, len(images), self.batch_size):
            chunk = slice(start, start + self.batch_size)
            texts = prompts[chunk]
            scores.append(self._checked(self.score_batch, images[chunk], list(texts), texts))
        return torch.cat(scores)

    def _score_groups(self, images: Tensor, prompts: list[str]) -> Tensor:
        import torch

        groups: dict[str, list[int]] = {}
        for row, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(row)
        scores = [
            self._checked(self.score_group, images[rows], prompt, [prompt] * len(rows))
            for prompt, rows in groups.items()
        ]
        order = torch.tensor([row for rows in groups.values() for row in rows])
        return torch.cat(scores)[order.argsort()]

    def _checked(
        self, score: Callable[..., Any], images: Tensor, what: Any, prompts: list[str]
    ) -> Tensor:
        """Return the scores (B,) that ``score(images, what)`` gives of B images and prompts."""
        import torch

        # Copies, so that nothing the plugin changes in place reaches another reward or a file.
        images = images.to(self.device, torch.float32, copy=True)
        with plugin_code(self._error):
            scores = score(images, what)
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

    def _error(self, what: BaseException | str, before: str = "") -> RewardError:
        """Return a one-line error that starts with this reward's name."""
        if isinstance(what, DpokError):
            message = str(what).removeprefix(f"{self.name}: ")
        elif isinstance(what, BaseException):
            message = f"{type(what).__name__}: {what}"
        else:
            message = what
        return RewardError(f"{self.name}: {before}{' '.join(message.split())}")


def defines(reward: type[RewardModel], method: str) -> bool:
    """Whether the class of a reward defines a method that ``RewardModel`` leaves open."""
    return getattr(reward, method) is not getattr(RewardModel, method)


def _describe(tensor: Tensor) -> str:
    shape = ", ".join(map(str, tensor.shape)) + ("," if tensor.ndim == 1 else "")
    return f"{str(tensor.dtype).removeprefix('torch.')} ({shape})"
