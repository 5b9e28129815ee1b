import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional
from transformers import BlipTextConfig, BlipVisionConfig

from dpok_cli.errors import RewardError
from dpok_cli.rewards import weights
from dpok_cli.rewards.images import clip_preprocess
from dpok_plugins import image_reward
from dpok_plugins.image_reward import ImageReward
from dpok_plugins.image_reward_net import (
    ImageRewardNet,
    from_published,
    to_published,
    tokenize,
    tokenizer_from_vocab,
)

VOCAB = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "##s", "."]
MED_CONFIG = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "encoder_width": 768,  # in the published file, but not the vision width
}


@pytest.fixture(scope="module")
def net() -> ImageRewardNet:
    """A network with random weights, norms and biases; vision has two heads."""
    vision = BlipVisionConfig(
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
        layer_norm_eps=1e-6,
    )
    text = BlipTextConfig(
        **{key: value for key, value in MED_CONFIG.items() if key != "encoder_width"},
        vocab_size=len(VOCAB) + 2,
        max_position_embeddings=40,
        bos_token_id=None,
        sep_token_id=None,
    )
    net = ImageRewardNet(vision, text, (16, 8, 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return net.eval()


@pytest.fixture
def folder(tmp_path, net):
    """The network as a checkpoint folder, with its own vocabulary and the five unused keys."""
    unused = {
        "blip.text_encoder.embeddings.position_ids": torch.arange(40)[None],
        **{
            f"blip.{side}_proj.{kind}": torch.zeros(3)
            for side in ("vision", "text")
            for kind in ("weight", "bias")
        },
    }
    save_file(to_published(net) | unused, tmp_path / "ImageReward.safetensors")
    (tmp_path / "med_config.json").write_text(json.dumps(MED_CONFIG))
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    return tmp_path


def reward_of(folder) -> ImageReward:
    return ImageReward(ImageReward.Options(model=str(folder)))


def pictures(count: int, size: int = 24) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def test_the_published_layout_survives_a_round_trip(net):
    published = to_published(net)
    again = from_published(published, MED_CONFIG).eval()
    assert again.vision.config.num_attention_heads == 2
    assert again.image_size == 24
    assert to_published(again).keys() == published.keys()
    assert all(torch.equal(to_published(again)[name], published[name]) for name in published)
    tokens = torch.tensor([[2, 5, 6, 3]])
    arguments = (pictures(1), tokens, torch.ones_like(tokens))
    assert torch.equal(again(*arguments), net(*arguments))


def published_names(vision_layers: int, text_layers: int) -> list[str]:
    """The keys of the published checkpoint, written out from its layout."""
    visual, text = "blip.visual_encoder", "blip.text_encoder"
    modules = [f"{visual}.patch_embed.proj", f"{visual}.norm"]
    for n in range(vision_layers):
        for part in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            modules.append(f"{visual}.blocks.{n}.{part}")
    modules.append(f"{text}.embeddings.LayerNorm")
    for n in range(text_layers):
        layer = f"{text}.encoder.layer.{n}"
        for kind in ("attention", "crossattention"):
            modules += [f"{layer}.{kind}.self.{part}" for part in ("query", "key", "value")]
            modules += [f"{layer}.{kind}.output.{part}" for part in ("dense", "LayerNorm")]
        modules += [f"{layer}.{part}" for part in ("intermediate.dense", "output.dense")]
        modules.append(f"{layer}.output.LayerNorm")
    modules += [f"mlp.layers.{n}" for n in (0, 2, 4, 6, 7)]
    modules += ["blip.vision_proj", "blip.text_proj"]
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "bias")] + [
        f"{visual}.cls_token",
        f"{visual}.pos_embed",
        f"{text}.embeddings.word_embeddings.weight",
        f"{text}.embeddings.position_embeddings.weight",
        f"{text}.embeddings.position_ids",
    ]


def test_the_full_size_has_the_625_published_keys():
    with torch.device("meta"):
        full = ImageRewardNet(
            BlipVisionConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=24,
                num_attention_heads=16,
                image_size=224,
                patch_size=16,
                layer_norm_eps=1e-6,
            ),
            BlipTextConfig(num_attention_heads=12),
            (1024, 128, 64, 16),
        )
    names = published_names(24, 12)
    assert len(set(names)) == len(names) == 625
    kept = to_published(full)
    unused = set(names) - kept.keys()
    assert len(unused) == 5
    assert kept.keys() < set(names)
    checkpoint = kept | {name: torch.empty(1, device="meta") for name in unused}
    sizes = {"hidden_size": 768, "intermediate_size": 3072}
    layers = {"num_hidden_layers": 12, "num_attention_heads": 12}
    loaded = from_published(checkpoint, MED_CONFIG | sizes | layers)
    assert loaded.image_size == 224
    assert loaded.vision.config.num_attention_heads == 16
    assert [tuple(layer.weight.shape) for layer in loaded.head] == [
        (1024, 768),
        (128, 1024),
        (64, 128),
        (16, 64),
        (1, 16),
    ]


