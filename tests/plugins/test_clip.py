import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, CLIPModel

from dpok_cli.errors import RewardError
from dpok_cli.rewards import weights
from dpok_cli.rewards.images import to_pil
from dpok_cli.rewards.manager import build
from dpok_cli.tiny import folder as bundled
from dpok_plugins.clip import Clip
from dpok_plugins.clip_net import tokenizer_from_files
from dpok_plugins.pickscore import PickScore

PROMPTS = ["a cat", "", "a dog " * 20]


def clip_of(folder, **options) -> Clip:
    return Clip(Clip.Options(model=str(folder), **options))


def logits(folder, images, prompts) -> torch.Tensor:
    """exp(logit_scale) times the cosine, by transformers' own way from pictures to logits."""
    net = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPImageProcessorPil(size={"shortest_edge": 24}, crop_size=24)
    pixels = processor([to_pil(image) for image in images], return_tensors="pt").pixel_values
    scores = []
    for image, prompt in zip(pixels, prompts, strict=True):  # one by one: no padding
        tokenizer = tokenizer_from_files(folder / "vocab.json", folder / "merges.txt")
        tokens = tokenizer(prompt, truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            output = net(input_ids=tokens.input_ids, pixel_values=image[None])
        scores.append(output.logits_per_image[0, 0])
    return torch.stack(scores)


def test_scores_are_those_of_transformers_own_clip(clip_folder, pictures):
    expected = logits(clip_folder, pictures(3), PROMPTS)
    assert expected.std() > 0.05
    cosine = clip_of(clip_folder).score(pictures(3), PROMPTS)
    torch.testing.assert_close(cosine * torch.tensor(1.5).exp(), expected, rtol=1e-4, atol=1e-5)
    scaled = clip_of(clip_folder, scale=-2.5).score(pictures(3), PROMPTS)
    torch.testing.assert_close(scaled, -2.5 * cosine)
    pick = PickScore(PickScore.Options(model=str(clip_folder))).score(pictures(3), PROMPTS)
    torch.testing.assert_close(pick, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(60, 44), (20, 24), (24, 27), (51, 90)])
def test_images_of_any_size_score_as_by_transformers(clip_folder, pictures, height, width):
    images = pictures(2, height, width)
    expected = logits(clip_folder, images, ["a", "b"])
    ours = PickScore(PickScore.Options(model=str(clip_folder))).score(images, ["a", "b"])
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)


def test_a_repeated_prompt_scores_as_if_alone(clip_folder, pictures):
    prompts = ["a cat", "a dog", "a cat"]
    together = clip_of(clip_folder).score(pictures(3), prompts)
    for row, prompt in enumerate(prompts):
        alone = clip_of(clip_folder).score(pictures(3)[row : row + 1], [prompt])
        torch.testing.assert_close(together[row : row + 1], alone)


def test_gradients_reach_the_images_and_no_weight(clip_folder, pictures):
    reward = clip_of(clip_folder)
    images = pictures(2, 32, 30).requires_grad_()
    reward.score(images, ["a", "b"], grad=True).sum().backward()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0
    assert not any(parameter.requires_grad for parameter in reward.clip.net.parameters())


def test_the_tokenizer_is_that_of_the_files(clip_folder):
    tokenizer = tokenizer_from_files(clip_folder / "vocab.json", clip_folder / "merges.txt")
    assert tokenizer.convert_ids_to_tokens(tokenizer("A cat")["input_ids"]) == [
        "<|startoftext|>",
        "a</w>",
        "c",
        "at</w>",
        "<|endoftext|>",
    ]


def test_the_bundled_vocabulary_gives_the_bundled_tokenizer():
    from transformers import CLIPTokenizer

    folder = bundled() / "tokenizer"
    theirs = CLIPTokenizer.from_pretrained(folder)
    ours = tokenizer_from_files(folder / "vocab.json", folder / "merges.txt")
    for prompt in ("A green colored rabbit.", "four wolves in the park"):
        assert ours(prompt)["input_ids"] == theirs(prompt)["input_ids"]


@pytest.fixture
def copy(clip_folder, tmp_path):
    return shutil.copytree(clip_folder, tmp_path / "clip")


def test_half_precision_is_read_as_fp32(copy, pictures):
    expected = clip_of(copy).score(pictures(1), ["a"])
    state = load_file(copy / "model.safetensors")
    halves = {name: value.half() for name, value in state.items()}
    save_file(halves, copy / "model.safetensors", metadata={"format": "pt"})
    reward = clip_of(copy)
    torch.testing.assert_close(reward.score(pictures(1), ["a"]), expected, rtol=0.01, atol=0.01)
    assert {parameter.dtype for parameter in reward.clip.net.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "key", ["text_model.encoder.layers.1.mlp.fc1.weight", "visual_projection.weight"]
)
def test_a_weight_that_is_missing_or_of_another_shape_is_named(copy, key, pictures):
    state = load_file(copy / "model.safetensors")
    value = state.pop(key)
    for other in ({f"{key}_renamed": value}, {key: value[:-1].clone()}):
        save_file(state | other, copy / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(RewardError, match=rf"^clip: could not be loaded: .* shape: {key}"):
            clip_of(copy).score(pictures(1), ["a"])


def test_a_vocabulary_that_does_not_fit_is_refused(copy, pictures):
    shutil.copy(bundled() / "tokenizer" / "vocab.json", copy)
    shutil.copy(bundled() / "tokenizer" / "merges.txt", copy)
    with pytest.raises(RewardError, match=r"tokens but the checkpoint embeds 515; put"):
        clip_of(copy).score(pictures(1), ["a"])
    (copy / "vocab.json").write_text('{"a": 0, "b": 1}')
    (copy / "merges.txt").write_text("")
    with pytest.raises(RewardError, match=r"of 2 tokens became a tokenizer of"):
        clip_of(copy).score(pictures(1), ["a"])


def test_without_a_vocabulary_file_openais_is_used(copy, monkeypatch):
    asked = []

    def unreachable(hub_id, names, advice, local_only):
        asked.append((hub_id, names, local_only))
        raise RewardError(f"no network; {advice}")

    monkeypatch.setattr(weights, "_download", unreachable)
    (copy / "merges.txt").unlink()
    with pytest.raises(RewardError, match=r"put its vocab\.json and merges\.txt"):
        clip_of(copy).files(local_only=True)
    assert asked == [("openai/clip-vit-large-patch14", ("vocab.json",), True)]


def test_tiny_is_the_bundled_clip():
    reward = build(["clip:model=tiny"]).rewards["clip"][0]
    assert {file.parent for file in reward.files()} == {bundled("clip")}
