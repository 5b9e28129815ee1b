"""Pictures for people: enlarged, in grids, side by side."""

from PIL import Image

from dpok_cli.engine.sampling.pictures import side_by_side


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
