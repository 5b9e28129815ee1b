"""Experiment trackers through accelerate (TensorBoard, W&B, ...); training can do without."""

from collections.abc import Callable, Mapping

from accelerate import Accelerator


class Tracker:
    """Sends metrics to one tracker; an unreachable tracker warns once and is left out."""

    def __init__(self, name: str, accelerator: Accelerator, warn: Callable[[str], None]):
        """``name`` is accelerate's; "" tracks nothing."""
        self.name, self.accelerator, self.warn = name, accelerator, warn

    def start(self) -> None:
        if not self.name:
            return
        try:
            self.accelerator.init_trackers("dpok")
            if not self.accelerator.trackers:  # accelerate leaves out one that is not installed
                raise ModuleNotFoundError("it is not installed")
        except Exception as error:
            self._drop(error)

    def log(self, number: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of round or step ``number``."""
        if not self.name:
            return
        try:
            self.accelerator.log(dict(metrics), step=number)
        except Exception as error:  # an unreachable tracker must not end the run
            self._drop(error)

    def close(self) -> None:
        try:
            self.accelerator.end_training()
        except Exception as error:
            self._drop(error)
            self.accelerator.end_training()

    def _drop(self, error: Exception) -> None:
        self.accelerator.trackers = []
        reason = " ".join(f"{error}".split()) or type(error).__name__
        self.warn(
            f"The tracker {self.name} cannot be used, and training continues without it: {reason}."
        )
