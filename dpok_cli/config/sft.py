"""Settings of `dpok train-sft`."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from dpok_cli.config.fields import Held, at_least, changed, setting, within
from dpok_cli.config.training import TrainingConfig

SFTForm = Literal["kl-d", "kl-o"]


@dataclass(frozen=True)
class TrainSFTConfig(TrainingConfig):
    """`dpok train-sft`: the paper's baseline, reward-weighted supervised fine-tuning (Sec. 4.3)."""

    command: ClassVar[str] = "train-sft"
    guided_updates = False

    images: int = setting(
        256, "Images", "Images drawn from the pre-trained model (M in the paper).", at_least(1)
    )
    #: "" is in the run folder.
    dataset: str = setting(
        "",
        "Images",
        "Folder that keeps the images for other runs, or an image folder of your own with a"
        " metadata.jsonl; by default in the run folder.",
        metavar="FOLDER",
        path=True,
        may_change=True,  # its place; the images are compared
    )

    steps: int = setting(200, "Optimisation", "Optimizer steps.", at_least(1), may_change=True)
    kl_form: SFTForm = setting(
        "kl-d",
        "Objective",
        "KL regularisation: gamma is added to the rewards (kl-d), or weights a KL penalty towards"
        " the reference model (kl-o).",
    )
    gamma: float = setting(
        0.0,
        "Objective",
        "Strength of the KL regularisation; 0 is plain reward-weighted fine-tuning.",
        at_least(0),
    )
    #: At 0 the predictions with and without the prompt drift apart, which guidance amplifies.
    prompt_dropout: float = setting(
        0.2,
        "Objective",
        "Fraction of the examples trained on the empty prompt, for classifier-free guidance.",
        within(0, 1, "[)"),
    )

    log_every: int = setting(10, "Run", "Steps averaged into one line of metrics.", at_least(1))
    checkpoint_every: int = changed(
        TrainingConfig, "checkpoint_every", 50, help="Steps between checkpoints; 0 writes none."
    )
    sample_every: int = changed(
        TrainingConfig, "sample_every", 50, help="Steps between sample grids; 0 draws none."
    )

    def held(self) -> list[Held]:
        examples = self.batch_size * self.gradient_accumulation  # each with its noise
        drawn = 0 if self.dataset else self.images
        return [*super().held(), Held("images", drawn), Held("batch_size", 2 * examples)]

    @property
    def method(self) -> str:
        """How the adapter is trained, in one phrase for its model card."""
        form = f"{self.kl_form.upper()}, gamma {self.gamma:g}"
        return f"reward-weighted supervised fine-tuning (arXiv 2305.16381, Sec. 4.3, {form})"
