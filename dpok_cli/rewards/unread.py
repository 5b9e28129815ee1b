"""Prompts that are longer than a reward reads: which words it leaves out, and the line on them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

#: The most prompts that a line names.
SHOWN = 3


def unread_end(tokenizer: Any, prompt: str, limit: int) -> str:
    """Return the end of a prompt that does not fit into ``limit`` tokens, or "".

    Those include one before its first word and one after its last, as CLIP and BERT have them. It
    is as the tokenizer writes it.
    """
    if len(prompt.encode(errors="replace")) <= limit - 2:  # a token is a byte or more
        return ""
    *tokens, _ = tokenizer(prompt).input_ids
    return tokenizer.decode(tokens[limit - 1 :]).strip()


def unread_line(reward: str, prompts: Iterable[str], unread: Callable[[str], str]) -> str:
    """Return one line on the prompts whose ends a reward does not read, "" if there are none."""
    ends = {prompt: end for prompt in dict.fromkeys(prompts) if (end := unread(prompt))}
    parts = [f"{end!r} at the end of {prompt!r}" for prompt, end in ends.items()][:SHOWN]
    if len(ends) > SHOWN:
        parts.append(f"the ends of {len(ends) - SHOWN} more prompts")
    return f"The reward {reward} does not read {', nor '.join(parts)}." if parts else ""
