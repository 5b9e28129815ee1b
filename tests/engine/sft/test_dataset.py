"""The image set: what is drawn, what is kept, and what is refused."""

import json
import warnings

import pytest
import torch
from PIL import Image

from dpok_cli.config import TrainSFTConfig
from dpok_cli.engine.runs.folder import RunFolder
from dpok_cli.engine.sampling.sampler import Sampler
from dpok_cli.engine.sampling.seeds import FRESH_SEEDS
from dpok_cli.engine.sft.dataset.collect import collect
from dpok_cli.engine.training.session import Session
from dpok_cli.errors import InputError, RewardError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.combined import WeightedReward
from support.text import has_lines
from support.writers import another_writer


class Red(RewardModel):
    """How red an image is; lower is better."""

    name = "red"
    higher_is_better = False

    def score_batch(self, images, prompts):
        return images[:, 0].mean(dim=(1, 2))


class Killed(BaseException):
    pass


@pytest.fixture
def gather(make_model, make_config, green, tmp_path):
    """Collects an image set with a model of its own, in the folder "set"."""

    def gather(reward=green, model=None, folder="set", run=None, stop=lambda: False, **changes):
        changes = {"dataset": str(tmp_path / folder) if folder else ""} | changes
        config = make_config(TrainSFTConfig, **changes)
        model = model or make_model()
        told = []
        session = Session(config, model, run, stop, warnings.warn, config.steps)
        images = collect(config, session, reward, lambda done, of: told.append((done, of)))
        return images, told

    return gather


def lines(folder):
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_images_of_the_reference_with_their_prompts_seeds_and_rewards(
    gather, make_model, make_config, shake, tmp_path
):
    tuned = make_model()
    images, told = gather(model=tuned)
    assert told == [(4, 6), (6, 6)]
    entries = lines(tmp_path / "set")
    assert [entry["text"] for entry in entries] == ["a green rabbit", "two cats"] * 3
    assert images.prompts == [entry["text"] for entry in entries]
    assert len({entry["seed"] for entry in entries}) == 6
    assert images.scores.total.tolist() == [entry["rewards"]["green"] for entry in entries]
    for row, entry in enumerate(entries):  # each can be drawn again from its seed
        (again,) = Sampler(make_model(), make_config()).sample([entry["text"]], [entry["seed"]])
        with Image.open(tmp_path / "set" / entry["file_name"]) as picture:
            kept = torch.tensor(list(picture.tobytes())).view(16, 16, 3).permute(2, 0, 1)
        assert (kept / 255 - again.image).abs().max() <= 0.51 / 255
        red, green, blue = (kept[channel].float().mean() / 255 for channel in range(3))
        score = images.scores.raw["green"][row].item()
        assert score == pytest.approx((green - (red + blue) / 2).item(), abs=1e-6)
        decoded = tuned.decode(images.latents[row : row + 1])[0]
        assert (decoded - again.image).abs().max() < 1e-5


def test_an_adapter_does_not_draw(gather, make_model, shake):
    plain, _ = gather(folder="plain")
    tuned = make_model()
    tuned.adapter.add(4, 0.0, ["to_q", "to_k", "to_v", "to_out.0"], 0)
    shake(tuned)
    images, _ = gather(model=tuned, folder="tuned")
    assert torch.allclose(images.latents, plain.latents, atol=1e-5)


def test_seeds_are_of_the_set_alone(gather, tmp_path):
    gather(seed=0)
    gather(seed=1, folder="other")
    one, other = ({e["seed"] for e in lines(tmp_path / folder)} for folder in ("set", "other"))
    assert not one & other
    assert min(one | other) > FRESH_SEEDS + 10**9
    gather(seed=1, images=8)  # another run extends the set with the set's seeds
    seeds = [entry["seed"] for entry in lines(tmp_path / "set")]
    assert seeds == list(range(min(one), min(one) + 8))


def test_a_set_that_is_whole_is_not_drawn_again(gather, make_model):
    first, _ = gather()
    model = make_model()
    again, told = gather(model=model)
    assert (told, model.denoiser.evaluations) == ([], 0)
    assert torch.equal(again.latents, first.latents)
    assert again.scores.total.tolist() == first.scores.total.tolist()
    fewer, _ = gather(images=3)
    assert torch.equal(fewer.latents, first.latents[:3])
    assert (first.evaluations, fewer.evaluations) == (6 * 4, 3 * 4)


