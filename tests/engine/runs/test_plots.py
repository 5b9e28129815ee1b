import pytest
from PIL import Image

from dpok_cli.engine.runs.plots import plot_metrics, side_by_side


def history(rounds):
    return [
        {"round": float(n), "reward/mean": n / 10, "reward/std": 0.2, "kl": n * 1e-4}
        for n in range(1, rounds + 1)
    ]


@pytest.mark.parametrize("rounds", [1, 30])
def test_metrics_are_drawn_in_green_and_blue(rounds, tmp_path):
    file = tmp_path / "plots" / "metrics.png"
    plot_metrics(history(rounds), file)
    with Image.open(file) as picture:
        assert picture.format == "PNG"
        assert picture.size == (840, 600)
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    assert {(44, 160, 44), (31, 119, 180)} <= colours


def test_pictures_stand_side_by_side_under_their_titles():
    before, after = Image.new("RGB", (64, 32), "red"), Image.new("RGB", (100, 48), "blue")
    sheet = side_by_side({"before": before, "after": after})
    assert sheet.size == (64 + 16 + 100, 28 + 48)
    assert sheet.crop((0, 28, 64, 60)).tobytes() == before.tobytes()
    assert sheet.crop((80, 28, 180, 76)).tobytes() == after.tobytes()
    for left in (0, 80):  # some ink, on white
        pixels = sheet.crop((left, 0, left + 60, 28)).convert("L").tobytes()
        assert min(pixels) < 64
        assert max(pixels) == 255
