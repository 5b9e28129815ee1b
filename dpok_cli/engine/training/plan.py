"""The memory that a training will need, phase by phase, from the model's configuration alone.

Weights are counted; what a batch needs besides is measured by a dry run of the same code.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from torch import Tensor

from dpok_cli.config import TINY, TrainingConfig
from dpok_cli.config.fields import flag
from dpok_cli.engine.bases.conditioning import Conditioning, Text
from dpok_cli.engine.bases.dry import Live, size_of, without_values
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.bases.parts import DTYPES
from dpok_cli.engine.bases.source import locate
from dpok_cli.engine.bases.structure import size_of_denoiser, structure
from dpok_cli.engine.distributed import all_gather_object
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.errors import InputError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.manager import build, local_files

FLOAT = 4  # bytes; latents, images, the adapter and its optimizer are in float32

#: What a process has on a GPU before anything of ours: CUDA's context and its libraries.
CONTEXT = 600_000_000

#: With --auto-batch-size: examples of a pass in a process at the most, and the share of the free
#: memory that they may fill.
MOST, FILLED = 64, 0.8

#: Bytes of a large denoiser; Stable Diffusion v1 has 1.7 GB in half precision.
LARGE = 10**9


@dataclass(frozen=True)
class Phase:
    """What is in memory at once in one phase of a training, in bytes."""

    name: str
    parts: dict[str, int]

    @property
    def total(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Plan:
    """The phases of a training in one process."""

    phases: tuple[Phase, ...]
    memory: int  # bytes that the device has, for each of the processes
    #: The rewards whose weights are not on this machine, and so are not counted.
    unknown: tuple[str, ...]

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.total)

    @property
    def fits(self) -> bool:
        return self.peak.total <= self.memory


def is_large(config: TrainingConfig) -> bool:
    """Whether the denoiser is so large that a plan is worth the seconds that it takes."""
    source = Path(locate(config.model))
    if source.is_file():
        return source.stat().st_size >= LARGE
    try:
        return size_of_denoiser(config) >= LARGE
    except InputError:  # which loading it says better
        return False


def plan_memory(config: TrainingConfig, device: torch.device, processes: int = 1) -> Plan:
    """Return the plan of a training whose batches are sharded over ``processes``.

    Raises InputError for a model whose configuration cannot be read, and for settings that it
    cannot be trained with.
    """
    on_cpu = device.type == "cpu"
    libraries = psutil.Process().memory_info().rss if on_cpu else CONTEXT
    model = _without_weights(config)
    encoders = sum(size_of(each) for each in model.base.encoders().values())
    vae = {"VAE": size_of(model.pipeline.vae)}
    weights = sum(weight.numel() for weight in model.adapter.parameters())
    files, unknown = _rewards(config)
    rewards = {"rewards": files}
    always = {
        "libraries": libraries,
        "denoiser": size_of(model.base.network),
        "adapter": 4 * FLOAT * weights,  # with its gradient and Adam's two means
        "samples": _samples(config, model) // processes,
    }
    if on_cpu or not config.offload:
        always |= vae | rewards
    batches = _Batches(model, config, processes, on_cpu)
    phases = (
        Phase(
            "encode the prompts",
            {"libraries": libraries, "text encoders": encoders} | (vae if on_cpu else {}),
        ),
        Phase("draw", always | {"batch": batches.draw()}),
        Phase("decode", always | vae | {"batch": batches.decode()}),
        Phase("score", always | rewards),
        Phase("update", always | {"batch": batches.update()}),
    )
    # Processes on the CPU share its memory; each on a GPU has its own.
    memory = (
        psutil.virtual_memory().total // processes if on_cpu else torch.cuda.mem_get_info(device)[1]
    )
    return Plan(phases, memory, unknown)


def _without_weights(config: TrainingConfig) -> DiffusionModel:
    """Return the model of a training, with its adapter, on the meta device."""
    model = DiffusionModel(structure(config), config.height, config.width)
    model.adapter.add(config.lora_rank, config.lora_alpha, config.lora_targets, 0)
    if config.gradient_checkpointing:
        model.base.network.enable_gradient_checkpointing()
    return model


def check_plan(
    plan: Plan, config: TrainingConfig, device: torch.device, processes: int = 1
) -> None:
    """Raise InputError, with the flags that help, if a training does not fit into the memory."""
    if plan.fits:
        return
    said = (
        f"The training needs {gigabytes(plan.peak.total)} to {plan.peak.name}, and"
        f" {'this machine' if device.type == 'cpu' else device} has {gigabytes(plan.memory)}"
        f"{' for each process' if device.type == 'cpu' and processes > 1 else ''}."
    )
    given: dict[str, str] = {}
    while not plan.fits:
        change = next(_less(config, plan.peak.name, device, processes), None)
        if change is None:
            part, size = max(plan.peak.parts.items(), key=lambda item: item[1])
            tried = f"Even with {' '.join(given.values())} it" if given else "It"
            fewer = (
                " fewer --samples-per-round,"
                if (part, config.command) == ("samples", "train-rl")
                else ""
            )
            raise InputError(
                f"{said} {tried} needs {gigabytes(plan.peak.total)}, of which the {part} take"
                f"{'s' if part[-1] != 's' else ''} {gigabytes(size)}: use{fewer} a smaller model, a"
                " smaller --height and --width, or a device with more memory."
            )
        config = replace(config, **change)
        given |= {
            name: flag(name) if value is True else f"{flag(name)} {value}"
            for name, value in change.items()
        }
        plan = plan_memory(config, device, processes)
    raise InputError(
        f"{said} Give {' '.join(given.values())}, which needs {gigabytes(plan.peak.total)}."
    )


def fitting_batch_size(config: TrainingConfig, accelerator: Accelerator) -> int:
    """Return how many examples of an optimizer step to take in a pass, equal on all ranks.

    It divides the step's examples, and is a multiple of the processes. As many are taken as fit
    into the free memory, but no more than MOST a process: more are no faster.
    """
    device, processes = accelerator.device, accelerator.num_processes
    config = replace(config, auto_batch_size=True)
    batches = _Batches(_without_weights(config), config, processes, device.type == "cpu")
    fitting = int(FILLED * _free_memory(device, processes) / batches.update())
    most = min(MOST, *all_gather_object(fitting, accelerator))
    examples = config.batch_size * config.gradient_accumulation // processes
    return processes * max(n for n in range(1, max(most, 1) + 1) if examples % n == 0)


def _free_memory(device: torch.device, processes: int) -> int:
    """Return the bytes that a process can still use."""
    if device.type == "cpu":
        return psutil.virtual_memory().available // processes
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _less(
    config: TrainingConfig, phase: str, device: torch.device, processes: int
) -> Iterator[dict[str, Any]]:
    """Yield changes that need less memory in a phase, those that change no result first."""
    if phase == "update" and not config.gradient_checkpointing:
        yield {"gradient_checkpointing": True}
    whole = config.batch_size > processes and config.batch_size % processes == 0
    if phase == "update" and whole and not config.auto_batch_size:
        parts = config.batch_size // processes
        yield {
            "batch_size": processes,
            "gradient_accumulation": config.gradient_accumulation * parts,
        }
    if phase == "draw" and config.sample_batch_size > 1:
        yield {"sample_batch_size": config.sample_batch_size // 2}
    if device.type != "cpu" and not config.offload:
        yield {"offload": True}
    if config.precision == "fp32":
        yield {"precision": "bf16"}


def _rewards(config: TrainingConfig) -> tuple[int, tuple[str, ...]]:
    """Return the bytes of the rewards' files, and the rewards whose files are not here."""
    rewards = build(config.rewards, tiny=config.model == TINY).rewards
    sizes = {name: _size_of_files(reward) for name, (reward, _) in rewards.items()}
    unknown = tuple(name for name, size in sizes.items() if size is None)
    return sum(size for size in sizes.values() if size is not None), unknown