def test_another_reward_scores_what_is_there(gather, green, make_model, tmp_path):
    first, _ = gather()
    both = WeightedReward([*green.rewards.values(), (Red(), 2.0)])
    model = make_model()
    images, told = gather(both, model=model)
    assert model.denoiser.evaluations == 0
    assert told == [(4, 6), (6, 6)]
    assert images.scores.raw["green"].tolist() == first.scores.raw["green"].tolist()
    red = images.scores.raw["red"]
    assert images.scores.total.tolist() == pytest.approx((first.scores.total - 2 * red).tolist())
    entries = lines(tmp_path / "set")
    assert [entry["rewards"]["red"] for entry in entries] == red.tolist()
    drawn, _ = gather(both, folder="both")
    assert drawn.scores.raw["red"].tolist() == red.tolist()  # whenever they are scored
    assert gather(both)[1] == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_inference_steps": 5}, "--num-inference-steps 4, not --num-inference-steps 5"),
        ({"guidance_scale": 2.0}, "--guidance-scale 1.0, not --guidance-scale 2.0"),
        ({"eta": 0.5}, "--eta 1.0, not --eta 0.5"),
        ({"negative_prompt": "grey"}, "--negative-prompt '', not --negative-prompt 'grey'"),
        ({"prompts": ("a dog",)}, "--prompt 'a green rabbit', 'two cats', not --prompt 'a d"),
    ],
)
def test_a_set_of_other_settings_is_refused(changes, message, gather, tmp_path):
    gather()
    before = tree(tmp_path / "set")
    with pytest.raises(InputError) as caught:
        gather(**changes)
    assert message in str(caught.value)
    assert "--dataset another folder" in str(caught.value)
    assert tree(tmp_path / "set") == before


def test_a_set_of_another_model_is_refused(gather, make_model):
    gather(model=make_model())
    gather(model=make_model())
    other = make_model()
    next(other.pipeline.unet.parameters()).data += 0.01
    with pytest.raises(InputError, match="which has other weights now"):
        gather(model=other)
    with pytest.raises(InputError, match="weights"):
        gather(model=make_model(beta_end=0.013))


# ------------------------------------------------------------------------------------- cut off


def test_a_stopped_set_is_continued(gather, tmp_path):
    whole, _ = gather(folder="whole")
    images, told = gather(stop=has_lines(tmp_path / "set/metadata.jsonl", 1))
    assert (images, told) == (None, [(4, 6)])
    images, told = gather()
    assert told == [(6, 6)]
    assert torch.equal(images.latents, whole.latents)
    assert tree(tmp_path / "set") == tree(tmp_path / "whole")


@pytest.mark.parametrize("left", ["", "{", '{"file_name": "x"', "ÿ"])
@pytest.mark.parametrize("whole_lines", [4, 5, 6])
def test_a_torn_last_line_and_a_torn_batch(whole_lines, left, gather, tmp_path):
    gather()
    whole = tree(tmp_path / "set")
    file = tmp_path / "set" / "metadata.jsonl"
    kept = file.read_text().splitlines(keepends=True)[:whole_lines]
    file.write_text("".join(kept) + left, encoding="latin-1")
    _, told = gather()
    assert told == ([] if whole_lines == 6 else [(6, 6)])  # the first batch of 4 stays
    assert tree(tmp_path / "set") == whole


@pytest.mark.parametrize("instant", range(8))
def test_cut_off_between_any_two_files(instant, gather, monkeypatch, tmp_path):
    """Of a batch of 4 it is the images, one by one, then the latents, then the lines."""
    from dpok_cli.engine.sft.dataset import store as imagestore

    gather(folder="whole")
    done = 0

    def counted(original):
        def write(*arguments, **options):
            nonlocal done
            if done == instant:
                raise Killed
            done += 1
            return original(*arguments, **options)

        return write

    with monkeypatch.context() as patch:
        patch.setattr(imagestore, "_save_image", counted(imagestore._save_image))
        patch.setattr(imagestore, "save_file", counted(imagestore.save_file))
        with pytest.raises(Killed):
            gather()
    gather()
    found = {name: data for name, data in tree(tmp_path / "set").items() if "tmp" not in name}
    assert found == tree(tmp_path / "whole")


def test_a_damaged_line_is_named(gather, tmp_path):
    gather()
    file = tmp_path / "set" / "metadata.jsonl"
    rows = file.read_text().splitlines(keepends=True)
    file.write_text(rows[0] + "{broken\n" + "".join(rows[2:]))
    with pytest.raises(InputError, match=r"metadata.jsonl, line 2, is damaged"):
        gather()


