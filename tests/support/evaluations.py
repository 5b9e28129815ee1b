"""Evaluation folders for tests."""

from pathlib import Path

from dpok_cli.engine.evaluation.folder import EvaluationFolder
from dpok_cli.engine.evaluation.plan import Evaluation


def open_folder(path: Path, evaluation: Evaluation) -> EvaluationFolder:
    """Make the folder of an evaluation, or open one that was made with the same settings."""
    folder = EvaluationFolder(path)
    with folder.writing(evaluation):
        return folder
