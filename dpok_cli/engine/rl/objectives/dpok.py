"""DPOK: a clipped policy gradient with the KL to the pre-trained model (Fan et al. 2023, Eq. 9).

The settings and measures are read without torch, so only functions import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from dpok_cli.config import KLForm
from dpok_cli.config.fields import above, must, setting
from dpok_cli.engine.rl.objectives.base import (
    BETA,
    KLObjective,
    KLSettings,
    Loss,
    Measured,
    Ranks,
)
from dpok_cli.engine.runs.measures import Measure, Record
from dpok_cli.errors import InputError

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from dpok_cli.engine.bases.conditioning import Conditioning
    from dpok_cli.engine.rl.rollout import Trajectories, Transitions
    from dpok_cli.engine.sampling.step import Gaussian

ClipForm = Literal["ppo", "clamp"]
KLPlace = Literal["loss", "reward"]


@dataclass(frozen=True)
class DPOKSettings(KLSettings):
    """The settings of the objective."""

    alpha: float = setting(1.0, "Objective", "Weight of the policy-gradient loss.", above(0))
    kl: KLForm = setting(
        "epsilon",
        "Objective",
        "KL penalty: on the predicted noise, as in the released code, or between the Gaussians.",
    )
    kl_in: KLPlace = setting(
        "loss",
        "Objective",
        "Where the KL penalty is: in the loss, or in the reward, which then loses beta times the"
        " trajectory's log-ratio to the reference model (a pass of it in each rollout step).",
    )
    ratio_clip: float = setting(
        1e-2, "Objective", "Clip range of the policy ratio, 1 ± this.", above(0)
    )
    clip_form: ClipForm = setting(
        "ppo",
        "Objective",
        "Ratio clipping: PPO's minimum, or a bare clamp as in the released code.",
    )


def policy_loss(ratio: Tensor, advantage: Tensor, ratio_clip: float, clip_form: ClipForm) -> Tensor:
    """Return the clipped policy-gradient loss of each transition, (B,).

    With c(rho) the ratio rho clipped to [1 - ratio_clip, 1 + ratio_clip] and A the advantage:

        "ppo":    -min(rho A, c(rho) A)     (Schulman et al. 2017, arXiv 1707.06347, Eq. 7)
        "clamp":  -c(rho) A                 (the released DPOK code)

    At rho = 1 both have the gradient of -A log p (DPOK, Eq. 9 and App. A.6). Outside the band
    "clamp" has none in either direction: a transition that went the wrong way is never corrected.
    """
    clipped = ratio.clamp(1 - ratio_clip, 1 + ratio_clip)
    if clip_form == "clamp":
        return -clipped * advantage
    return -(ratio * advantage).minimum(clipped * advantage)


def dpok_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    kl: Tensor,
    *,
    alpha: float,
    beta: float,
    ratio_clip: float,
    clip_form: ClipForm = "ppo",
) -> Loss:
    """DPOK's loss with the KL to the pre-trained model (Fan et al. 2023, Eq. 9, Alg. 1).

        L = mean over transitions of  alpha * policy_loss(p_theta / p_old, A)  +  beta * KL

    ``log_prob`` (under the policy), ``old_log_prob`` (when the transition was drawn), ``advantage``
    and ``kl`` are all (B,); gradients flow through ``log_prob`` and ``kl`` only. Measures "kl" (a
    scalar, the batch's mean) and "ratio" (B,).
    """
    ratio = (log_prob - old_log_prob.detach()).exp()  # (B,)
    policy = policy_loss(ratio, advantage.detach(), ratio_clip, clip_form).mean()
    divergence = kl.mean()
    measured = {"kl": divergence.detach(), "ratio": ratio.detach()}
    return Loss(alpha * policy + beta * divergence, measured)


def _ratio_off(records: Sequence[Record], config: Any) -> str | None:
    deviation = records[-1]["ratio/first_max_dev"]
    if deviation <= 0.1 * config.ratio_clip:
        return None
    return (
        f"Before the first update the ratio is off 1 by {deviation:.0e}, which is much of"
        f" --ratio-clip {config.ratio_clip:g}: train in fp32, or raise the clip."
    )


def _clipped(records: Sequence[Record], config: Any) -> str | None:
    fraction = records[-1]["clip_fraction"]
    if fraction <= 0.6:
        return None
    return (
        f"{fraction:.0%} of the ratios are clipped and have no gradient: lower --learning-rate or"
        " --updates-per-round, or raise --ratio-clip."
    )


class DPOK(KLObjective):
    """Learns from the transitions of each trajectory, by the ratio to the policy that drew them."""

    name = "dpok"
    method = "online RL (DPOK, arXiv 2305.16381)"
    needs = "trajectory"
    Settings = DPOKSettings
    measures: ClassVar[tuple[Measure, ...]] = (
        Measure(
            "kl",
            "Mean KL (of the chosen form) to the pre-trained model, over `--kl-fraction` of the"
            " transitions trained on; over one in eight at most with `--beta 0`.",
            "Grows slowly. A jump means that the learning rate is too high.",
            label="kl",
            form=".2e",
            plotted=True,
        ),
        BETA,
        Measure("loss", "The loss.", "Says little: with centred advantages it stays near 0."),
        Measure(
            "ratio/mean",
            "Mean ratio over the round's updates.",
            "1 within the clip.",
            label="ratio",
            form=".4f",
        ),
        Measure(
            "ratio/first_max_dev",
            r"Largest \|ratio - 1\| of fresh transitions before the round's first update.",
            "1e-6 or less in fp32. A value near the clip is a numerical fault.",
            advice=_ratio_off,
        ),
        Measure(
            "clip_fraction",
            "Fraction of transitions whose ratio left the clip range.",
            "Up to about a half. Near 1 most updates have no gradient.",
            label="clipped",
            form=".0%",
            advice=_clipped,
        ),
    )

    @classmethod
    def check(cls, config: Any) -> None:
        what = "> 0 to train (without noise there is no policy)"
        must(config.eta > 0, "eta", config.eta, what)
        choice = config.timestep_choice
        what = "noisiest with --noise-window, which leaves no noise elsewhere"
        must(choice == "noisiest" or not config.noise_window, "timestep_choice", choice, what)
        what = "rewards with --kl-in reward, which takes the penalty off their sum"
        must(config.mix == "rewards" or config.kl_in == "loss", "mix", config.mix, what)

    @classmethod
    def kind(cls) -> type[Transitions]:
        from dpok_cli.engine.rl.rollout import Transitions

        return Transitions

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        if not len(self.sampler.denoising.stochastic):
            config = self.config
            window = config.noise_window
            share = f" with --timestep-fraction {config.timestep_fraction}" if window else ""
            raise InputError(
                f"--eta {config.eta} and --num-inference-steps {config.num_inference_steps}{share}"
                " leave no step with noise in it, so there is no policy: raise them"
                f"{', or give --no-noise-window' if window else ''}."
            )

    @property
    def kl_in_reward(self) -> float:
        return self.kl_weight.beta if self.config.kl_in == "reward" else 0.0

    def choose(self, samples: int, random: Generator) -> Tensor:
        """Choose the denoising steps of each sample to train on, long (M, kept)."""
        from dpok_cli.engine.rl.rollout import choose_steps

        config, stochastic = self.config, self.sampler.denoising.stochastic
        fraction, choice = config.timestep_fraction, config.timestep_choice
        if config.noise_window:  # which has left noise in that fraction of the steps
            fraction = 1.0
        return choose_steps(samples, stochastic, fraction, choice, random)

    def examples(
        self, trajectories: Trajectories, rewards: Tensor, advantages: Tensor, chosen: Tensor
    ) -> Transitions:
        """Return the transitions of the chosen steps."""
        from dpok_cli.engine.rl.rollout import transitions

        return transitions(trajectories, rewards, advantages, chosen)

    def loss(self, batch: Transitions, with_kl: bool = True) -> Loss:
        """Return `dpok_loss` of a batch of transitions, with a KL of 0 unless ``with_kl``."""
        config = self.config
        texts = self.conditioning[batch.prompt].to(batch.latents.device)
        policy = self.sampler.policy(batch.latents, batch.step, texts)
        timesteps = self.sampler.denoising.timesteps[batch.step]
        advantage = self.advantage.of_examples(batch, texts, timesteps)
        if config.advantage_clip:
            advantage = advantage.clamp(-config.advantage_clip, config.advantage_clip)
        return dpok_loss(
            policy.log_prob(batch.next_latents),
            batch.log_prob,
            advantage,
            self._kl(batch, policy, texts) if with_kl else policy.output.new_zeros(1),
            alpha=config.alpha,
            beta=self.kl_weight.beta if config.kl_in == "loss" else 0.0,
            ratio_clip=config.ratio_clip,
            clip_form=config.clip_form,
        )

    def _kl(self, batch: Transitions, policy: Gaussian, texts: Conditioning) -> Tensor:
        some = slice(self.config.kl_rows(len(batch)))
        reference = self.sampler.reference(batch.latents[some], batch.step[some], texts[some])
        return policy[some].kl(reference, self.config.kl)

    def metrics(self, measured: Sequence[Measured], ranks: Ranks) -> dict[str, float]:
        import torch

        ratio = torch.cat([each.values["ratio"] for each in measured])
        # Before the first update nothing has changed, so fresh transitions must have a ratio of 1.
        deviations = [
            deviation
            for each in measured
            if each.update == 0
            for deviation in (each.values["ratio"] - 1).abs()[each.fresh].tolist()
        ]
        kl = ranks.mean([each.values["kl"] for each in measured])
        return {
            "kl": kl,
            **self.kl_weight.follow(kl),
            "loss": ranks.mean([each.loss for each in measured]),
            "ratio/mean": ranks.mean([ratio]),
            "ratio/first_max_dev": ranks.largest(max(deviations, default=0.0)),
            "clip_fraction": ranks.mean([(ratio - 1).abs() > self.config.ratio_clip]),
        }
