"""Both on the same images: DPOK's policy gradient, and DiffusionNFT's loss.

The policy gradient learns what the noise of the steps decides, without bias. DiffusionNFT's loss
has far less variance, and learns what x_T decides too; it is wrong where the model is wrong about
x_0. With a noise window the policy gradient says nothing of the steps after it, in which the
adapter acts as well: there DiffusionNFT's loss and the KL keep it.

The settings and measures are read without torch, so only functions import it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dpok_cli.config.fields import above, must, setting
from dpok_cli.engine.rl.objectives.base import Loss, Measured, Objective, Ranks
from dpok_cli.engine.rl.objectives.dpok import DPOK, DPOKSettings
from dpok_cli.engine.rl.objectives.nft import CHANGE, KL, NFT, STEP_KEPT, NFTSettings, trust
from dpok_cli.engine.runs.measures import Measure

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from dpok_cli.engine.rl.rollout import Both, Trajectories


@dataclass(frozen=True)
class MixedSettings(DPOKSettings, NFTSettings):
    """The settings of the objective."""

    nft_weight: float = setting(
        1.0, "Objective", "Weight of DiffusionNFT's loss in --objective mixed.", above(0)
    )


class Mixed(Objective):
    """Learns from transitions by `DPOK`, and from as many noised images by `NFT`."""

    name = "mixed"
    method = "online RL (DPOK, arXiv 2305.16381, with DiffusionNFT, arXiv 2509.16117)"
    needs = "trajectory"
    Settings = MixedSettings
    measures: ClassVar[tuple[Measure, ...]] = (KL, *DPOK.measures[1:], CHANGE, STEP_KEPT)

    @classmethod
    def check(cls, config: Any) -> None:
        DPOK.check(config)
        NFT.check(config)
        what = "epsilon with --objective mixed, whose KL is that of DiffusionNFT"
        must(config.kl == "epsilon", "kl", config.kl, what)

    @classmethod
    def kind(cls) -> type[Both]:
        from dpok_cli.engine.rl.rollout import Both

        return Both

    def __init__(self, *parts: Any):
        super().__init__(*parts)
        self.may_shorten = self.config.change_limit > 0
        self.dpok, self.nft = DPOK(*parts), NFT(*parts)

    def choose(self, samples: int, random: Generator) -> Tensor:
        """Choose transitions, each with a noised image of its sample: (M, kept, 4)."""
        import torch

        steps = self.dpok.choose(samples, random)
        noised = self.nft.draw(samples, steps.shape[1], random)
        return torch.cat([steps[:, :, None].to(noised.device), noised], dim=2)

    def examples(
        self, trajectories: Trajectories, rewards: Tensor, advantages: Tensor, chosen: Tensor
    ) -> Both:
        """Return the transitions of the chosen steps, each with its noised image."""
        from dpok_cli.engine.rl.rollout import Both

        given = (trajectories, rewards, advantages)
        return Both(
            self.dpok.examples(*given, chosen[:, :, 0]), self.nft.examples(*given, chosen[:, :, 1:])
        )

    def loss(self, batch: Both) -> Loss:
        """Return DPOK's loss without its KL, and `nft_weight` times DiffusionNFT's.

        The KL is taken at the noised images, which are of all steps, and weighs beta.
        """
        weight = self.config.nft_weight
        policy = self.dpok.loss(batch.transitions, with_kl=False)
        forward = self.nft.loss(batch.images, beta=self.dpok.kl_weight.beta / weight)
        return Loss(policy.loss + weight * forward.loss, policy.measured | forward.measured)

    def metrics(self, measured: Sequence[Measured], ranks: Ranks) -> dict[str, float]:
        change = ranks.mean([each.values[CHANGE.key] for each in measured])
        kept = trust(change, self.config.change_limit)
        return self.dpok.metrics(measured, ranks) | {CHANGE.key: change} | kept

    def state_dict(self) -> dict[str, Any]:
        return self.dpok.state_dict()

    def load_state_dict(self, state: Any) -> None:
        self.dpok.load_state_dict(state)
