import os

import pytest
from PIL import Image

from dpok_cli.engine.rl.measures import rl_measures
from dpok_cli.engine.rl.objectives import OBJECTIVES
from dpok_cli.engine.runs.plots import plot_metrics


def history(rounds):
    return [
        {"round": float(n), "reward/mean": n / 10, "reward/std": 0.2, "kl": n * 1e-4}
        for n in range(1, rounds + 1)
    ]


@pytest.mark.parametrize("rounds", [1, 30])
def test_metrics_are_drawn_in_green_and_blue(rounds, tmp_path):
    file = tmp_path / "plots" / "metrics.png"
    plot_metrics(history(rounds), rl_measures(OBJECTIVES["dpok"]), "round", file)
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        assert picture.size == (840, 600)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    assert {(44, 160, 44), (31, 119, 180)} <= colours


def test_a_plot_that_is_cut_off_leaves_the_one_before(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def draw(rounds):
        file = tmp_path / "metrics.png"
        plot_metrics(history(rounds), rl_measures(OBJECTIVES["dpok"]), "round", file)
        return file.read_bytes()

    before = draw(1)
    original = Figure.savefig

    def cut_off(figure, file, **options):
        original(figure, file, **options)
        os.truncate(file, 100)
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", cut_off)
    with pytest.raises(KeyboardInterrupt):
        draw(2)
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.png"]
    assert (tmp_path / "metrics.png").read_bytes() == before
