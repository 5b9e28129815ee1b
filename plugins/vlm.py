"""The reward ``vlm``: what a vision-language model answers when it is asked about an image.

The model is behind a server with OpenAI's chat completions API, such as vLLM, SGLang, llama.cpp or
`transformers serve`. Questions of the form "yes" are those of VQAScore (Lin et al. 2024, arXiv
2404.01291); the win rate of "compare" is that of Pref-GRPO (Wang et al. 2025, arXiv 2508.20751).
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from threading import Event
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from dpok_cli import hookimpl
from dpok_cli.errors import RewardError
from dpok_cli.rewards.remote import Answer, RemoteReward, as_body, check_requests
from dpok_plugins.vlm_forms import FORMS, NO_LOGPROBS, Unanswerable, Unreadable

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from dpok_cli.rewards.answers import Answers

LOW, HIGH = 0.0, 10.0
#: Characters of a key that is a secret; local servers are given words such as "none".
SHORTEST_KEY = 8
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class Vlm(RemoteReward):
    """What a vision-language model answers, asked over the chat API of a server at ``url``.

    By ``form``, the score is the probability of yes, a number, or the share of a prompt's other
    images that it is preferred to.
    """

    name = "vlm"
    batch_size = 256
    path = "/chat/completions"
    passing = (408, 429, 500, 502, 503, 504)  # chat servers answer 500 to passing faults, too

    @dataclass(frozen=True)
    class Options:
        """Questions to ``model`` at ``url``, which usually ends in /v1.

        ``form``: "yes" is the probability of yes against no, "score" a number from ``low`` to
        ``high``, "compare" the win rate among a prompt's images, against all others or about so
        many ``opponents`` each. ``question``: with {prompt}, and {low} and {high}; every form has
        one. A question with a comma is in double quotes.

        ``key_variable`` is the environment variable with the API key, which is sent if it is set.
        Answers are kept in ``cache``: "auto" (in ~/.cache/dpok), a folder, or none. A request may
        take ``timeout`` seconds, and is repeated for up to ``retry`` seconds after its first
        failure; ``in_flight`` run at a time. An answer that is not of the form is asked for up to
        ``tries`` times.
        """

        url: str
        model: str
        form: Literal["yes", "score", "compare"] = "yes"
        question: str = ""
        low: float = LOW
        high: float = HIGH
        opponents: int = 0
        key_variable: str = "OPENAI_API_KEY"
        cache: str | None = "auto"
        in_flight: int = 8
        timeout: float = 60.0
        retry: float = 120.0
        tries: int = 3

        def __post_init__(self) -> None:
            check_requests(self.url, self.in_flight, self.timeout, self.retry)
            if urlsplit(self.url).username is not None:
                raise ValueError("url must hold no password: put a key into key_variable")
            if not _VARIABLE.fullmatch(self.key_variable):
                raise ValueError("key_variable is the name of an environment variable, not a key")
            if not self.low < self.high:
                raise ValueError("low must be < high")
            if self.form != "score" and (self.low, self.high) != (LOW, HIGH):
                raise ValueError("low and high belong to form=score")
            if self.form != "compare" and self.opponents:
                raise ValueError("opponents belongs to form=compare")
            if self.opponents < 0 or self.tries < 1:
                raise ValueError("opponents must be >= 0, and tries >= 1")

    def __init__(self, options: Any = None, device: str | torch.device = "cpu"):
        super().__init__(options, device)
        given = self.options
        self.form = FORMS[given.form]
        self.range = (given.low, given.high) if given.form == "score" else (0.0, 1.0)
        self._answers: Answers | None = None

    @property
    def compares(self) -> bool:
        return bool(self.options.form == "compare")

    def load(self) -> None:
        from dpok_cli.rewards.answers import Answers, folder_of

        if self.options.cache is not None:
            self._answers = Answers(folder_of(self.options.cache) / "vlm.sqlite")

    def score_batch(self, images: Tensor, prompts: list[str]) -> Tensor:
        import torch

        from dpok_cli.rewards.wire import png

        def ask(row: int, stop: Event) -> float:
            return self._ask([png(images[row])], prompts[row], stop)

        return torch.tensor(self.ask_all(ask, range(len(prompts))), dtype=torch.float32)

    def score_group(self, images: Tensor, prompt: str) -> Tensor:
        """Return each image's share of wins; 1/2 for an image alone.

        A pair is asked about twice, with either image first, so that a preference for a place
        counts for both.
        """
        import torch

        from dpok_cli.rewards.wire import png

        pictures = [png(image) for image in images]
        met = pairs(len(pictures), self.options.opponents)
        asked = [each for pair in met for each in (pair, pair[::-1])]

        def ask(pair: tuple[int, int], stop: Event) -> float:
            return self._ask([pictures[number] for number in pair], prompt, stop)

        won, games = torch.zeros(len(images)), torch.zeros(len(images))
        for (first, second), value in zip(asked, self.ask_all(ask, asked), strict=True):
            won[first] += value
            won[second] += 1 - value
            games[[first, second]] += 1
        return torch.where(games > 0, won / games, 0.5)

    def headers(self) -> dict[str, str]:
        key = self._key()
        if not (key.isascii() and key.isprintable()):
            raise RewardError(f"the variable {self.options.key_variable} holds no key")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _key(self) -> str:
        return os.environ.get(self.options.key_variable, "").strip()

    def _ask(self, pictures: Sequence[str], prompt: str, stop: Event) -> float:
        """Return the number that the model answers about PNGs in base64, or has answered before."""
        try:
            return self._number(pictures, prompt, stop)
        except RewardError as error:
            key = self._key()
            if len(key) < SHORTEST_KEY or key not in str(error):
                raise
            # Some servers repeat a key that they refuse; it must reach no log.
            raise RewardError(str(error).replace(key, "***")) from None

    def _number(self, pictures: Sequence[str], prompt: str, stop: Event) -> float:
        low, high = self.range or (0.0, 1.0)
        question = self.options.question or self.form.question
        for name, text in (("low", f"{low:g}"), ("high", f"{high:g}"), ("prompt", prompt)):
            question = question.replace(f"{{{name}}}", text)
        first = self._request(pictures, question, 0)
        key = sha256(f"{self.options.form} {low} {high} ".encode() + first).hexdigest()
        if self._answers and (kept := self._answers.get(key)) is not None:
            return kept
        for attempt in range(self.options.tries):
            request = self._request(pictures, question, attempt) if attempt else first
            try:
                value = self.form.read(self._choice(self.answer(request, stop)), low, high)
                break
            except Unanswerable as error:
                raise RewardError(f"{self.options.model} {error}") from error
            except Unreadable as error:
                why = error
                if stop.is_set():  # another question has failed already
                    raise RewardError(f"{self.options.model} {why}") from error
        else:
            raise RewardError(
                f"{self.options.model} {why} (the last of {self.options.tries} tries); ask another"
                " question, or another model"
            )
        if self._answers:
            self._answers.put(key, value)
        return value

    def _request(self, pictures: Sequence[str], question: str, attempt: int) -> bytes:
        """Return a request that always gets the same answer; further attempts get others."""
        urls = [{"url": f"data:image/png;base64,{picture}"} for picture in pictures]
        content = [{"type": "image_url", "image_url": url} for url in urls]
        message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        # At temperature 0 an answer that cannot be read would come again.
        chance = {"temperature": 1 if attempt else 0, "seed": attempt}
        asked = {"model": self.options.model, "messages": [message], **chance, **self.form.fields}
        return as_body(asked)

    def _choice(self, answer: Answer) -> dict[str, Any]:
        """Return the choice in an answer; raises RewardError, with advice, if there is none."""
        where, given = self.options.url, self.options
        if answer.status != 200:
            reason = answer.reason.rstrip(".") or "no reason given"
            advice = {
                401: f"; the key is that of the variable {given.key_variable}",
                404: f"; url= usually ends in /v1, and the server must have {given.model}",
            }.get(answer.status, "")
            if "logprobs" in reason and given.form == "yes":
                advice = f"; it {NO_LOGPROBS}"
            raise RewardError(f"{where} answered {answer.status}: {reason}{advice}")
        choices = answer.content.get("choices")
        if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
            start = answer.body[:80].decode(errors="replace")
            raise RewardError(f"{where} returned no chat completion, but {start!r}")
        return choices[0]


def pairs(images: int, opponents: int = 0) -> list[tuple[int, int]]:
    """Return pairs of so many images: all, or each with its neighbours in a circle.

    An image then meets ``opponents`` others, or one more if that is odd.
    """
    if not opponents or opponents >= images - 1:
        return list(combinations(range(images), 2))
    steps = range(1, -(-opponents // 2) + 1)
    found = {tuple(sorted((n, (n + step) % images))) for n in range(images) for step in steps}
    return sorted((first, second) for first, second in found)


@hookimpl
def register_rewards(register):
    register(Vlm)
