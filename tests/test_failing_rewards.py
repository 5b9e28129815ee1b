"""A reward that fails in the second round ends the run in its name; mended, the run resumes."""

import json
import threading
import tomllib

import pytest

from dpok_cli import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.serve import RewardServer
from support.least import least_training


class Redness(RewardModel):
    """How red the image is, in the first round; then what ``then`` makes of it."""

    name = "redness"
    then = staticmethod(lambda scores: scores)

    def load(self):
        self.calls = 0

    def score_batch(self, images, prompts):
        self.calls += 1
        scores = images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))
        return scores if self.calls == 1 else self.then(scores)


@pytest.fixture
def train(dpok, pipeline_folder, install):
    """Train for three rounds with a reward."""
    install(Redness)
    flags = least_training(pipeline_folder, "a red cat", "broken")
    return lambda spec: dpok("train-rl", *flags, "--reward", spec)


def check_ended(result, message, run):
    """The error is one line and code 1, and all that was written is whole."""
    assert (result.code, result.out) == (1, "")
    last = result.err.splitlines()[-1]
    assert last.startswith(f"Error: {message}"), last
    assert "Traceback" not in result.err
    (line,) = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["round"] == 1
    assert tomllib.loads((run / "config.toml").read_text())["rounds"] == 3
    assert (run / "plots" / "metrics.png").stat().st_size > 0
    assert [file for file in run.rglob("*") if file.name.endswith(".tmp")] == []


def check_resumes(dpok, run, monkeypatch):
    """Once the reward is mended the run resumes with the second round, to its end."""
    kept = (run / "metrics.jsonl").read_text()
    monkeypatch.setattr(Redness, "then", staticmethod(lambda scores: scores))
    result = dpok("train-rl", "--resume", run.name)
    assert result.code == 0, result.err
    metrics = (run / "metrics.jsonl").read_text()
    assert metrics.startswith(kept)  # its seconds, too: the first round was not trained again
    assert [json.loads(line)["round"] for line in metrics.splitlines()] == [1, 2, 3]
    assert (run / "adapter" / "pytorch_lora_weights.safetensors").is_file()


def raises(scores):
    raise RuntimeError("out of\npaper")


@pytest.mark.parametrize(
    ("then", "message"),
    [
        (raises, "redness: RuntimeError: out of paper"),
        (lambda scores: scores * float("nan"), "redness: returned nan for 'a red cat'"),
        (lambda scores: scores * 0 + float("inf"), "redness: returned inf for 'a red cat'"),
        (lambda scores: scores - float("inf"), "redness: returned -inf for 'a red cat'"),
        (lambda scores: scores[:1], "redness: returned float32 (1,), not float (2,)"),
        (lambda scores: scores[:, None], "redness: returned float32 (2, 1), not float (2,)"),
        (lambda scores: scores.long(), "redness: returned int64 (2,), not float (2,)"),
        (lambda scores: scores.tolist(), "redness: returned list, not a tensor"),
    ],
    ids="raises nan inf -inf length rank dtype list".split(),
)
def test_a_reward_that_fails_ends_the_run_in_its_name(
    train, dpok, tmp_path, monkeypatch, then, message
):
    monkeypatch.setattr(Redness, "then", staticmethod(then))
    check_ended(train("redness"), message, tmp_path / "runs" / "broken")
    check_resumes(dpok, tmp_path / "runs" / "broken", monkeypatch)


def test_a_reward_that_hangs_over_http_ends_the_run_too(train, dpok, tmp_path, monkeypatch):
    asleep = threading.Event()

    def hang(scores):
        asleep.wait(30)
        return scores

    monkeypatch.setattr(Redness, "then", staticmethod(hang))
    server = RewardServer("127.0.0.1", 0, WeightedReward([(Redness(), 1.0)]), 10**6)
    with server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        result = train(f"http:url={url},timeout=3,retry=0")
        asleep.set()
        message = f"http: {url} did not answer for 0 s (TimeoutError: timed out); start its server"
        check_ended(result, message, tmp_path / "runs" / "broken")
        check_resumes(dpok, tmp_path / "runs" / "broken", monkeypatch)
        server.shutdown()
