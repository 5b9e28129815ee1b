import threading

import pytest
import torch

from dpok_cli.errors import RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.worker import RewardWorker, beside
from dpok_plugins.http import Http
from dpok_plugins.jpeg import JpegCompressibility, JpegIncompressibility
from dpok_plugins.judge import Judge
from support.rewards import Brightest


class Recording(RewardModel):
    """The mean of the pixels and the prompt's number; records its threads."""

    name = "recording"

    def load(self):
        self.threads = []

    def score_batch(self, images, prompts):
        self.threads.append(threading.current_thread())
        return images.mean((1, 2, 3)) + torch.tensor([float(prompt) for prompt in prompts])


class Remote(Recording):
    name = "remote"
    higher_is_better = False
    needs_device = False


def batches(*sizes: int) -> list[tuple[torch.Tensor, list[str]]]:
    generator = torch.Generator().manual_seed(0)
    prompts = iter(range(100))
    return [
        (
            torch.rand(size, 3, 16, 16, generator=generator),
            [str(next(prompts)) for _ in range(size)],
        )
        for size in sizes
    ]


def test_scores_are_those_of_all_images_together_in_order():
    parts = [(Recording(), 1.0), (Remote(), 0.5), (JpegIncompressibility(), 0.1)]
    reward, given = WeightedReward(parts), batches(3, 1, 4)
    with RewardWorker(reward, "cpu") as worker:
        for images, prompts in given:
            worker.submit(images, prompts)
        scores = worker.results()
        again = batches(2)
        worker.submit(*again[0])  # the second round does not contain the first
        second = worker.results()
    images = torch.cat([images for images, _ in given])
    expected = reward.score(images, [prompt for _, prompts in given for prompt in prompts])
    assert set(scores) == {"recording", "remote", "jpeg-incompressibility"}
    for key, raw in expected.raw.items():
        assert torch.equal(scores[key], raw)
    total = reward.combine(scores)
    assert list(total.raw) == list(expected.raw) == list(reward.names)
    assert torch.equal(total.total, expected.total)
    assert expected.total.unique().numel() == 8
    assert torch.equal(reward.combine(second).total, reward.score(*again[0]).total)


def test_only_rewards_beside_the_device_leave_the_main_thread():
    here, there = Recording(), Remote()
    with RewardWorker(WeightedReward([(here, 1.0), (there, 1.0)]), "cpu") as worker:
        for images, prompts in batches(2, 2):
            worker.submit(images, prompts)
        worker.results()
    assert here.threads == [threading.main_thread()]  # all at once
    assert len(there.threads) == 2
    assert len(set(there.threads)) == 1
    assert threading.main_thread() not in there.threads


def test_submitting_does_not_wait_for_the_scores():
    go_on = threading.Event()

    class Slow(Remote):
        def score_batch(self, images, prompts):
            assert go_on.wait(60)
            return super().score_batch(images, prompts)

    given = batches(1, 1)
    with RewardWorker(WeightedReward([(Slow(), 1.0)]), "cpu") as worker:
        for images, prompts in given:
            worker.submit(images, prompts)  # would never return if it waited
        go_on.set()
        scores = worker.results()["remote"]
    expected = [images.mean().item() + number for number, (images, _) in enumerate(given)]
    assert scores.tolist() == pytest.approx(expected)


def test_which_rewards_can_run_beside_which_device():
    url = Http.Options("http://127.0.0.1:1")
    for reward in (Http(url), JpegCompressibility(), JpegIncompressibility()):
        assert beside(reward, "cpu")
        assert beside(reward, "cuda:0")
    assert not beside(Judge(), "cpu")
    assert beside(Judge(), "cuda:0")  # the judge on the CPU, the images on the GPU
    assert not beside(Judge(device="cuda:1"), "cuda:0")


class Broken(Remote):
    """Fails at the second image."""

    def score_batch(self, images, prompts):
        if "1" in prompts:
            raise RuntimeError("out of paper")
        return super().score_batch(images, prompts)


def test_an_error_has_the_rewards_name_and_cancels_the_rest():
    broken = Broken()
    with RewardWorker(WeightedReward([(broken, 1.0)]), "cpu") as worker:
        for images, prompts in batches(1, 1):
            worker.submit(images, prompts)
        with pytest.raises(RewardError, match=r"^remote: RuntimeError: out of paper$"):
            worker.results()


def test_an_error_is_raised_at_the_next_submit():
    with RewardWorker(WeightedReward([(Broken(), 1.0)]), "cpu") as worker:
        images, _ = batches(1)[0]
        worker.submit(images, ["1"])
        worker._scores[0].exception(60)
        with pytest.raises(RewardError, match=r"^remote: RuntimeError: out of paper$"):
            worker.submit(images, ["2"])


def test_leaving_early_cancels_pending_scores():
    started, go_on = threading.Event(), threading.Event()

    class Slow(Remote):
        def score_batch(self, images, prompts):
            started.set()
            assert go_on.wait(60)
            return super().score_batch(images, prompts)

        def stop(self):
            go_on.set()

    slow = Slow()
    with (  # noqa: PT012 - the block is what is left early
        pytest.raises(KeyboardInterrupt),
        RewardWorker(WeightedReward([(slow, 1.0)]), "cpu") as worker,
    ):
        for images, prompts in batches(1, 1, 1):
            worker.submit(images, prompts)
        assert started.wait(60)
        raise KeyboardInterrupt
    worker._pool.shutdown()  # waits for running scores
    assert len(slow.threads) == 1


def test_a_retrying_remote_reward_is_cancelled_at_once():
    reward = Http(Http.Options("http://127.0.0.1:9", retry=10**6, timeout=5))
    trying = threading.Event()
    post = reward._post

    def tell(body):
        trying.set()
        return post(body)

    reward._post = tell
    with RewardWorker(WeightedReward([(reward, 1.0)]), "cpu") as worker:
        worker.submit(*batches(1)[0])
        assert trying.wait(60)
        (score,) = worker._scores
    with pytest.raises(RewardError, match="^http: .* did not answer"):
        score.result(60)


def test_rewards_that_compare_are_left_to_who_has_all_images():
    class There(Brightest):
        name = "there"
        needs_device = False

    parts = [(Brightest(), 1.0), (Recording(), 1.0), (There(), 1.0)]
    with RewardWorker(WeightedReward(parts), "cpu") as worker:
        for images, prompts in batches(1, 2):
            worker.submit(images, prompts)
        assert list(worker.results()) == ["recording"]
    with RewardWorker(WeightedReward(parts[:1]), "cpu") as worker:
        worker.submit(*batches(2)[0])
        assert worker.results() == {}
