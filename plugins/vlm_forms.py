"""The forms of questions to a vision-language model, and how their answers are read.

A request is one of the chat completions API of OpenAI; an answer is one of its "choices".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

NO_LOGPROBS = (
    "returned no log-probs, which form=yes needs: use a server that has them, as vLLM, SGLang and"
    " llama.cpp do, or form=score"
)
_NUMBER = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?")
_CHOICE = re.compile(r"(?:image )?([12])\.?", re.IGNORECASE)
_SHOWN = 80  # characters of an answer that an error shows


class Unreadable(Exception):
    """An answer that is not of the form; says what it is. Another try may do better."""


class Unanswerable(Exception):
    """An answer that is not of the form, and never will be; says what it is."""


@dataclass(frozen=True)
class Form:
    """A form of question."""

    #: Unless the option ``question`` is given; with {prompt}, and {low} and {high}.
    question: str
    #: Further fields of the request.
    fields: dict[str, Any]
    #: Returns the number that a choice gives, within a low and a high; raises `Unreadable` or
    #: `Unanswerable`.
    read: Callable[[dict[str, Any], float, float], float]


def read_yes(choice: dict[str, Any], low: float, high: float) -> float:
    """Return the probability of yes against no as the first token of the answer.

    Tokens that read the same without case and spaces count together. Raises `Unanswerable` without
    log-probs, and if neither word is among the likeliest tokens.
    """
    try:
        first = choice["logprobs"]["content"][0]
        likeliest = [(each["token"], each["logprob"]) for each in first["top_logprobs"]]
        if first["token"] not in dict(likeliest):
            likeliest.append((first["token"], first["logprob"]))
        mass = {"yes": 0.0, "no": 0.0}
        for token, logprob in likeliest:
            if (word := token.strip().lower()) in mass:
                mass[word] += math.exp(logprob)
    except (KeyError, IndexError, TypeError, AttributeError):
        raise Unanswerable(NO_LOGPROBS) from None
    if not sum(mass.values()):
        raise Unanswerable(
            f"began its answer with {first['token']!r}, and neither yes nor no is among the"
            f" {len(likeliest)} likeliest first tokens: ask a question that yes or no answers"
        )
    return mass["yes"] / sum(mass.values())


def read_number(choice: dict[str, Any], low: float, high: float) -> float:
    """Return the number that the answer is; raises `Unreadable` for anything else."""
    text = _text(choice)
    if not _NUMBER.fullmatch(text) or not low <= float(text) <= high:
        raise Unreadable(f"answered {_short(text)}, which is no number from {low:g} to {high:g}")
    return float(text)


def read_choice(choice: dict[str, Any], low: float, high: float) -> float:
    """Return 1 if the answer is the first of two images, 0 if the second."""
    text = _text(choice)
    match = _CHOICE.fullmatch(text)
    if not match:
        raise Unreadable(f"answered {_short(text)}, which is neither 1 nor 2")
    return float(match[1] == "1")


def _text(choice: dict[str, Any]) -> str:
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else None
    if not isinstance(text, str) or not text.strip():
        cut = choice.get("finish_reason") == "length"
        raise Unreadable("answered nothing" + (" before its answer was cut off" if cut else ""))
    return text.strip()


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


FORMS = {
    # The question of VQAScore (Lin et al. 2024, arXiv 2404.01291).
    "yes": Form(
        'Does this figure show "{prompt}"? Please answer yes or no.',
        {"max_tokens": 1, "logprobs": True, "top_logprobs": 20},
        read_yes,
    ),
    "score": Form(
        'How well does this image show "{prompt}"? Answer with one number from {low} (not at all)'
        " to {high} (perfectly), and nothing else.",
        {"max_tokens": 16},
        read_number,
    ),
    "compare": Form(
        'Which of these two images shows "{prompt}" better? Answer with 1 or 2, and nothing else.',
        {"max_tokens": 16},
        read_choice,
    ),
}