@pytest.mark.parametrize(
    "name",
    [
        "blip.visual_encoder.blocks.1.attn.qkv.bias",
        "blip.visual_encoder.pos_embed",
        "blip.visual_encoder.patch_embed.proj.weight",
        "blip.text_encoder.encoder.layer.0.crossattention.self.key.weight",
        "blip.text_encoder.embeddings.word_embeddings.weight",
        "mlp.layers.2.weight",
        "mlp.layers.2.bias",
        "mlp.layers.5.weight",
    ],
)
def test_a_missing_or_renamed_key_is_named(net, name):
    published = to_published(net)
    value = published.pop(name)
    with pytest.raises(RewardError, match=rf"the checkpoint lacks {name};"):
        from_published(published, MED_CONFIG)
    with pytest.raises(RewardError, match=rf"the checkpoint lacks {name};"):
        from_published(published | {f"{name}_renamed": value}, MED_CONFIG)


def test_an_unexpected_key_is_named(net):
    extra = {"blip.itm_head.weight": torch.zeros(2)}
    with pytest.raises(RewardError, match=r"has the unknown key blip\.itm_head\.weight;"):
        from_published(to_published(net) | extra, MED_CONFIG)


def test_a_config_of_another_size_is_named(net):
    with pytest.raises(RewardError, match=r"another shape for blip\.text_encoder.*, \.\.\.;"):
        from_published(to_published(net), MED_CONFIG | {"intermediate_size": 64})
    lacking = {key: value for key, value in MED_CONFIG.items() if key != "hidden_size"}
    with pytest.raises(RewardError, match=r"med_config\.json lacks hidden_size\."):
        from_published(to_published(net), lacking)


def test_the_vision_encoder_is_the_published_one(net):
    """Against a ViT written out on the published names: 64 wide heads, norms first, eps 1e-6."""
    weights = {
        name.removeprefix("blip.visual_encoder."): value
        for name, value in to_published(net).items()
    }

    def linear(x, name):
        return functional.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(x, name):
        return functional.layer_norm(
            x, (128,), weights[f"{name}.weight"], weights[f"{name}.bias"], 1e-6
        )

    images = pictures(2)
    x = functional.conv2d(
        images, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=8
    )
    x = torch.cat([weights["cls_token"].expand(2, 1, 128), x.flatten(2).mT], 1)
    x = x + weights["pos_embed"]
    for block in ("blocks.0", "blocks.1"):
        qkv = linear(norm(x, f"{block}.norm1"), f"{block}.attn.qkv").view(2, 10, 3, 2, 64)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = ((q @ k.mT) / 8).softmax(-1) @ v
        x = x + linear(attended.transpose(1, 2).reshape(2, 10, 128), f"{block}.attn.proj")
        inner = functional.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + linear(inner, f"{block}.mlp.fc2")
    with torch.no_grad():
        theirs = net.vision(images).last_hidden_state
    torch.testing.assert_close(theirs, norm(x, "norm"), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_score_matches_its_parts_computed_by_hand(net, folder):
    """The text encoder layer by layer without padding or masks, the head, the constants."""
    image = torch.rand(1, 3, 24, 24)
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)
    seen = net.vision((image - mean) / std).last_hidden_state
    hidden = net.text.embeddings(torch.tensor([[2, 5, 6, 8, 9, 3]]))  # [CLS] a cat ##s . [SEP]
    for layer in net.text.encoder.layer:
        hidden = layer(hidden, seen)
    value = hidden[:, 0]  # the first token, not pooled
    for linear in net.head:  # no activations between
        value = value @ linear.weight.T + linear.bias
    by_hand = (value.item() - 0.16717362830052426) / 1.0333394966054072
    score = reward_of(folder).score(image, ["A CATS."])
    assert score.item() == pytest.approx(by_hand, rel=1e-4, abs=1e-5)


