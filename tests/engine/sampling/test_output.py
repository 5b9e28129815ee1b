"""The folder of sampled images."""

import gc
import json
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dpok_cli.config import SampleConfig
from dpok_cli.engine.sampling import folder as folder_module
from dpok_cli.engine.sampling import pictures
from dpok_cli.engine.sampling.folder import SampleFolder
from dpok_cli.engine.sampling.output import pages_of, write_samples
from dpok_cli.engine.sampling.pictures import to_pil
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.errors import InputError, StopRequested


@pytest.fixture
def config(make_config):
    return make_config(SampleConfig)


def pixels(file):
    with Image.open(file) as picture:
        return np.asarray(picture).tolist()


def test_images_a_grid_and_a_manifest(model, config, tmp_path):
    seen = []

    def watch(samples, total):
        assert total == 4
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


#: Pixels of a side of a very small image in a grid: it is enlarged by 12, with a gap of 24.
CELL = 12 * 16 + 24


@pytest.mark.parametrize(
    ("room", "prompts", "seeds", "before", "pages"),
    [
        (3, 3, [4, 2], False, [(2, 3)]),
        (2, 3, [4, 2], False, [(2, 2), (2, 1)]),
        (1, 2, [4, 2], False, [(1, 1), (1, 1), (1, 1), (1, 1)]),
        (2, 2, [4, 2, 3], False, [(2, 2), (2, 2)]),
        (2, 1, range(9), False, [(2, 2), (2, 2), (1, 1)]),
        (3, 1, range(4), False, [(2, 2)]),
        (2, 3, [4, 2], True, [(2, 2), (2, 1)]),
    ],
)
def test_what_a_page_has_no_room_for_is_on_the_next(
    room, prompts, seeds, before, pages, model, make_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(pictures, "PAGE", room * CELL - 24)
    config = make_config(SampleConfig, prompts=("a", "b", "c")[:prompts])
    folder, told = tmp_path / "new", []
    if before:
        model.adapter.add(4, 0.0, ["to_q"], seed=0)
    picture = write_samples(model, config, seeds, folder, before=before, warn=told.append)
    name = "before_after" if before else "grid"
    assert picture == folder / f"{name}.png"
    last = f"The grid has {len(pages)} pages: {name}.png to {name}-{len(pages)}.png."
    assert told == ([last] if len(pages) > 1 else [])
    listed = json.loads((folder / "manifest.json").read_text())["images"]
    assert len(listed) == prompts * len(seeds) * (1 + before)
    assert all((folder / each["file"]).is_file() for each in listed)
    side = folder / "after" if before else folder
    assert len(list(side.glob("grid*.png"))) == len(list(folder.glob(f"{name}*.png"))) == len(pages)
    columns = max(across for across, _ in pages)
    shown = []
    for number, (across, down) in enumerate(pages):
        with Image.open(side / f"grid{f'-{number + 1}' * bool(number)}.png") as grid:
            assert grid.size == (CELL * across - 24, CELL * down - 24)
            for row in range(down):
                for column in range(across):
                    left, top = CELL * column, CELL * row
                    shown.append(grid.crop((left, top, left + 192, top + 192)).tobytes())
    blank = Image.new("RGB", (192, 192), "white").tobytes()
    files = [[f"{row:03}_{seed}.png" for seed in seeds] for row in range(prompts)]
    drawn = [
        Image.open(side / file).resize((192, 192), resample=0).tobytes()
        for row in files
        for file in row
    ]
    assert [each for each in shown if each != blank] == drawn
    assert columns <= room


def test_a_page_of_real_images_opens_without_a_warning(model, make_config):
    config = make_config(SampleConfig, prompts=("a",) * 9)
    store = SampleFolder(Path("new"), config, range(16), before=True)
    for side, across, down in ((2048, 2, 2), (1024, 4, 4), (512, 8, 8), (64, 16, 21)):
        page, *more = pages_of(store, "after", (side, side))
        assert (len(page[0]), len(page)) == (across, min(down, 9 * 16 // across))
        assert bool(more) == (side > 64)
        width, height, gap = pictures.cell((side, side))
        size = (2 * across * width - 2 * gap + 16, down * height - gap + 28)
        assert size[0] * size[1] < Image.MAX_IMAGE_PIXELS


def files_of(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*.*")}


@pytest.mark.parametrize("before", [False, True])
def test_an_interrupted_folder_is_continued_to_the_same_files(
    before, model, shake, make_config, tmp_path
):
    config = make_config(SampleConfig, prompts=("a", "b", "c"), sample_batch_size=4)
    model.adapter.add(4, 0.0, ["to_q", "to_v", "to_out.0"], seed=0)
    shake(model)
    draw = partial(write_samples, model, config, [3, 1], before=before)
    draw(tmp_path / "whole")
    whole = files_of(tmp_path / "whole")
    drawn, told = [], []

    def count(samples, total):
        for sample in samples:
            yield sample
            drawn.append(total)

    for kept in (4, 6):  # the first batch, then all of a side
        drawn.clear()
        with pytest.raises(StopRequested):
            draw(tmp_path / "cut", progress=count, stop=lambda: bool(drawn), warn=told.append)
        manifest = json.loads((tmp_path / "cut" / "manifest.json").read_text())
        there = {path.as_posix() for path in files_of(tmp_path / "cut")} - {"manifest.json"}
        assert {each["file"] for each in manifest["images"]} == there
        assert len(there) == kept
    (tmp_path / "cut" / manifest["images"][0]["file"]).unlink()  # as a crash would have left it
    draw(tmp_path / "cut", warn=told.append)
    assert files_of(tmp_path / "cut") == whole
    total = 12 if before else 6
    assert told[0] == f"4 of the {total} images are in {tmp_path / 'cut'} already."
    drawn.clear()
    draw(tmp_path / "cut", progress=count, warn=told.append)  # there is nothing left to draw
    assert drawn == []
    assert files_of(tmp_path / "cut") == whole


def test_an_interrupt_in_the_middle_lists_what_is_there(model, make_config, tmp_path, monkeypatch):
    monkeypatch.setattr(folder_module, "EVERY", 1e9)  # the manifest is behind at that moment
    config = make_config(SampleConfig, prompts=("a",), sample_batch_size=8)
    save = SampleFolder.save

    def interrupted(self, picture, file):
        if file == "000_5.png":
            raise KeyboardInterrupt
        return save(self, picture, file)

    monkeypatch.setattr(SampleFolder, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_samples(model, config, range(8), tmp_path / "new")
    files = sorted(path.as_posix() for path in files_of(tmp_path / "new"))
    assert files == [*(f"000_{seed}.png" for seed in range(5)), "manifest.json"]
    manifest = json.loads((tmp_path / "new" / "manifest.json").read_text())
    assert [each["file"] for each in manifest["images"]] == files[:5]


def test_a_folder_of_other_settings_is_refused(model, shake, make_config, tmp_path):
    config = make_config(SampleConfig, prompts=("a",))
    write_samples(model, config, [0], tmp_path / "new")
    before = files_of(tmp_path / "new")
    for changed, seeds, said in (
        ({"num_inference_steps": 3}, [0], "--num-inference-steps 4 there, 3 now"),
        ({"prompts": ("a", "b")}, [0], r"--prompt \[\"a\"\] there, \[\"a\", \"b\"\] now"),
        ({}, [0, 1], r"--seeds \[0\] there, \[0, 1\] now"),
    ):
        other = replace(config, **changed)
        with pytest.raises(InputError, match=f"{tmp_path / 'new'} was made with other.*{said}"):
            write_samples(model, other, seeds, tmp_path / "new")
    model.adapter.add(4, 0.0, ["to_q"], seed=0)
    shake(model)
    with pytest.raises(InputError, match='adapter_sha256 = null there, "[0-9a-f]{64}" now'):
        write_samples(model, config, [0], tmp_path / "new")
    assert files_of(tmp_path / "new") == before
    (tmp_path / "new" / "manifest.json").unlink()
    with pytest.raises(InputError, match="already exists: give another --output"):
        write_samples(model, config, [0], tmp_path / "new")


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
