"""`vlm` and `transformers serve`, with a very small vision-language model of random weights."""

import os
import signal
import subprocess
import sys
import urllib.request
from importlib.util import find_spec

import pytest
import torch

from dpok_cli.errors import RewardError
from dpok_cli.rewards.images import to_pil
from dpok_plugins.vlm import Vlm
from support import tiny_vlm
from support.processes import free_port
from support.waiting import wait_for

MISSING = [name for name in ("fastapi", "uvicorn", "openai") if find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason="needs pip install 'transformers[serving]'"),
]


@pytest.fixture
def served(tmp_path):
    """Its URL, model and processor."""
    model, processor = tiny_vlm.make(tmp_path / "model")
    port = free_port()
    serve = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", serve, "serve", "--host=127.0.0.1", f"--port={port}"]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen([*command, "--device=cpu"], stdout=log, stderr=log)

    def is_there():
        assert server.poll() is None, (tmp_path / "log").read_text()
        try:
            return urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        except OSError:
            return False

    try:
        wait_for(is_there)
        yield f"http://127.0.0.1:{port}/v1", model, processor
    finally:
        os.kill(server.pid, signal.SIGKILL)
        server.wait()


def test_scores_are_what_the_model_answers_without_a_server(served, tmp_path):
    url, model, processor = served
    random = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, 1, 1, generator=random) * torch.rand(6, 3, 32, 32, generator=random)
    pictures = [to_pil(image) for image in images]

    def reward(**options):
        return Vlm(Vlm.Options(url, str(tmp_path / "model"), question="e", cache=None, **options))

    def answer(*numbers):
        return int(tiny_vlm.answer(model, processor, [pictures[n] for n in numbers], "e"))

    scores = reward(form="score", low=1, high=2).score(images, ["a"] * 6).tolist()
    assert scores == [answer(number) for number in range(6)]
    assert set(scores) == {1.0, 2.0}

    won = reward(form="compare").score(images[:4], ["a"] * 4).tolist()
    for first in range(4):
        others = [other for other in range(4) if other != first]
        wins = [answer(first, other) == 1 for other in others]
        wins += [answer(other, first) == 2 for other in others]
        assert won[first] == pytest.approx(sum(wins) / 6)
    assert len(set(won)) > 1

    with pytest.raises(RewardError, match="returned no log-probs, which form=yes needs"):
        reward().score(images[:1], ["a"])
