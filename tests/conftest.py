"""What the tests share: command lines, a very small pipeline and its adapters, test rewards."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

# No test reaches for the hub, whether there is a network or not.
os.environ["HF_HUB_OFFLINE"] = "1"
# As `dpok` sets it for itself.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
# Models as small as these gain nothing from more threads: `make test` runs a process a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")


class Result(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def dpok(tmp_path, monkeypatch, capfd) -> Callable[..., Result]:
    """Run a command line in an empty folder; returns exit code, stdout and stderr."""
    from dpok_cli import cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DPOK_DEBUG", raising=False)

    def run(*arguments: str) -> Result:
        capfd.readouterr()
        code = cli.run(arguments)
        return Result(code, *capfd.readouterr())

    return run


@pytest.fixture(scope="session")
def least_lora() -> bytes:
    """The least safetensors file that may be a LoRA."""
    header = b'{"unet.a.lora_A.weight":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'
    return len(header).to_bytes(8, "little") + header + b"\0"


@pytest.fixture(scope="session")
def template():
    """The very small pipeline, for all who copy it."""
    from support.pipelines import make_pipeline

    return make_pipeline()


@pytest.fixture(scope="session")
def pipeline_folder(template, tmp_path_factory) -> Path:
    """The very small pipeline on disk, for all who only read it."""
    folder = tmp_path_factory.mktemp("models") / "pipeline"
    template.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory):
    """Makes very small pipelines on disk, for all who only read them: ``family_folder("flux")``."""
    from functools import cache

    from support.families import make

    @cache
    def folder(family: str) -> Path:
        made = tmp_path_factory.mktemp("models") / family
        make(family).save_pretrained(made)
        return made

    return folder


@pytest.fixture(scope="session")
def adapters(pipeline_folder, tmp_path_factory) -> dict[str, Path]:
    """Two adapters of the very small pipeline: "shaken" changes its images, "none" does not."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from dpok_cli import cli

    runs = tmp_path_factory.mktemp("adapters")
    small = (
        "--prompt=cat --rounds=1 --samples-per-round=2 --updates-per-round=1 --batch-size=2"
        " --num-inference-steps=2 --lora-rank=4 --evaluation-samples=0 --sample-every=0 --tracker="
        f" --device=cpu --reward=jpeg-compressibility --model={pipeline_folder} --runs-dir={runs}"
    )
    assert cli.run(["train-rl", "--quiet", "--name=run", *small.split()]) == 0
    generator, made = torch.Generator().manual_seed(0), {}
    for name, size in {"shaken": 0.3, "none": 0.0}.items():
        made[name] = runs / name
        shutil.copytree(runs / "run" / "adapter", made[name])
        (file,) = made[name].glob("*.safetensors")
        with safe_open(file, "pt") as trained:
            metadata = trained.metadata()
            weights = {key: trained.get_tensor(key) for key in trained.keys()}  # noqa: SIM118
        noise = {
            key: size * torch.randn(weight.shape, generator=generator)
            for key, weight in weights.items()
        }
        save_file(noise, file, metadata)
    return made


@pytest.fixture
def install(tmp_path_factory, monkeypatch):
    """Install reward plugins as packages leave them, until the test is over.

    ``install(Reward, ..., package=..., version=...)`` offers these classes; with ``source`` the
    package's module is that text instead. ``dpok`` finds them through their entry points. Returns
    the folder that a process of its own needs in its PYTHONPATH.
    """
    from dpok_cli import hookimpl
    from dpok_cli.rewards.manager import registry

    monkeypatch.delenv("DPOK_PLUGINS", raising=False)

    def install(*rewards: type, package="dpok-test", version="1", source="") -> Path:
        name = f"plugin_of_{package.replace('-', '_')}"
        site = tmp_path_factory.mktemp("site")
        if source:
            (site / f"{name}.py").write_text(source)
        else:
            module = ModuleType(name)

            @hookimpl
            def register_rewards(register):
                for reward in rewards:
                    register(reward)

            module.register_rewards = register_rewards
            monkeypatch.setitem(sys.modules, name, module)
        info = site / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        head = f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n"
        (info / "METADATA").write_text(head)
        (info / "entry_points.txt").write_text(f"[dpok]\nplugin = {name}\n")
        monkeypatch.syspath_prepend(site)
        registry.cache_clear()
        return site

    yield install
    registry.cache_clear()