def test_latents_that_are_gone_are_named(gather, tmp_path):
    gather()
    (tmp_path / "set/latents/000000-000003.safetensors").unlink()
    with pytest.raises(InputError, match=r"000000-000003.safetensors is missing or damaged"):
        gather()


def test_one_run_at_a_time(gather, tmp_path):
    gather()
    with (
        another_writer(tmp_path / "set"),
        pytest.raises(InputError, match=r"Another dpok is writing to .*set: wait until it ends"),
    ):
        gather()
    gather()


def test_a_reward_that_fails_keeps_what_was_drawn(gather, tmp_path):
    class Failing(RewardModel):
        name = "green"
        left = 1

        def score_batch(self, images, prompts):
            self.left -= 1
            if self.left < 0:
                raise OSError("no answer")
            return images.mean(dim=(1, 2, 3))

    with pytest.raises(RewardError, match="green: OSError: no answer"):
        gather(WeightedReward([(Failing(), 1.0)]))
    assert len(lines(tmp_path / "set")) == 4


# -------------------------------------------------------------------------------- a person's own


@pytest.fixture
def own(tmp_path):
    """A person's folder: a wide image, a tall one and one of the model's size, in subfolders."""
    folder = tmp_path / "own"
    (folder / "train").mkdir(parents=True)
    rows = []
    for number, (size, name, key) in enumerate(
        [
            ((48, 16), "wide.png", "text"),
            ((16, 40), "train/tall.jpg", "prompt"),
            ((16, 16), "b.webp", "text"),
        ]
    ):
        Image.new("RGB", size, (0, 100 + 50 * number, 0)).save(folder / name)
        rows.append(json.dumps({"file_name": name, key: f"thing {number}", "artist": "me"}))
    (folder / "metadata.jsonl").write_text("\n".join(rows))
    return folder


@pytest.fixture
def run(tmp_path, make_config):
    config = make_config(TrainSFTConfig, runs_dir=str(tmp_path / "runs"), name="run")
    return RunFolder.create(config)


def test_own_images_are_cut_encoded_and_scored_but_left_alone(own, run, gather, model):
    before = tree(own)
    images, told = gather(folder="own", run=run, images=2)  # the folder is taken whole
    assert told == [(3, 3)]
    assert images.prompts == ["thing 0", "thing 1", "thing 2"]
    expected = [(100 + 50 * number) / 255 for number in range(3)]
    assert images.scores.total.tolist() == pytest.approx(expected, abs=0.02)
    assert images.latents.shape == (3, 4, 8, 8)
    flat = torch.zeros(1, 3, 16, 16)
    flat[:, 1] = 100 / 255
    encoded = model.pipeline.vae.encode(flat * 2 - 1).latent_dist.mode()
    encoded *= model.pipeline.vae.config.scaling_factor
    assert torch.allclose(images.latents[:1], encoded, atol=1e-4)
    assert tree(own) == before
    kept = lines(run.path / "dataset")
    assert [entry["source"] for entry in kept] == ["wide.png", "train/tall.jpg", "b.webp"]
    assert gather(folder="own", run=run)[1] == []


def test_own_images_that_have_changed_are_refused(own, run, gather):
    gather(folder="own", run=run)
    with (own / "metadata.jsonl").open("a") as file:
        file.write('\n{"file_name": "wide.png", "text": "more"}')
    with pytest.raises(InputError, match=r"metadata.jsonl = "):
        gather(folder="own", run=run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no image"),
        ("[1]", "line 1: not a JSON object"),
        ('{"text": "a"}', "line 1: it has no file_name"),
        ('{"file_name": "wide.png"}', "line 1: it has no prompt"),
        ('{"file_name": "wide.png", "text": " "}', "line 1: it has no prompt"),
        ('\n{"file_name": "gone.png", "text": "a"}', "line 2: there is no file"),
        ('{"file_name": "../own/wide.png", "text": "a"}', "leads out of the folder"),
        ('{"file_name": "/etc/hosts", "text": "a"}', "leads out of the folder"),
        ('{"file_name": "metadata.jsonl", "text": "a"}', "cannot be read as an image"),
        ('{"file_name": "run.eps", "text": "a"}', "cannot be read as an image"),
    ],
)
def test_own_images_that_cannot_be_used(text, message, own, run, gather):
    Image.new("RGB", (8, 8)).save(own / "run.eps")
    (own / "metadata.jsonl").write_text(text)
    with pytest.raises(InputError) as caught:
        gather(folder="own", run=run)
    assert message in str(caught.value)


def test_without_a_folder_there_is_nowhere_to_keep_images(gather):
    with pytest.raises(InputError, match="name a folder"):
        gather(folder="")
