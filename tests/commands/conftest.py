"""An engine without torch, which records what the commands ask of it."""

import sys
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from PIL import Image

from dpok_cli.errors import InputError

RUN_CONFIG = {
    "model": "some/model",
    "prompts": ["a lion"],
    "num_inference_steps": 7,
    "guidance_scale": 2.5,
    "eta": 0.5,
    "seed": 9,
    "device": "cuda:3",
    "rounds": 2,
    "name": "old",
}


class RunFolder:
    def __init__(self, path):
        self.path = Path(path)
        self.adapter, self.plots = self.path / "adapter", self.path / "plots"
        self.records = []

    @staticmethod
    def check_free(config):
        if config.name == "taken":
            raise InputError("taken")

    @classmethod
    def create(cls, config, command):
        run = cls(Path(config.runs_dir) / (config.name or f"now-{command}"))
        run.adapter.mkdir(parents=True)
        return run

    @classmethod
    def open(cls, run, runs_dir="runs"):
        path = Path(runs_dir) / run
        if not path.is_dir():
            raise InputError(f"There is no run {run!r}.")
        return cls(path)

    def has_checkpoints(self):
        return bool(self.records)

    def history(self):
        return self.records

    def read_config(self):
        return RUN_CONFIG


class Model:
    device = "cpu"

    def adapt(self, config, fresh):
        if config.init_adapter:
            self.started_from = config.init_adapter

    def __init__(self, adapter):
        self.adapter = adapter

    @contextmanager
    def reference(self):
        adapter, self.adapter = self.adapter, None
        yield
        self.adapter = adapter


@dataclass
class Sample:
    prompt: str
    seed: int
    image: tuple[str, int]


@pytest.fixture
def engine(monkeypatch):
    """The modules that the commands import; ``calls`` lists what they called with what."""
    calls = []
    fake = SimpleNamespace(calls=calls, records=[], drawn=[], warned=[], fail=None, summary={})

    def load(config, adapter=None):
        calls.append(("load", config, adapter))
        return Model(adapter)

    def train_rl(config, model, reward, run, stop, warn):
        calls.append(("train_rl", config, reward.names))
        for what in fake.warned:
            warn(what)
        yield from records(run)

    def train_sft(config, model, reward, run, stop, drawn, warn):
        calls.append(("train_sft", config, reward.names))
        for done in fake.drawn:
            drawn(done, config.images)
        yield from records(run)

    def records(run):
        run.records = fake.records
        yield from fake.records
        if fake.fail:
            raise fake.fail

    def compare(model, reward, config, run, held_out):
        calls.append(("compare", config, reward.names, held_out and held_out.names))
        return fake.summary

    def sample(model, prompts, seeds, config):
        calls.append(("sample", prompts, seeds, model.adapter))
        yield from (Sample(prompt, seed, (prompt, seed)) for prompt in prompts for seed in seeds)

    def to_pil(image):
        return Image.new("RGB", (8, 8), (image[1], 0, 0))

    def grid(images, columns):
        calls.append(("grid", len(images), columns))
        return Image.new("RGB", (8 * columns, 8 * (len(images) // columns)), "green")

    modules = {
        "runs.folder": {"RunFolder": RunFolder},
        "distributed": {
            "create_run": RunFolder.create,
            "is_main": lambda device: True,
            "count": lambda: 1,
        },
        "bases.source": {
            "check_source": lambda model: calls.append(("check", model)),
            "check_adapter": lambda adapter, flag="": calls.append(("check", adapter)),
        },
        "bases.model": {"load": load},
        "rl.loop": {"train_rl": train_rl},
        "sft.loop": {"train_sft": train_sft},
        "evaluation.compare": {"compare": compare},
        "sampling.sampler": {"sample": sample, "to_pil": to_pil, "grid": grid},
    }
    for name, contents in modules.items():
        module = ModuleType(f"dpok_cli.engine.{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return fake
