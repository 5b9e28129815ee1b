"""The settings of `dpok train-rl`: those of the loop, and those that each objective brings.

They are defined here, above the objectives, since `dpok_cli.config` imports no objective.
"""

from dataclasses import dataclass, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from dpok_cli.config.fields import must, setting
from dpok_cli.config.rl import RLConfig
from dpok_cli.engine.rl.objectives import OBJECTIVES
from dpok_cli.engine.rl.objectives.base import Objective
from dpok_cli.errors import InputError, suggest

if TYPE_CHECKING:
    from dpok_cli.engine.rl.objectives.mixed import MixedSettings as _ObjectiveSettings
else:
    _all = dict.fromkeys(objective.Settings for objective in OBJECTIVES.values())
    # Without those that another is derived from, which brings theirs.
    _parts = [one for one in _all if not any(one in other.__mro__[1:] for other in _all)]
    _ObjectiveSettings = make_dataclass("_ObjectiveSettings", (), bases=(*_parts,), frozen=True)


@dataclass(frozen=True)
class TrainRLConfig(_ObjectiveSettings, RLConfig):
    """`dpok train-rl`: online RL, by default DPOK (Fan et al., NeurIPS 2023, arXiv 2305.16381)."""

    command: ClassVar[str] = "train-rl"

    objective: str = setting(
        "mixed",
        "Objective",
        "What the updates minimise: DPOK's policy gradient, DiffusionNFT's loss, or both (mixed).",
        metavar="|".join(OBJECTIVES),
    )

    def check(self, config: Any) -> None:
        if self.objective not in OBJECTIVES:
            advice = suggest(self.objective, OBJECTIVES)
            raise InputError(f"--objective {self.objective!r}: no such choice.{advice}")
        what = "rewards without --advantage prompt, whose unit makes rewards comparable"
        must(self.mix == "rewards" or self.advantage == "prompt", "mix", self.mix, what)
        self.objective_class.check(self)

    @property
    def objective_class(self) -> type[Objective]:
        return OBJECTIVES[self.objective]

    @property
    def method(self) -> str:
        """How the adapter is trained, in one phrase for its model card."""
        return self.objective_class.method