def _size_of_files(reward: RewardModel) -> int | None:
    """Return the bytes of what a reward reads; None if it is not all on this machine."""
    files = local_files(lambda: reward)
    return None if files is None else sum(file.stat().st_size for file in files)


def _samples(config: TrainingConfig, model: DiffusionModel) -> int:
    """Return the bytes of the latents and images that are kept, in the rollout or later."""
    height, width = model.size
    latent = FLOAT * torch.Size(model.latent_shape).numel()
    image = FLOAT * 3 * height * width
    evaluation = TrainingConfig.held(config)
    sizes = {each: each.latents * latent + each.images * image for each in config.held()}
    own = sum(size for each, size in sizes.items() if each not in evaluation)
    return max(own, *(sizes[each] for each in evaluation))


class _Batches:
    """Dry runs of a batch of each phase; each returns the bytes it needs besides weights."""

    def __init__(self, model: DiffusionModel, config: TrainingConfig, processes: int, on_cpu: bool):
        """The weights of ``model``, on the meta device, have no values from here on."""
        self.on_cpu = on_cpu
        self.model, self.dtype = model, DTYPES[config.precision]
        images = max(1, *(each.images for each in config.held()))
        self.drawn = min(config.sample_batch_size, -(-images // processes))
        # One example will do where --auto-batch-size takes no more than fit.
        self.trained = 1 if config.auto_batch_size else -(-config.batch_size // processes)
        self.networks = (model.base.network, model.pipeline.vae)
        self.mode = without_values(*self.networks)
        self.sampler = self._sampler(config)
        # Classifier-free guidance doubles the rows of an update, where it is part of it.
        guided = config.guided_updates or model.base.embeds_guidance
        self.updater = self.sampler if guided else self._sampler(replace(config, guidance_scale=1))

    def draw(self) -> int:
        """A denoising step of a rollout."""
        with self.mode, torch.no_grad():
            latents, step, texts = self._rows(self.drawn)
            with self._live() as live:
                self.sampler.policy(latents, step, texts)
        return live.peak

    def decode(self) -> int:
        with self.mode:
            latents, _, _ = self._rows(self.drawn)
            with self._live() as live:
                self.model.decode(latents)
        return live.peak

    def update(self) -> int:
        """The policy, the reference, and the gradients."""
        with self.mode:
            latents, step, texts = self._rows(self.trained)
            with self._live() as live:
                policy = self.updater.policy(latents, step, texts)
                reference = self.updater.reference(latents, step, texts)
                loss = policy.log_prob(latents) + policy.kl(reference, "epsilon")
                loss.mean().backward()
        return live.peak

    def _live(self) -> Live:
        return Live(*self.networks, reorders=self.on_cpu)

    def _sampler(self, config: TrainingConfig) -> Sampler:
        dtype, half = self.dtype, self.dtype != torch.float32
        return Sampler(
            self.model, config, autocast=lambda: torch.autocast("cpu", dtype, enabled=half)
        )

    def _rows(self, count: int) -> tuple[Tensor, Tensor, Conditioning]:
        """Return latents, steps and texts of a batch."""
        length, width, pooled = self.model.base.text_shape

        def texts(rows: int) -> Text:
            one = torch.empty(rows, pooled, dtype=self.dtype) if pooled else None
            return Text(torch.empty(rows, length, width, dtype=self.dtype), one)

        latents = torch.empty(count, *self.model.latent_shape)
        step = torch.zeros(count, dtype=torch.long)
        return latents, step, Conditioning(texts(count), texts(1))
