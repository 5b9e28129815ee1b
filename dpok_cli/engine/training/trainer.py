"""What every training shares: the adapter and its optimizer, the run folder, checkpoints."""

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from diffusers.optimization import get_scheduler
from torch import Tensor, nn

from dpok_cli.config import TrainingConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.distributed import accelerator_for, all_objects, anyone
from dpok_cli.engine.lora.card import adapter_card
from dpok_cli.engine.runs.folder import RunFolder, write_atomically
from dpok_cli.engine.sampling.sampler import grid, sample
from dpok_cli.engine.training import checkpoint
from dpok_cli.errors import InputError, TrainingError

Metrics = dict[str, float]
Config = TypeVar("Config", bound=TrainingConfig)

#: Updates in a row whose gradient may be not finite before a run ends. fp16's gradient scaler
#: starts high on purpose and needs some.
MAX_SKIPPED = 20


class Trainer(Generic[Config]):
    """An adapter in training. ``number`` is the rounds (RL) or steps (SFT) that are behind it."""

    #: What ``number`` counts: the first key of a record, and the name of a sample grid.
    unit = "round"

    def __init__(
        self,
        config: Config,
        model: DiffusionModel,
        run: RunFolder | None,
        steps: int,
        stop: Callable[[], bool],
        warn: Callable[[str], None] = warnings.warn,
    ):
        """``steps`` is the optimizer steps of the whole run; ``stop`` says that it should end.

        ``warn`` is told, in one process, what a person should know of how the run was taken up.
        """
        self.config, self.model, self.run, self.stop, self._warn = config, model, run, stop, warn
        if not config.prompts:
            raise InputError("prompts: there is none to draw for.")
        self.accelerator = accelerator_for(
            config,
            on_cpu=model.device.type == "cpu",
            log_with=config.tracker if run and config.tracker else None,
            project_dir=run.path if run else None,
        )
        #: The run folder, in the one process that writes to it.
        self.writable = run if self.accelerator.is_main_process else None
        if not model.adapter_parameters():
            model.adapt(config, fresh=not (run and run.has_checkpoints()))
        if config.gradient_checkpointing:
            model.pipeline.unet.enable_gradient_checkpointing()
        self.conditioning = model.encode(config.prompts, config.negative_prompt)  # of P prompts
        self.optimizer = torch.optim.AdamW(
            model.adapter_parameters(),
            lr=config.learning_rate,
            betas=(config.adam_beta1, config.adam_beta2),
            weight_decay=config.weight_decay,
        )
        self.schedule = get_scheduler(
            "constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule,
            self.optimizer,
            num_warmup_steps=config.lr_warmup_steps,
            num_training_steps=steps,
        )
        # The schedule stays ours: accelerate's wrapper would step it once for every process.
        model.unet, self.optimizer = self.accelerator.prepare(model.pipeline.unet, self.optimizer)
        self.number = 0
        self.samples = 0  # images drawn so far, by all processes
        self.skipped = 0  # updates without effect, in all
        self._skipped_in_a_row = 0

    # ----------------------------------------------------------------------------- optimizer steps

    @contextmanager
    def part_of_update(self, last: bool) -> Iterator[None]:
        """Forward and backward of one of an update's batches; the last one meets the others'."""
        together = nullcontext() if last else self.accelerator.no_sync(self.model.unet)
        with together:
            yield

    def step(self) -> Tensor:
        """Take an optimizer step on the gradients that have gathered; returns their norm.

        A gradient that is not finite moves nothing: the step is skipped and counted. Raises
        TrainingError after MAX_SKIPPED of them in a row.
        """
        norm = self.accelerator.clip_grad_norm_(
            self.model.adapter_parameters(), self.config.max_grad_norm
        )
        if finite := bool(norm.isfinite()):
            self._skipped_in_a_row = 0
        else:
            self.skipped += 1
            self._skipped_in_a_row += 1
        if finite or self.config.precision == "fp16":  # whose scaler skips by itself, and learns
            self.optimizer.step()
            self.schedule.step()
        self.optimizer.zero_grad()
        if self._skipped_in_a_row >= MAX_SKIPPED:
            raise TrainingError(
                f"The loss or its gradient was not finite {MAX_SKIPPED} times in a row, so these"
                " updates were left out and the run ends. Lower --learning-rate or --alpha, or"
                " train in --precision fp32."
            )
        return norm

    def seed_of(self, number: int, purpose: str) -> int:
        """Return the seed of one purpose in one round or step, so that no state has to be kept."""
        key = [self.config.seed, number, int.from_bytes(purpose.encode(), "big")]
        return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))

    # --------------------------------------------------------------------------------- checkpoints

    def state(self) -> checkpoint.Tree:
        """Return all that going on needs, beyond config and model."""
        scaler = self.accelerator.scaler
        return {
            "number": self.number,
            "samples": self.samples,
            "skipped": [self.skipped, self._skipped_in_a_row],
            "unet_rows": self.model.unet_rows,
            "adapter": dict(self._adapter()),
            "optimizer": self.optimizer.state_dict(),
            "schedule": _plain(self.schedule.state_dict()),
            "scaler": scaler.state_dict() if scaler else {},
            "random": all_objects(checkpoint.random_state(), self.accelerator),
        }

    def load_state(self, state: checkpoint.Tree) -> None:
        """Be as the trainer was that gave ``state``; raises InputError if that does not fit."""
        own, given = dict(self._adapter()), state["adapter"]
        if own.keys() != given.keys() or any(own[k].shape != given[k].shape for k in own):
            raise InputError(
                f"The checkpoint of {self.unit} {state['number']} holds another adapter than"
                " config.toml asks for: give model and lora_rank there the values that the run was"
                " started with."
            )
        with torch.no_grad():
            for name, parameter in own.items():
                parameter.copy_(given[name])
        self.optimizer.load_state_dict(optimizer_state(state["optimizer"]))
        self.schedule.load_state_dict(state["schedule"])
        if self.accelerator.scaler and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        self.number, self.samples = state["number"], state["samples"]
        self.skipped, self._skipped_in_a_row = state["skipped"]
        self.model.unet_rows = state["unet_rows"]
        process = self.accelerator.process_index
        if process < len(state["random"]):
            checkpoint.restore_random_state(state["random"][process])

    def resume(self) -> None:
        """Go on from the run's newest whole checkpoint, if it has one.

        What the run logged after it is cut off, so that no round is there twice. Raises InputError,
        with nothing changed, if there are checkpoints and none can be used.
        """
        if not self.run:
            return
        state, damaged = checkpoint.read_latest(self.run.checkpoints)
        if state is not None:
            try:
                self.load_state(state)
            except checkpoint.DAMAGE as error:
                raise InputError(
                    f"The checkpoints in {self.run.checkpoints} are of another kind of run"
                    f" ({type(error).__name__}: {error}). Start a new run with another --name."
                ) from error
        for what in damaged:
            self.warn(what)
        if self.writable:
            self.writable.cut(self.number)
        if self.config.tracker:
            self._start_tracker()
        self.accelerator.wait_for_everyone()

    def warn(self, what: str) -> None:
        """Tell it the person, once for all processes."""
        if self.accelerator.is_main_process:
            self._warn(what)

    def stop_here(self) -> None:
        """Keep what was reached, before this round or step changed anything."""
        if self.config.checkpoint_every:
            self.write_checkpoint()

    def write_checkpoint(self) -> None:
        """Write a checkpoint; raises TrainingError if the processes' adapters have parted."""
        if self.run is None:
            return
        digest = hashlib.sha256()
        for _, parameter in self._adapter():
            digest.update(parameter.detach().cpu().numpy().tobytes())
        if len(set(all_objects(digest.hexdigest(), self.accelerator))) > 1:
            raise TrainingError(
                "The processes' adapters differ, so they no longer train one model. The last"
                " checkpoint was written before that."
            )
        state = self.state()
        if self.writable:
            checkpoint.write(self.writable.checkpoints, self.number, state, self.config.keep)
        self.accelerator.wait_for_everyone()

    def should_stop(self) -> bool:
        """Whether one of the processes was asked to stop."""
        return anyone(bool(self.stop()), self.accelerator)

    # ---------------------------------------------------------------------- what is left behind

    def finish(self, number: int, last: int) -> bool:
        """Keep what is due after round or step ``number`` of ``last``; returns whether to stop."""
        config, self.number = self.config, number
        stopping = self.should_stop()
        if number == last or (config.sample_every and number % config.sample_every == 0):
            self.draw_grid(number)
            self.save()
        every = config.checkpoint_every
        if every and (stopping or number == last or number % every == 0):
            self.write_checkpoint()
        return stopping

    def log(self, metrics: Metrics) -> None:
        """Keep a record in metrics.jsonl and with the tracker."""
        if self.writable:
            self.writable.append(metrics)
        if self.run and self.config.tracker:
            try:
                self.accelerator.log(metrics, step=self.number)
            except Exception as error:  # a tracker that is away must not end the run
                self._lose_tracker(error)

    def draw_grid(self, number: int) -> None:
        """Draw the sample grid, from the same seeds each time."""
        config, run = self.config, self.writable
        if not run or not config.sample_every or not config.sample_count:
            return
        prompts = config.prompts[: config.sample_count]
        each = config.sample_count // len(prompts)
        rows = self.model.unet_rows
        with self.accelerator.autocast():
            images = [one.image for one in sample(self.model, prompts, range(each), config)]
        self.model.unet_rows = rows  # the metric counts training alone
        run.samples.mkdir(exist_ok=True)
        columns = each if len(prompts) > 1 else max(1, round(each**0.5))
        file = run.samples / f"{self.unit}-{number:05d}.png"
        temporary = file.with_name(f".{file.name}")
        grid(images, columns).save(temporary, format="png")
        temporary.replace(file)

    def save(self) -> None:
        """Write the adapter and its model card to the run folder."""
        if self.writable:
            self.model.save_adapter(self.writable.adapter)
            clip_sample = self.model.scheduler.config.clip_sample
            card = adapter_card(self.config, self.samples, clip_sample)
            write_atomically(self.writable.adapter / "README.md", card)

    def close(self) -> None:
        try:
            self.accelerator.end_training()
        except Exception as error:
            self._lose_tracker(error)
            self.accelerator.end_training()

    def _adapter(self) -> list[tuple[str, nn.Parameter]]:
        named = self.model.pipeline.unet.named_parameters()
        return [(name, parameter) for name, parameter in named if ".lora_" in name]

    def _start_tracker(self) -> None:
        try:
            self.accelerator.init_trackers("dpok")
            if not self.accelerator.trackers:  # accelerate says nothing of one that is not there
                raise ModuleNotFoundError("it is not installed")
        except Exception as error:
            self._lose_tracker(error)

    def _lose_tracker(self, error: Exception) -> None:
        self.accelerator.trackers = []
        why = " ".join(f"{error}".split()) or type(error).__name__
        self.warn(
            f"The tracker {self.config.tracker} cannot be used, and training goes on without it:"
            f" {why}."
        )


def optimizer_state(state: checkpoint.Tree) -> dict[str, Any]:
    """Return an optimizer's state as torch has it: its parameters' numbers are not texts."""
    return state | {"state": {int(key): value for key, value in state["state"].items()}}


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """Leave out what is no number: a schedule's functions, which its config makes again."""
    kinds = (int, float, str, bool, list, type(None))
    return {key: value for key, value in state.items() if isinstance(value, kinds)} | {
        "lr_lambdas": [None] * len(state.get("lr_lambdas", []))
    }


def mean(values: Sequence[Tensor]) -> float:
    """Return the mean of scalars."""
    return torch.stack(list(values)).float().mean().item()
