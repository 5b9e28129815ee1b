"""Errors for the user: one line that says what is wrong and what to do."""

import difflib
from collections.abc import Iterable


class DpokError(Exception):
    """A failure to report to the user; ends the command with exit code 1."""

    exit_code = 1


class InputError(DpokError):
    """A flag, file or name that cannot be used; ends the command with exit code 2."""

    exit_code = 2


class RewardError(DpokError):
    """A reward failed or returned something that is no score; names the reward."""


class TrainingError(DpokError):
    """Training cannot continue; progress so far is kept in the run folder."""


class NotFiniteError(TrainingError):
    """Images hold NaN or infinity; in training the run ends, and its checkpoints stay."""


class MemoryFullError(DpokError):
    """A device lacks the memory that the settings need; names settings that need less."""


class StopRequested(Exception):
    """A stop was requested: work ends early, before it has changed anything. No error."""


def suggest(word: str, known: Iterable[str]) -> str:
    """Return the advice that follows an unknown name: near matches, then all that is known."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.5)
    did_you_mean = f" Did you mean {' or '.join(repr(name) for name in near)}?" if near else ""
    return f"{did_you_mean} Known: {', '.join(names) or 'none'}."
