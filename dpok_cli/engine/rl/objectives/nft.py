"""NFT: rewards weight the denoising error of what was drawn (DiffusionNFT, arXiv 2509.16117).

The settings and measures are read without torch, so only functions import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dpok_cli.config.fields import above, at_least, must, setting, within
from dpok_cli.engine.rl.objectives.base import (
    BETA,
    KLObjective,
    KLSettings,
    Loss,
    Measured,
    Ranks,
)
from dpok_cli.engine.runs.measures import Measure

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from dpok_cli.engine.bases.conditioning import Conditioning
    from dpok_cli.engine.rl.rollout import NoisedImages, Trajectories


@dataclass(frozen=True)
class NFTSettings(KLSettings):
    """The settings of the objective."""

    nft_strength: float = setting(
        1.0,
        "Objective",
        "How far the two implicit policies of --objective nft or mixed are from the one that drew"
        " (b).",
        above(0),
    )
    #: A round that goes too far is seldom undone: the KL's weight follows it a round later.
    change_limit: float = setting(
        1.5e-4,
        "Objective",
        "Trust region of --objective nft or mixed: the largest mean squared change of the"
        " prediction in a round, whose updates are shortened to it; 0 sets none.",
        at_least(0),
    )
    #: What is left of x_0 in noisier ones is too little for the model to be right about it.
    least_signal: float = setting(
        0.18,
        "Objective",
        "Images of --objective nft or mixed are noised to levels where at least this factor of them"
        " is left, or to the cleanest of the steps if none is so clean.",
        within(0, 1, "[)"),
    )
    #: At 0 the predictions with and without the prompt drift apart, which guidance amplifies.
    prompt_dropout: float = setting(
        0.2,
        "Objective",
        "Fraction of the examples of --objective nft or mixed trained on the negative prompt, for"
        " classifier-free guidance.",
        within(0, 1, "[)"),
    )


def nft_loss(
    output: Tensor,
    old_output: Tensor,
    target: Tensor,
    advantage: Tensor,
    kl: Tensor,
    *,
    strength: float,
    advantage_clip: float,
    beta: float,
) -> Loss:
    """DiffusionNFT's loss with a KL to the pre-trained model (Zheng et al. 2025).

    With f the policy's prediction at x_t (without classifier-free guidance, see `NFT`), f_old that
    of the policy that drew x_0, v the target at x_t, and b the ``strength``:

        r  = 1/2 + clip(A / advantage_clip, -1, 1) / 2              how likely x_0 is a good one
        f+ = (1 - b) f_old + b f        f- = (1 + b) f_old - b f
        L  = mean over examples of  r |f+ - v|^2 / w+  +  (1 - r) |f- - v|^2 / w-  +  beta * KL

    where w is the mean of |f+ - v| or |f- - v|, as a constant. ``output``, ``old_output`` and
    ``target`` are (B, C, H, W), ``advantage`` is (B,), ``kl`` (N,) of any N; gradients flow
    through ``output`` and ``kl`` only. Measures "kl" and "change" (|f - f_old|^2), scalars.
    """
    old, advantage = old_output.detach(), advantage.detach()
    good = 0.5 + 0.5 * (advantage / advantage_clip).clamp(-1, 1)  # (B,)
    change = output - old
    positive = _error(old + strength * change, target)
    negative = _error(old - strength * change, target)
    divergence = kl.mean()
    loss = (good * positive + (1 - good) * negative).mean() + beta * divergence
    return Loss(loss, {"kl": divergence.detach(), "change": change.detach().square().mean()})


def _error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the squared error over the mean absolute error, which is a constant, (B,)."""
    error = prediction - target
    scale = error.detach().abs().mean(dim=(1, 2, 3))
    return error.square().mean(dim=(1, 2, 3)) / scale.clamp(min=1e-5)


KL = Measure(
    "kl",
    "Mean squared distance of the prediction to the pre-trained model's.",
    "Grows slowly. A jump means that the learning rate is too high.",
    label="kl",
    form=".2e",
    plotted=True,
)
CHANGE = Measure(
    "change",
    "Mean squared change of the prediction within the round, over its updates.",
    "Far below `kl` after some rounds.",
    label="change",
    form=".2e",
)
STEP_KEPT = Measure(
    "step_kept",
    "Part of the round's updates that is kept, with `--change-limit`.",
    "1 in most rounds. If not, lower --learning-rate.",
)


def trust(change: float, limit: float) -> dict[str, float]:
    """Return what there is to log of a round's ``change``, with a ``limit`` above 0: `step_kept`.

    The change grows with the square of the step.
    """
    return {STEP_KEPT.key: min(1.0, (limit / max(change, 1e-12)) ** 0.5)} if limit else {}


