"""The folder of sampled images."""

import gc
import json
import weakref

import numpy as np
import pytest
from PIL import Image

from dpok_cli.config import SampleConfig
from dpok_cli.engine.sampling import output as module
from dpok_cli.engine.sampling.output import write_samples
from dpok_cli.engine.sampling.pictures import to_pil
from dpok_cli.engine.sampling.sampler import Sampler


@pytest.fixture
def config(make_config):
    return make_config(SampleConfig)


def pixels(file):
    with Image.open(file) as picture:
        return np.asarray(picture).tolist()


def test_images_a_grid_and_a_manifest(model, config, tmp_path):
    seen = []

    def watch(samples):
        for sample in samples:
            seen.append(sample)
            yield sample

    picture = write_samples(model, config, [4, 2], tmp_path / "new", progress=watch)
    assert picture == tmp_path / "new/grid.png"
    files = ["000_4.png", "000_2.png", "001_4.png", "001_2.png"]
    names = {file.name for file in (tmp_path / "new").iterdir()}
    assert names == {*files, "grid.png", "manifest.json"}
    manifest = json.loads((tmp_path / "new/manifest.json").read_text())
    assert manifest["adapter"] is None
    assert manifest["settings"]["num_inference_steps"] == 4
    assert [each["file"] for each in manifest["images"]] == files
    assert [(each["prompt"], each["seed"]) for each in manifest["images"]] == [
        (prompt, seed) for prompt in config.prompts for seed in (4, 2)
    ]
    for file, sample in zip(files, seen, strict=True):
        assert pixels(tmp_path / "new" / file) == np.asarray(to_pil(sample.image)).tolist()


def test_before_is_the_reference(model, shake, config, tmp_path):
    (base,) = Sampler(model, config).sample(["two cats"], [0])
    model.adapter.add(4, 0.0, ["to_q", "to_v", "to_out.0"], seed=0)
    shake(model)
    lora = tmp_path / "lora"
    picture = write_samples(model, config, [0], tmp_path / "new", adapter=lora, before=True)
    assert picture == tmp_path / "new/before_after.png"
    before, after = (pixels(tmp_path / "new" / each / "001_0.png") for each in ("before", "after"))
    assert before == np.asarray(to_pil(base.image)).tolist() != after
    manifest = json.loads((tmp_path / "new/manifest.json").read_text())
    assert manifest["adapter"] == str(lora)
    assert [each["file"] for each in manifest["images"]] == [
        f"{side}/00{row}_0.png" for side in ("before", "after") for row in (0, 1)
    ]


#: Pixels of a very small image in a grid: it is enlarged by 12, with a gap of 24.
CELL = (12 * 16 + 24) ** 2


@pytest.mark.parametrize(
    ("room", "before", "seeds", "shown", "size"),
    [
        (6, False, [4, 2], 6, (2, 3)),
        (5, False, [4, 2], 4, (2, 2)),
        (1, False, [4, 2], 1, (1, 1)),
        (8, True, [4, 2], 4, (2, 2)),
        (2, False, [4, 2, 3], 2, (2, 1)),
    ],
)
def test_a_grid_has_no_more_than_it_has_room_for(
    room, before, seeds, shown, size, model, make_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "LARGEST", room * CELL)
    config = make_config(SampleConfig, prompts=("a", "b", "c"))
    folder, told = tmp_path / "new", []
    if before:
        model.adapter.add(4, 0.0, ["to_q"], seed=0)
    picture = write_samples(model, config, seeds, folder, before=before, warn=told.append)
    total = 3 * len(seeds)
    said = f"{picture.name} has room for {shown} of the {total} images."
    assert told == ([said] if shown < total else [])
    manifest = json.loads((folder / "manifest.json").read_text())
    assert len(manifest["images"]) == total * (1 + before)
    assert all((folder / each["file"]).is_file() for each in manifest["images"])
    side = folder / "after" if before else folder
    with Image.open(side / "grid.png") as grid:
        columns, rows = size
        assert grid.size == (216 * columns - 24, 216 * rows - 24)
        for place in range(shown):
            row, column = divmod(place, columns)
            corner = (216 * column, 216 * row)
            with Image.open(side / f"{row:03}_{seeds[column]}.png") as own:
                expected = own.resize((192, 192), resample=0).tobytes()
            box = (*corner, corner[0] + 192, corner[1] + 192)
            assert grid.crop(box).tobytes() == expected


def test_the_grid_of_many_seeds_of_one_prompt_is_a_square(
    model, make_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "LARGEST", 4 * CELL)
    config = make_config(SampleConfig, prompts=("a cat",))
    write_samples(model, config, range(9), tmp_path / "new", warn=lambda line: None)
    with Image.open(tmp_path / "new" / "grid.png") as grid:
        assert grid.size == (408, 408)


def test_no_more_than_a_batch_is_in_memory(model, make_config, tmp_path, monkeypatch):
    alive, most = weakref.WeakSet(), []
    decode = Sampler.decode

    def decoded(self, latents):
        images = decode(self, latents)
        gc.collect()
        most.append(sum(len(each) for each in alive))
        alive.add(images)
        return images

    monkeypatch.setattr(Sampler, "decode", decoded)
    config = make_config(SampleConfig, sample_batch_size=2)
    write_samples(model, config, range(5), tmp_path / "new")
    assert len(most) == 5
    assert max(most) <= 2
