"""Ranges of seeds by purpose, so that no image is both trained on and evaluated.

0, 1, 2, ...            `dpok sample`, and the sample grids of a run
FRESH_SEEDS             before and after training (`evaluation.compare`)
2 FRESH_SEEDS + seed    `dpok evaluate`
2^62 ...                the image set of supervised fine-tuning
anything below 2^63     rollouts: random, so equal to one of the others with a chance of 2^-63

numpy is imported where a seed is drawn, since plans are made without it.
"""

#: The first seed of the images before and after training; sample grids and users count from 0.
FRESH_SEEDS = 10**9


def evaluation_seeds(seed: int, samples: int) -> range:
    """Return the seeds of an evaluation, distinct from training's and from `FRESH_SEEDS`'."""
    first = 2 * FRESH_SEEDS + seed
    return range(first, first + samples)


def first_image_set_seed(seed: int) -> int:
    """Return the first of an image set's consecutive seeds, in [2^62, 2^62 + 2^61)."""
    import numpy as np

    start = np.random.SeedSequence([seed, *b"image set"]).generate_state(1, np.uint64)[0]
    return 2**62 + int(start) % 2**61


def purpose_seed(seed: int, number: int, purpose: str) -> int:
    """Return the seed, in [0, 2^63), of one ``purpose`` in one round or step of a run.

    Seeds follow from their place in the run, so no generator's state has to be kept.
    """
    import numpy as np

    key = [seed, number, int.from_bytes(purpose.encode(), "big")]
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def rollout_seeds(seed: int, number: int, samples: int) -> list[int]:
    """Return a seed in [0, 2^63) for each of a round's samples."""
    import numpy as np

    state = np.random.SeedSequence([seed, number]).generate_state(samples, np.uint64)
    return [int(one >> np.uint64(1)) for one in state]
