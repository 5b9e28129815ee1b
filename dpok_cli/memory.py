"""Out of memory, on any device, as one line with the settings that need less; without torch."""

from collections.abc import Iterator
from contextlib import contextmanager

from dpok_cli.config import SamplingConfig, TrainingConfig
from dpok_cli.errors import DpokError, MemoryFullError, RewardError

#: Phrases of an out-of-memory RuntimeError, from the CPU's allocator and some drivers.
_PHRASES = ("can't allocate memory", "not enough memory", "out of memory")


@contextmanager
def advice_when_full(
    settings: SamplingConfig, resume: str = "", processes: int = 1
) -> Iterator[None]:
    """Turn an out-of-memory error in the block into a MemoryFullError with advice.

    ``resume`` is the command that resumes the run, if there is one; each batch is sharded over
    ``processes``.
    """
    try:
        yield
    except MemoryFullError:
        raise
    except Exception as error:
        causes = list(_chain(error))
        full = next((cause for cause in causes if _is_full(cause)), None)
        if full is None:
            raise
        reward = next((str(cause) for cause in causes if isinstance(cause, RewardError)), "")
        where = reward and f" in the reward {reward.partition(':')[0]}"
        said = _sentence(str(full)) or type(full).__name__
        advice = _advice(settings, resume, processes, where)
        raise MemoryFullError(f"Out of memory{where} ({said}). {advice}") from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    while error is not None and error not in seen:  # an error may be its own cause
        seen.append(error)
        yield error
        error = error.__cause__


def _sentence(text: str) -> str:
    """Return the sentence of an error that contains one of the phrases, or its first."""
    sentences = [sentence.rstrip(".") for sentence in " ".join(text.split()).split(". ")]
    telling = (one for one in sentences if any(phrase in one.lower() for phrase in _PHRASES))
    return next(telling, sentences[0])


def _is_full(error: BaseException) -> bool:
    if isinstance(error, DpokError):
        return False
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(phrase in text for phrase in _PHRASES)


def _advice(settings: SamplingConfig, resume: str, processes: int, reward: str) -> str:
    if reward:
        less = "Score it elsewhere: dpok serve-reward there, and --reward http:url=... here"
        return f"{less}, in a new run."
    same, other = _less(settings, processes)
    if not resume:
        return f"Give {', or '.join([*same, *other])}."
    first = f"Resume with: {resume} {' '.join(same)}. A" if same else "Only a"
    return f"{first} new run can take {', or '.join(other)}."


def _less(settings: SamplingConfig, processes: int) -> tuple[list[str], list[str]]:
    """Return flags that need less memory: those that do not change a run's results, and others."""
    same, other = [], []
    if settings.sample_batch_size > 1:
        same.append(f"--sample-batch-size {settings.sample_batch_size // 2}")
    if isinstance(settings, TrainingConfig):
        share = settings.batch_size // processes
        parts = next((n for n in range(2, share + 1) if share % n == 0), 1)
        if parts > 1:
            accumulation = settings.gradient_accumulation * parts
            same.append(
                f"--batch-size {settings.batch_size // parts}"
                f" --gradient-accumulation {accumulation}"
            )
        if not settings.gradient_checkpointing:
            same.append("--gradient-checkpointing")
    if settings.precision == "fp32":
        other.append("--precision bf16")
    other.append("a smaller --height and --width")
    return same, other
