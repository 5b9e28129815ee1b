"""The reward `vlm` against a server whose answers are known, and that misbehaves."""

import math
import sqlite3
import threading

import pytest
import torch

from dpok_cli.errors import InputError, RewardError
from dpok_cli.rewards.manager import build
from dpok_cli.rewards.spec import parse_spec
from dpok_plugins.vlm import Vlm, pairs
from support.chat import Chat, asked, chatting, says, seen


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """No key and no answers of the user's."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("DPOK_CACHE", str(tmp_path / "cache"))


def vlm(chat, **options):
    return Vlm(Vlm.Options(chat.url, "judge-7b", **options))


def greys(*levels):
    """Images of these grey levels, of 255."""
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 4, 6) / 255


def level(image):
    return round(image.mean() * 255)


def logs(**shares):
    return {token: math.log(share) for token, share in shares.items()}


# -------------------------------------------------------------------------------------- the forms


def test_yes_is_the_share_of_yes_of_yes_and_no():
    tokens = {"Yes": 0.3, " yes": 0.1, "No": 0.15, "\nNO": 0.05, "Maybe": 0.4}
    answer = says("Yes", {token: math.log(share) for token, share in tokens.items()})
    with chatting(lambda number, request: (200, answer)) as chat:
        scores = vlm(chat).score(greys(7), ["two cats"])
    assert scores.tolist() == pytest.approx([0.4 / 0.6])
    (request,) = chat.requests
    assert asked(request) == 'Does this figure show "two cats"? Please answer yes or no.'
    assert request["path"] == "/v1/chat/completions"
    assert request["key"] is None
    settings = {key: request[key] for key in request if key not in ("messages", "path", "key")}
    assert settings == {
        "model": "judge-7b",
        "temperature": 0,
        "seed": 0,
        "max_tokens": 1,
        "logprobs": True,
        "top_logprobs": 20,
    }
    (image,) = seen(request)
    assert image.shape == (4, 6, 3)
    assert level(image) == 7


def test_a_first_token_that_is_not_among_the_likeliest_counts():
    answer = says("no", logs(yes=0.25)).replace('{"content": [{"token": "yes"', "X", 1)
    assert "X" in answer
    answer = answer.replace("X", '{"content": [{"token": "no"', 1)  # at the same log-prob
    with chatting(lambda number, request: (200, answer)) as chat:
        assert vlm(chat).score(greys(7), ["a"]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("text", "value"), [("7", 7.0), (" 0 \n", 0.0), ("10.", 10.0), ("3.25", 3.25)]
)
def test_a_score_is_the_number_that_is_answered(text, value):
    with chatting(lambda number, request: (200, says(text))) as chat:
        reward = vlm(chat, form="score")
        assert reward.score(greys(7), ["a cat, red"]).tolist() == [value]
    assert asked(chat.requests[0]) == (
        'How well does this image show "a cat, red"? Answer with one number from 0 (not at all) to'
        " 10 (perfectly), and nothing else."
    )
    assert reward.range == (0.0, 10.0)


def test_a_question_of_ones_own_in_another_range():
    spec = parse_spec('vlm:url=http://h,model=m,question="Sharp, from {low} to {high}: {prompt}?"')
    question = spec.options["question"]
    with chatting(lambda number, request: (200, says("-0.5"))) as chat:
        reward = vlm(chat, form="score", low=-1, high=1, question=question)
        assert reward.score(greys(7), ["{low} cat"]).tolist() == [-0.5]
    assert asked(chat.requests[0]) == "Sharp, from -1 to 1: {low} cat?"
    assert reward.range == (-1, 1)


def brighter(number, request):
    """Answer with the place of the brighter image."""
    first, second = map(level, seen(request))
    return 200, says("1" if first > second else "2")


def test_compare_is_the_share_of_wins_among_images_of_one_prompt():
    with chatting(brighter) as chat:
        reward = vlm(chat, form="compare")
        scores = reward.score(greys(10, 99, 30, 20, 200), ["a", "b", "a", "a", "c"])
    # Of "a": 10 loses to 20 and 30, 20 wins once, 30 twice; "b" and "c" are alone.
    assert scores.tolist() == [0.0, 0.5, 1.0, 0.5, 0.5]
    assert len(chat.requests) == 3 * 2  # each pair, in both orders
    assert {asked(request) for request in chat.requests} == {
        'Which of these two images shows "a" better? Answer with 1 or 2, and nothing else.'
    }
    orders = {tuple(map(level, seen(request))) for request in chat.requests}
    assert orders == {(a, b) for a in (10, 20, 30) for b in (10, 20, 30) if a != b}


@pytest.mark.parametrize("text", ["1", "2", "Image 1.", " image 2 "])
def test_a_preference_for_a_place_decides_nothing(text):
    with chatting(lambda number, request: (200, says(text))) as chat:
        assert vlm(chat, form="compare").score(greys(1, 2), ["a", "a"]).tolist() == [0.5, 0.5]


def test_fewer_opponents():
    with chatting(brighter) as chat:
        reward = vlm(chat, form="compare", opponents=2)
        scores = reward.score(greys(10, 50, 30, 40, 20, 60), ["a"] * 6)
    assert scores.tolist() == [0.0, 1.0, 0.0, 1.0, 0.0, 1.0]  # each meets its two neighbours
    assert len(chat.requests) == 12


def test_pairs():
    assert pairs(1) == []
    assert pairs(4) == [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    assert pairs(4, 3) == pairs(4, 9) == pairs(4)
    assert pairs(4, 2) == pairs(4, 1) == [(0, 1), (0, 3), (1, 2), (2, 3)]
    for images, opponents, met in ((7, 2, 2), (7, 3, 4), (8, 6, 6), (6, 5, 5)):
        found = pairs(images, opponents)
        assert len(set(found)) == len(found)
        counts = [sum(number in pair for pair in found) for number in range(images)]
        assert counts == [met] * images


def test_requests_run_in_parallel_and_keep_their_order():
    together = threading.Barrier(3, timeout=10)  # passes only if three requests run at once

    def answer(number, request):
        together.wait()
        return 200, says(str(level(seen(request)[0])))

    with chatting(answer) as chat:
        reward = vlm(chat, form="score", in_flight=3)
        assert reward.score(greys(*range(9)), ["a"] * 9).tolist() == list(range(9))


# ------------------------------------------------------------------------ a server that misbehaves


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_a_passing_fault_is_asked_again(status):
    def answer(number, request):
        return (200, says("4")) if number else (status, "{}")

    with chatting(answer) as chat:
        assert vlm(chat, form="score").score(greys(7), ["a"]).tolist() == [4.0]
    assert len(chat.requests) == 2
    assert chat.requests[0] == chat.requests[1]


def test_retry_after_is_waited_for(monkeypatch):
    waits = []
    monkeypatch.setattr(threading.Event, "wait", lambda self, seconds=None: waits.append(seconds))
    reward = Vlm(Vlm.Options("http://127.0.0.1:9/v1", "m"))
    from dpok_cli.rewards.remote import Answer

    answers = iter([Answer(429, b"", 7.0), Answer(429, b""), Answer(200, b"{}")])
    monkeypatch.setattr(reward, "_post", lambda body: next(answers))
    assert reward.answer(b"", threading.Event()).status == 200
    assert waits == [7.0, 0.2]


def test_a_server_that_asks_for_more_time_than_there_is():
    busy = '{"error": {"message": "slow down"}}'
    with (
        chatting(lambda number, request: (429, busy, {"Retry-After": "3600"})) as chat,
        pytest.raises(RewardError) as caught,
    ):
        vlm(chat).score(greys(7), ["a"])
    assert str(caught.value) == (
        f"vlm: {chat.url} did not answer for 120 s (answered 429: slow down, and asks to wait"
        " 3600 s); start its server again, or allow more time with retry=SECONDS"
    )
    assert len(chat.requests) == 1


def test_a_connection_that_is_closed_is_made_again():
    with chatting(lambda number, request: (200, says("4")), dropped=(0, 1)) as chat:
        assert vlm(chat, form="score").score(greys(7), ["a"]).tolist() == [4.0]
    assert len(chat.requests) == 3


def test_a_server_that_hangs_is_an_error_after_the_retries():
    go_on = threading.Event()
    with chatting(lambda number, request: (200, go_on.wait(30) and "")) as chat:
        with pytest.raises(RewardError) as caught:
            vlm(chat, timeout=0.2, retry=0).score(greys(7), ["a"])
        go_on.set()
    assert str(caught.value) == (
        f"vlm: {chat.url} did not answer for 0 s (TimeoutError: timed out); start its server"
        " again, or allow more time with retry=SECONDS"
    )


WRONG_MODEL = '{"error": {"message": "The model `judge-7b` does not exist."}}'
NO_LOGPROBS = (
    "judge-7b returned no log-probs, which form=yes needs: use a server that has them, as vLLM,"
    " SGLang and llama.cpp do, or form=score"
)
LAST = "(the last of 3 tries); ask another question, or another model"


@pytest.mark.parametrize(
    ("form", "status", "text", "requests", "message"),
    [
        ("yes", 400, "nonsense", 1, "URL answered 400: no reason given"),
        ("yes", 400, '{"detail": "no images"}', 1, "URL answered 400: no images"),
        (
            "yes",
            404,
            WRONG_MODEL,
            1,
            "URL answered 404: The model `judge-7b` does not exist; url= usually ends in /v1, and"
            " the server must have judge-7b",
        ),
        (
            "yes",
            422,
            '{"detail": "Unsupported fields: logprobs"}',
            1,
            "URL answered 422: Unsupported fields: logprobs; it returned no log-probs, which"
            " form=yes needs: use a server that has them, as vLLM, SGLang and llama.cpp do, or"
            " form=score",
        ),
        ("yes", 200, "<html>", 1, "URL returned no chat completion, but '<html>'"),
        ("yes", 200, '{"id": 3}', 1, "URL returned no chat completion, but '{\"id\": 3}'"),
        ("yes", 200, '{"choices": []}', 1, "URL returned no chat completion, but"),
        ("yes", 200, says("Yes"), 1, NO_LOGPROBS),
        ("yes", 200, says("Yes").replace('"index"', '"logprobs": null, "index"'), 1, NO_LOGPROBS),
        (
            "yes",
            200,
            says("The", logs(The=0.5, This=0.25)),
            1,
            "judge-7b began its answer with 'The', and neither yes nor no is among the 2 likeliest"
            " first tokens: ask a question that yes or no answers",
        ),
        ("score", 200, says(""), 3, f"judge-7b answered nothing {LAST}"),
        ("score", 200, says(None), 3, f"judge-7b answered nothing {LAST}"),
        (
            "score",
            200,
            says("11"),
            3,
            f"judge-7b answered '11', which is no number from 0 to 10 {LAST}",
        ),
        (
            "score",
            200,
            says("7/10"),
            3,
            f"judge-7b answered '7/10', which is no number from 0 to 10 {LAST}",
        ),
        ("score", 200, says("nan"), 3, "judge-7b answered 'nan', which is no number"),
        ("score", 200, says("x" * 99), 3, f"judge-7b answered '{'x' * 80}...', which is no"),
        (
            "compare",
            200,
            says("Both."),
            3,
            f"judge-7b answered 'Both.', which is neither 1 nor 2 {LAST}",
        ),
    ],
)
def test_other_answers_are_errors(form, status, text, requests, message):
    images = greys(7, 8) if form == "compare" else greys(7)
    with chatting(lambda number, request: (status, text)) as chat:
        reward = vlm(chat, form=form, in_flight=1)
        with pytest.raises(RewardError) as caught:
            reward.score(images, ["a"] * len(images))
    assert str(caught.value).startswith("vlm: " + message.replace("URL", chat.url))
    # Of two, the other may have been on its way.
    assert requests <= len(chat.requests) <= requests + (2 if reward.compares else 0)


def test_an_answer_that_cannot_be_read_is_asked_for_again_by_chance():
    def answer(number, request):
        return 200, says("6" if request["seed"] == 2 else "well")

    with chatting(answer) as chat:
        reward = vlm(chat, form="score")
        assert reward.score(greys(7), ["a"]).tolist() == [6.0]
        assert reward.score(greys(7), ["a"]).tolist() == [6.0]  # kept under the first question
    chances = [(request["temperature"], request["seed"]) for request in chat.requests]
    assert chances == [(0, 0), (1, 1), (1, 2)]


# ---------------------------------------------------------------------------------------- the key


def test_the_key_is_sent_and_nowhere_else(monkeypatch):
    monkeypatch.setenv("MY_KEY", " sk-secret\n")
    refusal = '{"error": {"message": "Incorrect API key provided: sk-secret"}}'
    with chatting(lambda number, request: (401, refusal)) as chat:
        reward = vlm(chat, key_variable="MY_KEY")
        with pytest.raises(RewardError) as caught:
            reward.score(greys(7), ["a"])
    assert chat.requests[0]["key"] == "Bearer sk-secret"
    assert str(caught.value) == (
        f"vlm: {chat.url} answered 401: Incorrect API key provided: ***; the key is that of the"
        " variable MY_KEY"
    )
    assert caught.value.__cause__.__suppress_context__  # nor in a traceback
    monkeypatch.setenv("MY_KEY", "sk\u00e9cret\nsecret")
    with pytest.raises(RewardError, match=r"^vlm: the variable MY_KEY holds no key$"):
        reward.score(greys(7), ["a"])


def test_a_word_in_place_of_a_key_changes_no_answer(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "o")
    with chatting(lambda number, request: (200, says("no", logs(no=0.75, yes=0.25)))) as chat:
        assert vlm(chat).score(greys(7), ["a"]).tolist() == [0.25]
    with (
        chatting(lambda number, request: (404, '{"error": "no model"}')) as chat,
        pytest.raises(RewardError, match="answered 404: no model; url= usually ends in /v1"),
    ):
        vlm(chat, cache=None).score(greys(7), ["a"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "needs the option 'url'"),
        (":url=http://h", "needs the option 'model'"),
        (":url=h,model=m", "must be of the form http://host:port"),
        (":url=http://me:pw@h,model=m", "url must hold no password: put a key into key_variable"),
        (":url=http://h,model=m,key_variable=sk-1", "the name of an environment variable, not a"),
        (":url=http://h,model=m,form=rank", "must be one of yes, score, compare"),
        (":url=http://h,model=m,form=score,low=3,high=3", "low must be < high"),
        (":url=http://h,model=m,high=5", "low and high belong to form=score"),
        (":url=http://h,model=m,opponents=2", "opponents belongs to form=compare"),
        (":url=http://h,model=m,form=compare,opponents=-1", "opponents must be >= 0"),
        (":url=http://h,model=m,tries=0", "tries >= 1"),
        (":url=http://h,model=m,in_flight=0", "in_flight and timeout must be > 0"),
        (':url=http://h,model=m,question="Is it, really', "starts with a quote, which must end it"),
    ],
)
def test_invalid_options(options, message):
    with pytest.raises(InputError) as caught:
        build([f"vlm{options}"])
    assert message in str(caught.value)
    assert "pw" not in str(caught.value).partition(": ")[2] or "url=" not in message


# ------------------------------------------------------------------------------- kept answers


def test_nothing_is_asked_twice_by_any_process(tmp_path):
    def answer(number, request):
        return 200, says(str(level(seen(request)[0])))

    with chatting(answer) as chat:
        first, again = vlm(chat, form="score"), vlm(chat, form="score")
        assert first.score(greys(1, 2, 3), ["a"] * 3).tolist() == [1.0, 2.0, 3.0]
        assert again.score(greys(3, 2, 1, 4), ["a"] * 4).tolist() == [3.0, 2.0, 1.0, 4.0]
        assert len(chat.requests) == 4
        file = tmp_path / "cache" / "vlm.sqlite"
        with sqlite3.connect(file) as answers:
            assert sorted(answers.execute("SELECT value FROM answers")) == [(1,), (2,), (3,), (4,)]
        # Another image, question, model, form or range is another question; a server is not.
        first.score(greys(1), ["b"])
        vlm(chat, form="score", question="How red?").score(greys(1), ["a"])
        Vlm(Vlm.Options(chat.url, "other", form="score")).score(greys(1), ["a"])
        question = first.form.question.replace("{low}", "0").replace("{high}", "10")
        vlm(chat, form="score", high=9, question=question).score(greys(1), ["a"])
        assert len(chat.requests) == 8
        vlm(chat, form="score", cache=None).score(greys(1), ["a"])
        vlm(chat, form="score", cache=str(tmp_path / "mine")).score(greys(1), ["a"])
        assert len(chat.requests) == 10
        assert (tmp_path / "mine" / "vlm.sqlite").is_file()
    with chatting(answer) as elsewhere:
        assert vlm(elsewhere, form="score").score(greys(4), ["a"]).tolist() == [4.0]
    assert elsewhere.requests == []


def test_comparisons_are_kept_by_their_order():
    with chatting(brighter) as chat:
        vlm(chat, form="compare").score(greys(10, 20), ["a", "a"])
        again = vlm(chat, form="compare").score(greys(20, 10, 30), ["a", "a", "a"])
    assert again.tolist() == [0.5, 0.0, 1.0]
    assert len(chat.requests) == 6


def test_what_failed_is_not_kept():
    with chatting(lambda number, request: (200, says("4" if number else "?"))) as chat:
        with pytest.raises(RewardError, match="answered '\\?', which is no number"):
            vlm(chat, form="score", tries=1).score(greys(7), ["a"])
        assert vlm(chat, form="score", tries=1).score(greys(7), ["a"]).tolist() == [4.0]


def test_a_cache_that_cannot_be_used_is_named_before_anything_is_asked(tmp_path):
    (tmp_path / "vlm.sqlite").write_bytes(b"no database" * 100)
    chat = Chat(lambda number, request: (200, says("4")))
    chat.stop()
    with pytest.raises(RewardError) as caught:
        vlm(chat, cache=str(tmp_path)).prepare()
    assert str(caught.value) == (
        f"vlm: could not be loaded: the cache {tmp_path / 'vlm.sqlite'} cannot be used: file is"
        " not a database; remove it, or give cache=FOLDER or cache=none"
    )
