"""What a run leaves for people and other tools: metrics, sample grids, the adapter and its card."""

from torch import Tensor

from dpok_cli.engine.bases.source import loading_code
from dpok_cli.engine.lora.card import adapter_card
from dpok_cli.engine.runs.files import replacing, write_text
from dpok_cli.engine.runs.folder import number_of
from dpok_cli.engine.sampling.pictures import grid
from dpok_cli.engine.sampling.sampler import Sample
from dpok_cli.engine.training.session import Session
from dpok_cli.engine.training.tracker import Tracker
from dpok_cli.errors import StopRequested

Metrics = dict[str, float]


class Outputs:
    """The outputs of one run, written by rank 0; without a run folder there are none."""

    def __init__(self, session: Session, unit: str):
        """``unit`` is "round" or "step", what the sample grids are numbered by."""
        self.config, self.model, self.unit = session.config, session.model, unit
        self.run = session.run if session.is_main else None
        tracker = self.config.tracker
        self.tracker = Tracker(tracker, self.run, session.accelerator, session.warn)
        self.sampler = session.sampler_of(self.config.for_evaluation())

    def resume(self, number: int) -> None:
        """Start after round or step ``number``: later metrics are removed.

        config.toml takes the settings that a resume may change, so the next one keeps them.
        """
        if self.run:
            self.run.write_config(self.config)
            self.run.cut(number)
        self.tracker.start(number, self.config)

    def log(self, number: int, metrics: Metrics) -> None:
        """Add a line to metrics.jsonl, and send it to the tracker."""
        if self.run:
            self.run.append(metrics)
        self.tracker.log(number, metrics)

    def amend(self, number: int, metrics: Metrics) -> bool:
        """Add metrics to the record of round or step ``number``, which was logged without them.

        Returns False if it has none, as steps between records. Those of the model before training,
        ``number`` 0, are for the tracker only.
        """
        if not number:
            self.tracker.log(number, metrics)
        if not self.run or not metrics or not number:
            return True
        history = self.run.history()
        if not history or number_of(history[-1]) != number:
            return False
        self.run.cut(number - 1)
        self.run.append(history[-1] | metrics)
        self.tracker.log(number, metrics)
        return True

    def draw_grid(self, number: int, again: bool = True) -> list[Sample]:
        """Draw the sample grid, from the same seeds each time; not ``again`` if it is there.

        It is written, and sent to the tracker. Returns its samples, on rank 0. There are none if a
        stop comes first.
        """
        count = self.config.sample_count
        if not self.run or not self.config.sample_every or not count:
            return []
        file = self.run.samples / f"{self.unit}-{number:05d}.png"
        if file.exists() and not again:
            return []
        prompts = self.config.prompts[:count]
        each = count // len(prompts)
        try:
            samples = list(self.sampler.sample(prompts, range(each)))
        except StopRequested:
            return []
        columns = each if len(prompts) > 1 else max(1, round(each**0.5))
        picture = grid([one.image for one in samples], columns)
        self.run.samples.mkdir(exist_ok=True)
        with replacing(file) as temporary:
            picture.save(temporary, format="png")
        self.tracker.log_grid(number, picture)
        return samples

    def save_adapter(self, samples: int, best: dict[str, Tensor] | None = None) -> None:
        """Write the adapter, trained on ``samples`` images, and its model card.

        If ``best`` is another one's state, that is written, and the newest beside it.
        """
        if not self.run:
            return
        adapter = self.model.adapter
        if best:
            adapter.save(self.run.last_adapter)
            newest = adapter.copy()
            adapter.load_state_dict(best)
            adapter.save(self.run.adapter)
            adapter.load_state_dict(newest)
        else:
            adapter.save(self.run.adapter)
        base = self.model.base
        kind = base.pipeline_class.__name__
        loading = loading_code(self.config, kind)
        guidance = base.call_arguments(self.config.guidance_scale, self.config.negative_prompt)
        card = adapter_card(self.config, samples, kind, loading, base.ddim_arguments(), guidance)
        write_text(self.run.adapter / "README.md", card)

    def close(self) -> None:
        self.tracker.close()