def test_scores_do_not_depend_on_the_batch_and_do_on_the_prompt(folder):
    reward = reward_of(folder)
    prompts = ["a cat.", "dogs", "a dog " * 40]
    together = reward.score(pictures(3), prompts)
    for index, prompt in enumerate(prompts):
        alone = reward.score(pictures(3)[index : index + 1], [prompt])
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-4, atol=1e-5)
    other = reward.score(pictures(3), prompts[::-1])
    assert (together - other).abs()[[0, 2]].min() > 1e-4


def test_images_are_resized_and_cropped(net, folder):
    wide = pictures(1, 48)[:, :, :30]  # 30 x 48 becomes 24 x 38, and loses 7 at each side
    assert clip_preprocess(wide, 24).shape == (1, 3, 24, 24)
    middle = torch.zeros(1, 3, 24, 38)
    middle[..., 7:31] = 1.0
    white = (1 - 0.48145466) / 0.26862954
    torch.testing.assert_close(clip_preprocess(middle, 24)[:, 0], torch.full((1, 24, 24), white))
    assert reward_of(folder).score(wide, ["a cat"]).isfinite().all()


def test_gradients_reach_the_images_and_no_weight(folder):
    reward = reward_of(folder)
    images = pictures(2, 32).requires_grad_()
    reward.score(images, ["a cat", "a dog"], grad=True).sum().backward()
    assert images.grad.abs().amax((1, 2, 3)).min() > 0
    assert not any(parameter.requires_grad for parameter in reward.net.parameters())


def test_half_precision_and_pt_checkpoints_are_read(net, folder):
    expected = reward_of(folder).score(pictures(1), ["a cat"])
    (folder / "ImageReward.safetensors").unlink()
    torch.save(to_published(net), folder / "ImageReward.pt")
    assert torch.equal(reward_of(folder).score(pictures(1), ["a cat"]), expected)
    halves = {name: value.half() for name, value in to_published(net).items()}
    save_file(halves, folder / "ImageReward.safetensors")
    reward = reward_of(folder)
    torch.testing.assert_close(reward.score(pictures(1), ["a cat"]), expected, rtol=0.05, atol=0.05)
    assert {parameter.dtype for parameter in reward.net.parameters()} == {torch.float32}


def test_prompts_become_35_tokens():
    tokenizer = tokenizer_from_vocab(VOCAB)
    ids, mask = tokenize(tokenizer, ["A cats dog?", "dog " * 50])
    assert ids.shape == mask.shape == (2, 35)
    assert ids[0, :7].tolist() == [2, 5, 6, 8, 7, 1, 3]
    assert ids[0, 7:].tolist() == [0] * 28
    assert mask.sum(1).tolist() == [7, 35]
    assert ids[1].tolist() == [2, *[7] * 33, 3]


def test_a_vocabulary_is_read_from_a_file_as_from_a_list(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    tokenizer = tokenizer_from_vocab(tmp_path / "vocab.txt")
    assert tokenizer.get_vocab() == tokenizer_from_vocab(VOCAB).get_vocab()
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(VOCAB)}


@pytest.mark.parametrize("vocab", [VOCAB[:2] + VOCAB[3:], [*VOCAB, "cat"]])
def test_a_vocabulary_without_cls_or_with_a_token_twice_is_refused(vocab):
    with pytest.raises(RewardError, match=rf"a vocabulary of {len(vocab)} tokens became"):
        tokenizer_from_vocab(vocab)


def test_without_a_vocabulary_file_berts_is_used(folder, monkeypatch):
    asked = []

    def unreachable(hub_id, names, advice, local_only):
        asked.append((hub_id, names))
        raise RewardError(f"no network; {advice}")

    (folder / "vocab.txt").unlink()
    monkeypatch.setattr(weights, "_download", unreachable)
    with pytest.raises(RewardError, match=r"^image-reward: could not be loaded: .*put its vocab"):
        reward_of(folder).score(pictures(1), ["a cat"])
    assert asked == [("google-bert/bert-base-uncased", ("vocab.txt",))]


def test_a_vocabulary_that_does_not_fit_the_checkpoint_is_refused(folder):
    (folder / "vocab.txt").write_text("\n".join(VOCAB[:5]))
    with pytest.raises(RewardError, match=r"has 5 tokens but the checkpoint embeds 12; put"):
        reward_of(folder).score(pictures(1), ["a cat"])


def test_the_plugin_module_re_exports_the_network():
    assert image_reward.to_published is to_published
    assert image_reward.tokenizer_from_vocab is tokenizer_from_vocab
    with pytest.raises(AttributeError, match="no_such_name"):
        image_reward.no_such_name  # noqa: B018