@pytest.fixture
def python(tmp_path, tmp_path_factory):
    """Start ``python ARGUMENT ...`` in a folder; what still runs at the test's end is killed.

    ``python("-m", "dpok_cli", "train-rl", ...)`` returns a `Process`, by default a fork of one
    that has imported everything; ``fresh`` starts a program of its own.
    """
    from support.processes import FreshProcess, Process

    started = []

    def python(*arguments, folder=tmp_path, environment=None, fresh=False) -> Process:
        given = os.environ | (environment or {})
        output = tmp_path_factory.mktemp("output")
        kind = FreshProcess if fresh else Process
        started.append(kind([str(each) for each in arguments], Path(folder), given, output))
        return started[-1]

    yield python
    for process in started:
        process.kill()


@pytest.fixture
def plant(tmp_path):
    """Make an evaluation whose images and scores are chosen by hand.

    ``plant(score, ...)``: ``score(model, row, seed)`` gives the scores of an image by reward, and
    ``colour`` its colour; the seeds count from 0 here. Returns (evaluation, folder).
    """
    from PIL import Image

    from dpok_cli.config import EvaluateConfig
    from dpok_cli.engine.evaluation.contenders import BASE, Contender
    from dpok_cli.engine.evaluation.plan import Evaluation, Prompt
    from support.evaluations import open_folder

    a_prompt = Prompt("a red cat", "seen", "colour")

    def plant(
        score,
        *,
        samples=8,
        tuned=("tuned",),
        prompts=(a_prompt,),
        rewards=("image-reward:model=tiny", "judge"),
        trained=("image-reward=2:model=tiny",),
        colour=lambda model, row, seed: (seed, 0, 0),
        size=(8, 8),
        asked=True,
    ):
        contenders = [Contender(BASE)]
        for name in tuned:
            adapter = tmp_path / "adapters" / name
            adapter.mkdir(parents=True)
            (adapter / "pytorch_lora_weights.safetensors").write_text(name)
            config = {"rewards": list(trained), "prompts": ["a red cat"]} if trained else {}
            contenders.append(Contender(name, adapter, config))
        config = EvaluateConfig(
            prompts=("a red cat",),
            rewards=rewards if asked else (),
            samples=samples,
            resamples=500,
        )
        evaluation = Evaluation(config, tuple(contenders), tuple(prompts), tuple(rewards))
        folder = open_folder(tmp_path / "evaluation", evaluation)
        first = evaluation.seeds[0]
        for contender in contenders:
            for batch in evaluation.batches():
                records, pictures = [], []
                for row, seed in batch:
                    at = (contender.name, row, seed - first)
                    kl = 0.0 if contender.name == BASE else 0.5
                    head = {"model": contender.name, "row": row, "seed": seed}
                    records.append(head | {"scores": score(*at), "kl": kl})
                    pictures.append(Image.new("RGB", size, colour(*at)))
                folder.keep(records, pictures)
        return evaluation, folder

    return plant


@pytest.fixture(scope="session")
def isolated_worker(tmp_path_factory):
    """The file of the worker of `support.isolated.Isolated`."""
    from support.isolated import WORKER

    file = tmp_path_factory.mktemp("worker") / "worker.py"
    file.write_text(WORKER)
    return file


@pytest.fixture(scope="session")
def built_environments(tmp_path_factory):
    """A folder with the environment of `support.isolated.Isolated`, for all who only use it."""
    from dpok_cli.inputs import CACHE
    from dpok_cli.rewards.install import install
    from support.isolated import Isolated

    folder = tmp_path_factory.mktemp("environments")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE, str(folder))
        install(Isolated.name, Isolated.environment, Path(sys.executable))
    return folder


@pytest.fixture
def environments(built_environments, isolated_worker, monkeypatch):
    """Have dpok find the environment of `support.isolated.Isolated`, and its worker."""
    from dpok_cli.inputs import CACHE
    from support.isolated import Isolated

    monkeypatch.setenv(CACHE, str(built_environments))
    monkeypatch.setattr(Isolated, "worker", isolated_worker)
    return built_environments
