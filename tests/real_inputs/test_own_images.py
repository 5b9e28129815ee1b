"""Folders of training images as people have them: icons cut out of their background, metadata that
an editor on Windows saved, names from a Mac, phone photos with broken EXIF."""

import json
import unicodedata

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def train(dpok, pipeline_folder, tmp_path):
    """Train for a step on the folder "mine"; returns the result and the run's folder."""

    def train():
        small = (
            "--steps=1 --batch-size=2 --lora-rank=2 --num-inference-steps=2 --sample-every=0"
            " --evaluation-samples=0 --tracker= --device=cpu --gamma=300 --name=run"
            f" --reward=jpeg-incompressibility --model={pipeline_folder}"
        )
        return dpok("train-sft", "--dataset=mine", *small.split()), tmp_path / "runs" / "run"

    return train


@pytest.fixture
def mine(tmp_path):
    """Fill the folder "mine" with images by name, and its metadata.jsonl with this text."""

    def mine(images, metadata=None):
        for name, image in images.items():
            file = tmp_path / "mine" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            image.save(file)
        if metadata is None:
            metadata = "".join(json.dumps({"file_name": n, "text": "a cat"}) + "\n" for n in images)
        data = metadata if isinstance(metadata, bytes) else metadata.encode()
        (tmp_path / "mine" / "metadata.jsonl").write_bytes(data)

    return mine


GREEN = Image.new("RGB", (16, 16), (0, 200, 0))


def learned(run):
    """The images trained on, and their prompts."""
    lines = (run / "dataset" / "metadata.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in lines]
    images = [np.array(Image.open(run / "dataset" / each["file_name"])) for each in entries]
    return images, [each["text"] for each in entries]


def test_colours_hidden_under_transparency_are_not_learned(train, mine):
    mine({"cut-out.png": Image.new("RGBA", (16, 16), (255, 0, 0, 0))})
    result, run = train()
    assert result.code == 0, result.err
    ((image,), _) = learned(run)
    assert (image == 255).all()


def test_a_depth_map_is_refused_before_anything_is_made(train, mine, tmp_path):
    mine({"a.png": GREEN, "depth.tif": Image.new("F", (16, 16), 0.5)})
    result, _ = train()
    assert result.code == 2
    assert "mine/depth.tif" in result.err
    assert "mode F" in result.err
    assert not (tmp_path / "runs").exists()


def test_a_file_that_ends_early_is_named(train, mine, tmp_path):
    mine({"good.png": GREEN, "cut.png": Image.effect_noise((32, 32), 50)})
    file = tmp_path / "mine" / "cut.png"
    file.write_bytes(file.read_bytes()[:-300])
    result, run = train()
    assert result.code == 2
    assert "mine/cut.png cannot be read as an image" in result.err
    assert not run.exists()


def test_metadata_from_windows(train, mine):
    line = json.dumps({"file_name": "cats\\green.png", "text": "a cat"})
    mine({"cats/green.png": GREEN}, "\ufeff" + line + "\r\n\r\n")
    result, run = train()
    assert result.code == 0, result.err
    ((image,), prompts) = learned(run)
    assert image.mean(axis=(0, 1)).tolist() == [0, 200, 0]
    assert prompts == ["a cat"]


def test_line_separators_within_a_prompt(train, mine):
    """As in captions that were copied from a web page."""
    text = "a cat\u2028on a mat\u0085asleep"
    line = json.dumps({"file_name": "green.png", "text": text}, ensure_ascii=False)
    mine({"green.png": GREEN}, line + "\n")
    result, run = train()
    assert result.code == 0, result.err
    assert learned(run)[1] == [text]


def test_accents_that_a_mac_took_apart(train, mine):
    name = unicodedata.normalize("NFC", "café.png")
    line = json.dumps({"file_name": name, "text": "a cat"})
    mine({unicodedata.normalize("NFD", name): GREEN}, line)
    result, run = train()
    assert result.code == 0, result.err
    assert len(learned(run)[0]) == 1


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b'\n{"file_name": "green.png", "text": "caf\xe9"}', "line 2 is not UTF-8 text"),
        (rb'{"file_name": "green.png", "text": "a \ud83d cat"}', "line 1: the text"),
        (rb'{"file_name": "..\\..\\x.png", "text": "a cat"}', "leads out of the folder"),
        (b'{"file_name": "' + b"n" * 300 + b'", "text": "a cat"}', "there is no file"),
    ],
    ids=["Latin-1", "half of an emoji", "out of the folder", "too long a name"],
)
def test_metadata_that_cannot_be_read_is_refused(metadata, message, train, mine, tmp_path):
    mine({"green.png": GREEN}, metadata)
    result, _ = train()
    assert result.code == 2
    assert "mine/metadata.jsonl" in result.err
    assert message in result.err
    assert len(result.err.splitlines()) == 1
    assert not (tmp_path / "runs").exists()


def test_photos_with_broken_exif(train, mine, tmp_path):
    """One has no EXIF behind its name; one has a resolution that is a text, and is turned still."""
    mine({"a.png": GREEN, "b.jpg": GREEN})
    GREEN.save(tmp_path / "mine" / "a.png", exif=b"Exif\0\0cut off")
    turn = b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"  # clockwise
    resolution = b"\x01\x1a\0\x02\0\0\0\x01x\0\0\0"
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x02" + turn + resolution + b"\0\0\0\0"
    sky = Image.new("RGB", (32, 32), (0, 0, 0))
    sky.paste("white", (0, 0, 16, 32))
    sky.save(tmp_path / "mine" / "b.jpg", exif=exif)
    result, run = train()
    assert result.code == 0, result.err
    (_, photo), _ = learned(run)
    assert photo[:4].mean() > 250
    assert photo[-4:].mean() < 5
