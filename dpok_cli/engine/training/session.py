"""What surrounds a training: the processes, the run folder, the model with its adapter."""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Self

from dpok_cli.config import SamplingConfig, TrainingConfig
from dpok_cli.engine.bases.denoiser import Denoiser
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.distributed import accelerator_for, any_rank, on_main
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.runs.lock import one_writer
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.engine.sampling.seeds import purpose_seed
from dpok_cli.engine.training.updater import Updater
from dpok_cli.errors import InputError


class Session:
    """One training of one model, on every rank, with what its loop needs from outside."""

    def __init__(
        self,
        config: TrainingConfig,
        model: DiffusionModel,
        run: RunFolder | None,
        stop: Callable[[], bool],
        warn: Callable[[str], None],
        steps: int,
    ):
        """Prepare the model, which gets a new adapter, for this many optimizer steps.

        An adapter that it has from another training is removed: `init_adapter` names what to start
        from. Within a ``with`` block the session is the run's only writer, or raises InputError.
        Without a ``run`` nothing is kept. ``stop()`` says whether to end early; ``warn`` gets each
        warning, on rank 0 only.
        """
        if not config.prompts:
            raise InputError("--prompt: none is given.")
        self.config, self.model, self.run = config, model, run
        self._stop, self._warn = stop, warn
        self.accelerator = accelerator_for(
            model.device,
            config.precision,
            model.base.has_unused_layers,
            log_with=config.tracker if run and config.tracker else None,
            # Trackers that write files have a folder of their own in the run folder.
            project_dir=run.path / config.tracker if run and config.tracker else None,
        )
        model.adapter.start(config, run)
        network = model.base.network
        if config.gradient_checkpointing:
            network.enable_gradient_checkpointing()
        prepared = self.accelerator.prepare(network)
        #: The denoiser that is trained; it counts the evaluations of training alone.
        self.denoiser = Denoiser(model.base, prepared, model.adapter)
        self.sampler = self.sampler_of(config, self.denoiser)
        self.updater = Updater(config, model.adapter, prepared, self.accelerator, steps, self.warn)
        self.conditioning = model.encode(config.prompts, config.negative_prompt)  # of P prompts

    def __enter__(self) -> Self:
        self._lock = ExitStack()
        if self.run:
            lock = partial(one_writer, self.run.path)
            self._lock.enter_context(on_main(lock, self.accelerator))
            if self.config.init_adapter and self.is_main and not self.run.has_checkpoints():
                # A resume needs its layers, and those of its text encoder.
                self.model.adapter.save(self.run.initial_adapter)
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone writes to the run folder."""
        return self.accelerator.is_main_process

    def sampler_of(self, config: SamplingConfig, denoiser: Denoiser | None = None) -> Sampler:
        """Return a sampler that a stop on this rank ends; by default with the model's denoiser."""
        return Sampler(self.model, config, denoiser, self.accelerator.autocast, self._stop)

    def should_stop(self) -> bool:
        """Return whether any rank was asked to stop; the same answer on all of them."""
        return any_rank(bool(self._stop()), self.accelerator)

    def warn(self, line: str) -> None:
        """Pass a warning on, once for all ranks."""
        if self.is_main:
            self._warn(line)

    def seed(self, number: int, purpose: str) -> int:
        """Return the seed of one ``purpose`` in round or step ``number``."""
        return purpose_seed(self.config.seed, number, purpose)
