"""An evaluation from start to finish: draw what is missing, score it, and write the results."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from dpok_cli.config import TINY
from dpok_cli.engine.distributed import device_of, is_main, on_main, process_state
from dpok_cli.engine.evaluation.draw import check_models, draw
from dpok_cli.engine.evaluation.folder import EvaluationFolder, Record
from dpok_cli.engine.evaluation.plan import Evaluation
from dpok_cli.engine.evaluation.results import Results, summarise, to_csv
from dpok_cli.engine.runs.files import write_text
from dpok_cli.engine.runs.versions import note_versions
from dpok_cli.rewards.combined import WeightedReward
from dpok_cli.rewards.embedding import image_embedding
from dpok_cli.rewards.manager import build
from dpok_cli.strict_json import dumps, strict


def evaluate(
    evaluation: Evaluation,
    folder: EvaluationFolder,
    progress: Callable[[Iterator[Record]], Iterable[Record]] = iter,
    warn: Callable[[str], None] = warnings.warn,
) -> Results:
    """Evaluate in ``folder``, and return what its results.json holds.

    Images that the folder already has are not drawn again. ``progress`` wraps the iterator over
    the images, as tqdm does; ``warn`` gets warnings. All ranks return the same. Raises what `start`
    and `draw` raise.
    """
    with start(evaluation, folder.path, warn) as (reward, folder):
        for _ in progress(draw(evaluation, reward, folder)):
            pass
        process_state(evaluation.config.device).wait_for_everyone()
        return finish(evaluation, reward, folder)


@contextmanager
def start(
    evaluation: Evaluation, path: Path, warn: Callable[[str], None] = warnings.warn
) -> Iterator[tuple[WeightedReward, EvaluationFolder]]:
    """Make the reward and the folder of an evaluation, which has no other writer in the block.

    ``warn`` gets a line on each reward that has changed since a folder was last used, and at the
    start one on each prompt that is too long for the model, and on each reward for which some are.
    The folder is made only once all models and rewards could be loaded. Raises InputError for a
    model or folder that cannot be used, RewardError for a reward that cannot be loaded.
    """
    config = evaluation.config
    processes = process_state(config.device)
    reward = build(
        evaluation.rewards, device_of(config.device), tiny=config.model == TINY, rest=config.offload
    )
    too_long: list[str] = []
    if not EvaluationFolder.check(path, evaluation).begun:
        too_long = check_models(evaluation)
        reward.prepare()
        too_long += reward.unread([prompt.text for prompt in evaluation.prompts])
    folder = EvaluationFolder(path)
    with on_main(partial(folder.writing, evaluation), processes):
        if processes.is_main_process:
            note_versions(path, reward, warn)
            for line in too_long:
                warn(line)
        yield reward, folder


def finish(evaluation: Evaluation, reward: WeightedReward, folder: EvaluationFolder) -> Results:
    """Summarise an evaluation whose images are all drawn; rank 0 writes results.json and .csv.

    Numbers that are not finite are None, as results.json has them.
    """
    config = evaluation.config
    embedding = image_embedding(config.model, device_of(config.device), reward)
    results = strict(summarise(evaluation, reward, folder, embedding))
    if is_main(config.device):
        write_text(folder.results, dumps(results, indent=2) + "\n")
        write_text(folder.table, to_csv(results))
    return results
