"""The cost of a round of `train-rl` over the network calls that it needs.

    python benchmarks/overhead.py [--case NAME] [--rounds 5] [--set KEY=VALUE] [--json FILE]

The floor is the bare network on as many rows as the first round put through it, in the batches that
are fastest here: without adapter and gradients for those without gradients (the rollout, the
reference), forward and backward with the adapter for the others. It is taken before and after each
round, in the same process, so that drift of the machine cancels. The network's own time in a round
is that of its calls, and of the backward passes from its output on. Times are processor seconds of
one thread; a round's are without its reward, which has a column of its own. Prints a Markdown table
of medians over the rounds after the first.
"""

import argparse
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack, nullcontext
from pathlib import Path
from statistics import median
from typing import Any, Self
from unittest.mock import patch

from dpok_cli.allocator import keep_freed_memory
from dpok_cli.config import resolve
from dpok_cli.engine.rl.settings import TrainRLConfig
from dpok_cli.strict_json import dumps

keep_freed_memory()  # as the command does, before torch is imported

import torch  # noqa: E402

from dpok_cli.engine.bases.load import load  # noqa: E402
from dpok_cli.engine.bases.model import DiffusionModel  # noqa: E402
from dpok_cli.engine.rl.loop import RLLoop, train_rl  # noqa: E402
from dpok_cli.engine.runs.folder import RunFolder  # noqa: E402
from dpok_cli.engine.sampling.sampler import Sampler  # noqa: E402
from dpok_cli.engine.training.checkpoint import Checkpoints  # noqa: E402
from dpok_cli.engine.training.updater import Updater  # noqa: E402
from dpok_cli.rewards.manager import build  # noqa: E402
from dpok_cli.rewards.worker import RewardWorker  # noqa: E402

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
from random_pipeline import make  # noqa: E402

#: As the paper's preset: 10 images of 50 steps, and 5 updates of 48 transitions.
PAPER = dict(
    samples_per_round=10,
    num_inference_steps=50,
    guidance_scale=7.5,
    group_size=1,
    timestep_fraction=1.0,
    updates_per_round=5,
    batch_size=4,
    gradient_accumulation=12,
    lora_rank=4,
)
CASES: dict[str, dict[str, Any]] = {
    "tiny": {},
    "tiny, 4 x 12": PAPER,
    "tiny, 4 x 12, --auto-batch-size": PAPER | dict(auto_batch_size=True),
    # A tenth of the steps, one small update, and images of 64 pixels: a processor takes minutes.
    "sd15, 4 x 6, --auto-batch-size": PAPER
    | dict(model="sd15", height=64, width=64, auto_batch_size=True)
    | dict(num_inference_steps=5, updates_per_round=1)
    | dict(gradient_accumulation=6),
}
#: Rows of a call, of which the floor has the fastest.
BATCHES = (8, 16, 24, 32, 48, 64, 96, 120)
TRIES = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", action="append", choices=CASES, help="By default all.")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--json", type=Path, help="File for the numbers of every round.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    changes = tomllib.loads("\n".join(given.set))
    results = {}
    for case in given.case or CASES:
        print(case, file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            results[case] = measure(CASES[case] | changes, given.rounds, Path(folder))
    if given.json:
        given.json.write_text(dumps(results, indent=2), encoding="utf-8")
    print(markdown(results))


def measure(settings: dict[str, Any], rounds: int, folder: Path) -> list[dict[str, float]]:
    """Return, for each round after the first, the seconds of its floor, parts and network."""
    if settings.get("model") == "sd15":
        settings = settings | {"model": str(folder / "model")}
        make("sd15", tiny=False).to(torch.float32).save_pretrained(folder / "model")
    fixed = dict(
        prompts=("a green colored rabbit",),
        rewards=("jpeg-compressibility",),
        runs_dir=str(folder),
        rounds=rounds + 2,
        sample_every=0,
        device="cpu",
    )
    config = resolve(TrainRLConfig, **fixed | settings)
    model = load(config)
    taken, floors = [], []
    with Clock(model.base.network) as clock:
        run = RunFolder.create(config)
        for _ in train_rl(config, model, build(config.rewards), run):
            taken.append(clock.stop())
            if not floors:
                floor = Floor(model, clock.rows)
            floors.append(floor.seconds())
            if len(taken) > rounds:
                break
            clock.start()
    around = zip(taken[1:], floors, floors[1:], strict=False)
    return [spent | {"floor": (before + after) / 2} for spent, before, after in around]


class Clock:
    """Counts this thread's processor seconds, in all and by part, while in its block."""

    def __init__(self, network: torch.nn.Module):
        self.network, self.spent = network, Counter()
        #: Rows of the network's calls in the first round, by whether they have gradients.
        self.rows: Counter[bool] = Counter()
        self._begun, self._in_backward, self._counts = 0.0, False, True
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for owner, name, part in (
            (RLLoop, "roll_out", "rollout"),
            (Sampler, "decode", "decode"),
            (RewardWorker, "results", "reward"),
            (RLLoop, "update", "update"),
            (Checkpoints, "write", "checkpoint"),
        ):
            self._stack.enter_context(patch.object(owner, name, self._timed(owner, name, part)))
        backward = patch.object(Updater, "backward", self._ending(Updater.backward))
        self._stack.enter_context(backward)
        hooks = (
            self.network.register_forward_pre_hook(self._begin),
            self.network.register_forward_hook(self._forward_done),
        )
        for hook in hooks:
            self._stack.callback(hook.remove)
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self) -> None:
        self.spent.clear()
        self._in_backward = False  # as the floor's backward passes leave it, which nothing ends
        self.spent["round"] = -time.thread_time()

    def stop(self) -> dict[str, float]:
        """Return what was spent since the start; round and rollout are without the reward."""
        self._counts = False
        self.spent["round"] += time.thread_time() - self.spent["reward"]
        self.spent["rollout"] -= self.spent["reward"]
        return dict(self.spent)

    def _timed(self, owner: type, name: str, part: str) -> Callable[..., Any]:
        function = getattr(owner, name)

        def call(*given: Any) -> Any:
            started = time.thread_time()
            result = function(*given)
            self.spent[part] += time.thread_time() - started
            return result

        return call

    def _ending(self, backward: Callable[..., None]) -> Callable[..., None]:
        """Return a backward pass that ends the network's time, which its output's gradient began"""

        def call(*given: Any) -> None:
            backward(*given)
            self.spent["network"] += time.thread_time() - self._begun
            self._in_backward = False

        return call

    def _begin(self, *_: object) -> None:
        self._begun = time.thread_time()

    def _backward_begins(self, *_: object) -> None:
        if not self._in_backward:  # of several outputs, the first that has its gradient
            self._begin()
            self._in_backward = True

    def _forward_done(self, network: object, given: object, output: Any) -> None:
        self.spent["network"] += time.thread_time() - self._begun
        if self._counts:
            self.rows[output.sample.requires_grad] += len(output.sample)
        if output.sample.requires_grad:
            output.sample.register_hook(self._backward_begins)


