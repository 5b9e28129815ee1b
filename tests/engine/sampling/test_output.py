"""The folder of sampled images."""

import json

import numpy as np
import pytest
from PIL import Image

from dpok_cli.config import SampleConfig
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
