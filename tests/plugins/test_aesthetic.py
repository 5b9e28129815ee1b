from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import CLIPModel, SiglipVisionConfig, SiglipVisionModel

from dpok_cli.errors import RewardError
from dpok_cli.rewards.weights import read
from dpok_plugins.aesthetic import HEADS, Aesthetic
from dpok_plugins.aesthetic_net import linear_head, rate
from dpok_plugins.aesthetic_v2_5 import AestheticV25

LAION_V1 = Path(__file__).parents[3] / "shared" / "data" / "laion-aesthetic-v1"


def test_laions_own_head_gives_its_scores_on_real_embeddings():
    if not LAION_V1.is_dir():
        pytest.skip(f"LAION's head and embeddings are not in {LAION_V1}")
    head = linear_head(read(LAION_V1 / "sa_0_4_vit_l_14_linear.pth"), 768)
    files = [LAION_V1 / "vit_l_14_embeddings" / f"rating{n}.npy" for n in range(10)]
    embeds = torch.from_numpy(np.stack([np.load(file).reshape(768) for file in files])).float()
    expected = [-2.458, -0.138, 1.895, 3.585, 5.100, 6.470, 7.787, 9.048, 10.226, 11.304]
    assert rate(head, embeds).tolist() == pytest.approx(expected, abs=1e-3)
    # Embeddings of any length are rated by their direction.
    assert rate(head, embeds * 7).tolist() == pytest.approx(expected, abs=1e-3)


def test_a_linear_head_by_hand():
    head = linear_head({"weight": torch.tensor([[10.0, 5.0]]), "bias": torch.tensor([1.0])}, 2)
    scores = rate(head, torch.tensor([[3.0, 4.0], [0.0, -2.0]]))
    assert scores.tolist() == pytest.approx([10 * 0.6 + 5 * 0.8 + 1, -4.0])


def mlp(width: int, name: str, places: list[int]) -> dict[str, torch.Tensor]:
    """Random layers from ``width`` to 1, in the places that dropout leaves them."""
    generator = torch.Generator().manual_seed(2)
    sizes = [width, *range(9, 9 - len(places) + 1, -1), 1]
    weights = {}
    for place, inner, outer in zip(places, sizes, sizes[1:], strict=False):
        weights[f"{name}.{place}.weight"] = torch.randn(outer, inner, generator=generator)
        weights[f"{name}.{place}.bias"] = torch.randn(outer, generator=generator)
    return weights


def by_hand(weights: dict[str, torch.Tensor], embeds: torch.Tensor) -> torch.Tensor:
    value = embeds / embeds.square().sum(-1, keepdim=True).sqrt()
    for key in weights:  # in the order of creation
        value = value @ weights[key].T if key.endswith("weight") else value + weights[key]
    return value[:, 0]


def test_eleven_layers_are_ordered_by_their_numbers():
    torch.manual_seed(0)
    weights = mlp(12, "layers", [0, 2, 4, 6, 8, 10, 11])
    embeds = torch.randn(3, 12)
    shuffled = {key: weights[key] for key in sorted(weights)}  # 10 and 11 before 2
    torch.testing.assert_close(rate(linear_head(shuffled, 12), embeds), by_hand(weights, embeds))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.2.bias": None}, "layer 2 of the aesthetic head lacks its weight or bias"),
        ({"layers.2.weight": None, "layers.2.bias": None}, "do not map the image encoder's"),
        ({"layers.0.weight": torch.zeros(9, 11)}, r"\(9, 11\), .* do not map .* width 12 to"),
        ({"layers.4.scale": torch.zeros(1)}, r"has the unknown key layers\.4\.scale"),
    ],
)
def test_a_head_that_does_not_fit_is_an_error(change, message):
    weights = mlp(12, "layers", [0, 2, 4]) | change
    with pytest.raises(RewardError, match=message):
        linear_head({key: value for key, value in weights.items() if value is not None}, 12)


@pytest.mark.parametrize("file", HEADS)
def test_the_reward_combines_its_parts(clip_folder, pictures, tmp_path, file):
    weights = mlp(12, "layers", [0, 2, 4, 6, 7])
    (save_file if file.endswith("safetensors") else torch.save)(weights, tmp_path / file)
    reward = Aesthetic(Aesthetic.Options(model=str(tmp_path), encoder=str(clip_folder)))
    net = CLIPModel.from_pretrained(clip_folder).eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    with torch.no_grad():
        seen = net.vision_model((pictures(3) - mean) / std).pooler_output
        expected = by_hand(weights, net.visual_projection(seen))
    scores = reward.score(pictures(3), ["", "a", "b"])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)

    images = pictures(2, 30, 26).requires_grad_()
    reward.score(images, ["", ""], grad=True).sum().backward()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0


def test_the_tiny_head_uses_the_tiny_clip_and_any_other_vit_l_14(monkeypatch):
    asked = []

    def find(model, *names, tiny, local_only):
        asked.append((model, tiny, names[0]))
        return Path(names[0])

    monkeypatch.setattr("dpok_plugins.aesthetic.find", find)
    monkeypatch.setattr("dpok_plugins.clip.find", find)
    Aesthetic(Aesthetic.Options(model="tiny")).files()
    Aesthetic(Aesthetic.Options(model="some/head")).files()
    assert asked == [
        ("tiny", "aesthetic", "aesthetic.safetensors"),
        ("tiny", "clip", "config.json"),
        ("tiny", "clip", "model.safetensors"),
        ("some/head", "aesthetic", "aesthetic.safetensors"),
        ("openai/clip-vit-large-patch14", "clip", "config.json"),
        ("openai/clip-vit-large-patch14", "clip", "model.safetensors"),
    ]


@pytest.fixture(scope="module")
def siglip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    config = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
    )
    net = SiglipVisionModel(config)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    net.save_pretrained(folder)
    return folder


def test_v2_5_is_siglips_pooled_embedding_and_its_head(siglip, pictures, tmp_path):
    weights = mlp(16, "scoring_head", [0, 2, 4, 6, 8])
    torch.save(weights, tmp_path / "aesthetic_predictor_v2_5.pth")
    options = AestheticV25.Options(model=str(tmp_path), encoder=str(siglip))
    reward = AestheticV25(options)
    net = SiglipVisionModel.from_pretrained(siglip).eval()
    with torch.no_grad():
        expected = by_hand(weights, net((pictures(3) - 0.5) / 0.5).pooler_output)
    assert expected.std() > 0.01
    scores = reward.score(pictures(3), ["", "a", "b"])
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-4)

    # Other shapes are resized to a square, not cropped: both ends of a wide image count.
    wide = pictures(1, 24, 48)
    changed = wide.clone()
    changed[..., -8:] = 0.0
    assert (reward.score(wide, [""]) - reward.score(changed, [""])).abs() > 1e-3