class NFT(KLObjective):
    """Learns from x_0 alone: what got a reward above the baseline is denoised to, the rest from."""

    name = "nft"
    method = "online RL (DiffusionNFT, arXiv 2509.16117)"
    needs = "x_0"
    Settings = NFTSettings
    measures: ClassVar[tuple[Measure, ...]] = (
        KL,
        BETA,
        Measure("loss", "The loss.", "Says little: its minimum moves with the policy."),
        CHANGE,
        STEP_KEPT,
    )

    @classmethod
    def check(cls, config: Any) -> None:
        what = f"> 0 with --objective {config.objective}, whose weights it scales"
        must(config.advantage_clip > 0, "advantage_clip", config.advantage_clip, what)
        what = "prompt or reward with --objective nft: the value function is of transitions"
        alone = config.objective == cls.name
        must(not alone or config.advantage != "value", "advantage", config.advantage, what)
        what = "loss without --objective dpok, whose steps have the log-ratio"
        must(config.kl_in == "loss", "kl_in", config.kl_in, what)
        what = "1 with --objective nft and --eta 0: samples of one x_T would be equal"
        alike = config.eta == 0 and config.advantage == "prompt" and config.group_size > 1
        must(not alike, "group_size", config.group_size, what)

    @classmethod
    def kind(cls) -> type[NoisedImages]:
        from dpok_cli.engine.rl.rollout import NoisedImages

        return NoisedImages

    def __init__(self, *parts: Any):
        import torch

        super().__init__(*parts)
        self.may_shorten = self.config.change_limit > 0
        # Guided, the error has a part that is no error: guidance goes beyond the target on purpose.
        embedded, scale = self.sampler.model.base.embeds_guidance, self.config.guidance_scale
        self.guidance = scale if embedded else 1.0
        self.dropout = self.config.prompt_dropout if scale > 1 and not embedded else 0.0
        self.texts = self.conditioning.with_negative()
        # Of all steps, from the noisiest. The adapter acts in each of them: one that neither a loss
        # nor the KL looks at drifts, until what it does to the image outweighs what was learned.
        signal = self.sampler.denoising.signal.cpu()
        self.levels = (signal >= self.config.least_signal).nonzero().flatten()
        if not len(self.levels):  # as with few steps of flow matching: the cleanest of them
            self.levels = torch.tensor([len(signal) - 1])

    def choose(self, samples: int, random: Generator) -> Tensor:
        """Choose as many examples of each sample as steps are trained on; see `draw`."""
        return self.draw(samples, self.config.steps_trained, random)

    def draw(self, samples: int, count: int, random: Generator) -> Tensor:
        """Return ``count`` examples to make of each of M samples, long (M, count, 3).

        They are at the levels in turn, from sample to sample, each with a seed for its noise, and 1
        if its prompt is dropped.
        """
        import torch

        turn = torch.arange(samples * count).view(samples, count) % len(self.levels)
        steps = self.levels[turn]
        seeds = torch.randint(2**62, (samples, count), generator=random)
        dropped = torch.rand((samples, count), generator=random) < self.dropout
        return torch.stack([steps, seeds, dropped], dim=2).to(self.sampler.model.device)

    def examples(
        self, trajectories: Trajectories, rewards: Tensor, advantages: Tensor, chosen: Tensor
    ) -> NoisedImages:
        """Return the images at the chosen noise levels, with the current policy's predictions."""
        from dpok_cli.engine.rl.rollout import noised_images

        steps, seeds, dropped = chosen.unbind(2)
        negative = len(self.conditioning)  # the last of `texts`
        prompt = trajectories.prompt[:, None].where(dropped == 0, negative)
        return noised_images(
            self.sampler,
            self.texts,
            trajectories,
            rewards,
            advantages,
            steps,
            seeds,
            prompt,
            self.guidance,
        )

    def loss(self, batch: NoisedImages, beta: float | None = None) -> Loss:
        """Return `nft_loss` of a batch of noised images, with a ``beta`` of its own if given."""
        config = self.config
        texts = self.texts[batch.prompt].to(batch.latents.device)
        output = self.sampler.predict(batch.latents, batch.step, texts, self.guidance)
        return nft_loss(
            output,
            batch.old_output,
            batch.target,
            batch.advantage,
            self._kl(batch, output, texts),
            strength=config.nft_strength,
            advantage_clip=config.advantage_clip,
            beta=self.kl_weight.beta if beta is None else beta,
        )

    def _kl(self, batch: NoisedImages, output: Tensor, texts: Conditioning) -> Tensor:
        import torch

        from dpok_cli.engine.sampling.step import epsilon_kl

        some = slice(self.config.kl_rows(len(batch)))
        with torch.no_grad(), self.sampler.model.reference():
            reference = self.sampler.predict(
                batch.latents[some], batch.step[some], texts[some], self.guidance
            )
        return epsilon_kl(output[some], reference)

    def metrics(self, measured: Sequence[Measured], ranks: Ranks) -> dict[str, float]:
        kl = ranks.mean([each.values["kl"] for each in measured])
        change = ranks.mean([each.values["change"] for each in measured])
        return {
            "kl": kl,
            **self.kl_weight.follow(kl),
            "loss": ranks.mean([each.loss for each in measured]),
            "change": change,
            **trust(change, self.config.change_limit),
        }
