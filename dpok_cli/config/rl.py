"""Settings of `dpok train-rl` that belong to the loop; the objectives bring the others."""

from dataclasses import dataclass
from typing import Literal

from dpok_cli.config.fields import Held, above, at_least, changed, setting, within
from dpok_cli.config.training import Schedule, TrainingConfig

AdvantageForm = Literal["reward", "value", "prompt"]
Mix = Literal["rewards", "advantages"]
TimestepChoice = Literal["noisiest", "random"]


@dataclass(frozen=True)
class RLConfig(TrainingConfig):
    """The loop of online RL: a round samples ``samples_per_round`` images and updates on them."""

    rounds: int = setting(
        40,
        "Rollout",
        "Training rounds, each of sampling and updates.",
        at_least(1),
        may_change=True,
    )
    samples_per_round: int = setting(
        24, "Rollout", "Images sampled per round (m in the paper).", at_least(1)
    )
    #: 1 compares all samples of a prompt, each with its own x_T.
    group_size: int = setting(
        3,
        "Rollout",
        "Images of a prompt that start from the same noise x_T, so that --advantage prompt can"
        " subtract the effect of x_T.",
        at_least(1),
    )
    timestep_fraction: float = setting(
        0.4,
        "Rollout",
        "Fraction of each trajectory's denoising steps to train on.",
        within(0, 1, "(]"),
    )
    timestep_choice: TimestepChoice = setting(
        "noisiest",
        "Rollout",
        "Which steps that fraction is: the noisiest, or random ones per trajectory.",
    )
    noise_window: bool = setting(
        True,
        "Rollout",
        "Noise only in the steps that are trained on, the noisiest; the others are deterministic.",
    )
    rest_steps: int = setting(
        3,
        "Rollout",
        "Denoising steps after the noise window, which cost time but are not trained on; 0 keeps"
        " them all.",
        at_least(0),
    )
    buffer_size: int = setting(
        0,
        "Rollout",
        "Replay buffer size, in transitions; 0 is on-policy.",
        at_least(0),
    )

    advantage: AdvantageForm = setting(
        "prompt",
        "Objective",
        "Advantage: the reward itself, minus a value function, or normalised per prompt.",
    )
    mix: Mix = setting(
        "rewards",
        "Objective",
        "What is summed over several --reward: the rewards, or the advantage of each, in units of"
        " its own spread (with --advantage prompt).",
    )
    advantage_clip: float = setting(
        5.0, "Objective", "Clip range of the advantages, ± this; 0 turns it off.", at_least(0)
    )

    # A high learning rate that decays to 0.
    batch_size: int = changed(TrainingConfig, "batch_size", 48)
    learning_rate: float = changed(TrainingConfig, "learning_rate", 5e-3)
    lr_schedule: Schedule = changed(TrainingConfig, "lr_schedule", "cosine")
    # A mean of the gradient's square over some 25 rounds: with 0.999 a larger gradient late in a
    # short run is many steps at once, with 0.95 the small ones of right images are full steps.
    adam_beta2: float = changed(TrainingConfig, "adam_beta2", 0.99)
    max_grad_norm: float = changed(TrainingConfig, "max_grad_norm", 0.02)
    updates_per_round: int = setting(4, "Optimisation", "Optimizer steps per round.", at_least(1))
    value_learning_rate: float = setting(
        1e-4,
        "Optimisation",
        "Learning rate of the value function (--advantage value).",
        above(0),
    )
    value_updates: int = setting(
        5, "Optimisation", "Optimizer steps of the value function per round.", at_least(1)
    )
    value_batch_size: int = setting(
        256, "Optimisation", "Transitions per step of the value function.", at_least(1)
    )

    patience: int = changed(TrainingConfig, "patience", 2)
    checkpoint_every: int = changed(
        TrainingConfig, "checkpoint_every", 1, help="Rounds between checkpoints; 0 writes none."
    )
    sample_every: int = changed(
        TrainingConfig, "sample_every", 5, help="Rounds between sample grids; 0 draws none."
    )

    def held(self) -> list[Held]:
        samples, transitions = self.samples_per_round, self.transitions_per_round
        kept = min(self.buffer_size, self.rounds * transitions)
        return [
            *super().held(),
            Held("samples_per_round", samples * (self.num_inference_steps + 1), samples),
            Held("buffer_size", 2 * max(kept, transitions)),
        ]

    @property
    def window(self) -> tuple[float, int] | None:
        return (self.timestep_fraction, self.rest_steps) if self.noise_window else None

    @property
    def steps_per_image(self) -> int:
        """Denoising steps of a rollout."""
        steps, trained = self.num_inference_steps, self.steps_trained
        if self.noise_window and self.rest_steps:
            return min(steps, trained + self.rest_steps)
        return steps

    @property
    def steps_trained(self) -> int:
        """Of those, the steps trained on."""
        return max(1, round(self.timestep_fraction * self.num_inference_steps))

    @property
    def transitions_per_round(self) -> int:
        """Transitions that a round adds to the buffer."""
        return self.samples_per_round * self.steps_trained
