"""Training and evaluating with `vlm`, against a server that dies half way."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from dpok_plugins.vlm import Vlm
from support.chat import Chat, chatting, says, seen
from support.least import least_training

PROMPT = "a red cat"


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("DPOK_CACHE", str(tmp_path / "cache"))


def judge(number, request):
    """Answer by the red in the images: as yes and no, as a number, or the place of the redder."""
    red = [image[..., 0].mean() for image in seen(request)]
    if len(red) == 2:
        return 200, says("1" if red[0] > red[1] else "2")
    if "logprobs" in request:
        return 200, says("Yes", {"Yes": float(np.log(red[0])), "No": float(np.log(1 - red[0]))})
    return 200, says(f"{10 * red[0]:.3f}")


def revived(chat):
    """The server at its old port, after it has died."""
    return chatting(judge, port=chat.port)


def answered(*chats):
    """How often each question got an answer, of a server that died and one that did not."""
    dead, alive = chats
    requests = [*dead.requests[: dead.dies_at], *alive.requests]
    return Counter(json.dumps(request, sort_keys=True) for request in requests)


@pytest.mark.parametrize("form", ["yes", "score", "compare"])
def test_training_ends_resumes_and_scores_as_a_direct_call(
    form, dpok, tmp_path, pipeline_folder, monkeypatch
):
    calls, score = [], Vlm.score

    def watched(self, images, prompts, **options):
        scores = score(self, images, prompts, **options)
        calls.append((images, prompts, scores))
        return scores

    monkeypatch.setattr(Vlm, "score", watched)
    flags = least_training(
        pipeline_folder, PROMPT, "judged", samples_per_round=4, sample_batch_size=2
    )
    a_round = 12 if form == "compare" else 4
    chat = Chat(judge, dies_at=a_round + 2)
    options = f"url={chat.url},model=m,form={form},retry=0,in_flight=1"
    result = dpok("train-rl", *flags, "--reward", f"vlm:{options}")
    assert (result.code, result.out) == (1, "")
    last = result.err.splitlines()[-1]
    assert last.startswith(f"Error: vlm: {chat.url} did not answer for 0 s ("), last
    assert last.endswith("; start its server again, or allow more time with retry=SECONDS")
    run = tmp_path / "runs" / "judged"
    with revived(chat) as again:
        result = dpok("train-rl", "--resume", "judged")
        assert result.code == 0, result.err
        assert set(answered(chat, again).values()) == {1}
        assert answered(chat, again).total() == 3 * a_round
        rounds = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert [record["round"] for record in rounds] == [1, 2, 3]
        fresh = Vlm(Vlm.Options(chat.url, "m", form=form, cache=None))
        direct = [score(fresh, images, prompts) for images, prompts, _ in calls]
    for (_, _, scores), expected in zip(calls, direct, strict=True):
        assert torch.equal(scores, expected)
    means = torch.cat(direct)[-8:].view(2, 4).mean(1)  # of the last two rounds
    assert [each["reward/vlm"] for each in rounds[1:]] == pytest.approx(means.tolist(), abs=1e-6)
    assert torch.cat(direct).unique().numel() > 3


def test_an_evaluation_that_resumes_asks_nothing_twice(dpok, tmp_path, pipeline_folder, adapters):
    chat = Chat(judge, dies_at=20)  # of 6 scores and 30 comparisons
    spec = f"vlm:url={chat.url},model=m,retry=0,in_flight=1,form="
    flags = (
        f"--model={pipeline_folder} --adapter={adapters['shaken']} --samples=3 --device=cpu"
        f" --num-inference-steps=2 --output=judged --reward={spec}score --reward={spec}compare"
    )
    command = ("evaluate", "--prompt", PROMPT, *flags.split())
    result = dpok(*command)
    assert result.code == 1
    assert f"Error: vlm: {chat.url} did not answer for 0 s" in result.err.splitlines()[-1]
    with revived(chat) as again:
        result = dpok(*command)
        assert result.code == 0, result.err
        assert set(answered(chat, again).values()) == {1}
        assert answered(chat, again).total() == 36
        assert dpok(*command).code == 0
        assert answered(chat, again).total() == 36  # nor the comparisons that are in the folder

        lines = (tmp_path / "judged" / "scores.jsonl").read_text().splitlines()
        records = {(one["seed"], one["model"]): one for one in map(json.loads, lines)}
        files = {
            key: tmp_path / "judged" / "images" / key[1] / "000" / f"{key[0]}.png"
            for key in sorted(records)
        }
        pixels = [np.asarray(Image.open(file), dtype=np.float32) for file in files.values()]
        images = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2) / 255
        for name, form in (("vlm", "score"), ("vlm-2", "compare")):
            reward = Vlm(Vlm.Options(chat.url, "m", form=form, cache=None))
            expected = reward.score(images, [PROMPT] * 6).tolist()
            found = [records[key]["scores"][name] for key in files]
            assert found == pytest.approx(expected), name
            assert len(set(found)) > 2