class Floor:
    """The bare network on the rows of a round, in the batches that are fastest here."""

    def __init__(self, model: DiffusionModel, rows: Mapping[bool, int]):
        """``rows`` are their numbers, by whether they have gradients."""
        self.model, self.network, self.rows = model, model.base.network, rows
        self.batch = {trains: self._fastest(trains) for trains in self.rows}

    def seconds(self) -> float:
        """Call the network on the rows of a round; returns the processor seconds."""
        return sum(
            rows * self._row_seconds(trains, self.batch[trains], rows)
            for trains, rows in self.rows.items()
        )

    def _fastest(self, trains: bool) -> int:
        sizes = [size for size in BATCHES if size <= self.rows[trains]] * TRIES
        seconds = [(self._row_seconds(trains, size, size), size) for size in sizes]
        return min(seconds)[1]

    def _row_seconds(self, trains: bool, batch: int, rows: int) -> float:
        """Return the seconds of one row, of so many or more, called in batches."""
        length, width, _ = self.model.base.text_shape
        latents = torch.randn(batch, *self.model.latent_shape)
        texts, timesteps = torch.randn(batch, length, width), torch.randint(1000, (batch,))
        calls = -(-rows // batch)
        with nullcontext() if trains else self.model.reference(), torch.set_grad_enabled(trains):
            started = time.thread_time()
            for _ in range(calls):
                output = self.network(latents, timesteps, texts).sample
                if trains:
                    output.mean().backward()
            spent = time.thread_time() - started
        self.network.zero_grad()
        return spent / (calls * batch)


def markdown(results: dict[str, list[dict[str, float]]]) -> str:
    """Make the table: medians over rounds, in seconds, and the two ratios."""
    lines = [
        "| case | floor | round | rollout | of it decoding | update | checkpoint | reward"
        " | over the floor | over its own network time |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for case, rounds in results.items():
        parts = [
            f"{median(one[part] for one in rounds):.2f}"
            for part in ("floor", "round", "rollout", "decode", "update", "checkpoint", "reward")
        ]
        ratios = [
            f"{median(one['round'] / one[part] for one in rounds):.3f}"
            for part in ("floor", "network")
        ]
        lines.append("| " + " | ".join([case, *parts, *ratios]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
