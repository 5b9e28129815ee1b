import base64
import json
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from dpok_cli.rewards.wire import TooLarge, pack, unpack


def png(width=4, height=3, mode="RGB", color=None, format="PNG"):
    file = BytesIO()
    Image.new(mode, (width, height), color or 0).save(file, format)
    return base64.b64encode(file.getvalue()).decode()


def body(images, prompts) -> bytes:
    return json.dumps({"images": images, "prompts": prompts}).encode()


def test_unpack_inverts_pack_with_eight_bits():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 6, 7), dtype=np.uint8)
    images = torch.from_numpy(pixels) / 255
    prompts = ["", "a cat", 'says "é", 猫', "\n", "a cat"]
    again, same = unpack(pack(images, prompts))
    assert torch.equal(again, images)
    assert again.dtype == torch.float32
    assert same == prompts
    between, _ = unpack(pack(torch.full((1, 3, 2, 2), 0.5), ["a"]))
    assert set((between * 255).flatten().tolist()) == {128.0}


def test_the_format_is_what_the_documentation_says():
    message = json.loads(pack(torch.zeros(1, 3, 3, 4), ["a cat"]))
    assert message.keys() == {"prompts", "images"}
    assert message["prompts"] == ["a cat"]
    picture = Image.open(BytesIO(base64.b64decode(message["images"][0])))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (4, 3))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "the body is not JSON"),
        (b"\xff\xfe", "the body is not JSON"),
        (b"[" * 100_000, "the body is not JSON"),
        (b"[]", "'prompts' must be a list of strings"),
        (b'{"prompts": "a"}', "'prompts' must be a list of strings"),
        (b'{"prompts": ["a"]}', "'images' must be a list of strings"),
        (b'{"prompts": ["a"], "images": [1]}', "'images' must be a list of strings"),
        (body([], []), "there are no images"),
        (body([png()], ["a", "b"]), "got 1 images but 2 prompts"),
        (body(["?"], ["a"]), "an image is not a PNG in base64"),
        (body([png()[:40]], ["a"]), "an image is not a PNG in base64"),
        (body([png(format="JPEG")], ["a"]), "an image is not a PNG in base64"),
        (body([png(), png(3, 4)], ["a", "b"]), "the images differ in size"),
    ],
)
def test_invalid_messages_are_refused_with_the_reason(text, message):
    with pytest.raises(ValueError, match=rf"^{message}$"):
        unpack(text)


def test_images_are_counted_together_before_they_are_decoded(monkeypatch):
    assert len(unpack(body([png(), png()], ["a", "b"]), 24)[0]) == 2
    monkeypatch.setattr(Image.Image, "convert", None)
    with pytest.raises(TooLarge, match=r"have 25 million .* accepts 20 million \("):
        unpack(body([png(5000, 4999), png(5000, 1)], ["a", "b"]))
    with pytest.raises(TooLarge, match="an image is too large"):
        unpack(body([png(20_000, 20_000, mode="1")], ["a"]))


def test_other_pngs_become_rgb():
    images, _ = unpack(
        body([png(mode="L", color=51), png(mode="RGBA", color=(0, 255, 51, 0))], ["a", "b"])
    )
    assert images[0, :, 0, 0].tolist() == pytest.approx([0.2, 0.2, 0.2])
    assert images[1, :, 0, 0].tolist() == [1, 1, 1]  # on white
