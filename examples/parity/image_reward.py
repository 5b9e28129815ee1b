"""Compare the reward `image-reward` with the published package, on seeded random weights.

`make parity` runs this twice, because the two need different environments. `theirs FOLDER`, with
image-reward 1.5, writes a full-size checkpoint in the published layout, a vocabulary and the
package's scores of seeded images. `ours FOLDER` scores the same images with `image-reward`.
"""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PROMPTS = ["a green rabbit", "Four wolves, in the park.", "", "a dog on the moon " * 12]
# The network's input size, where only rounding may differ, and sizes that are resized.
SIZES = {"224": (224, 224), "512": (512, 512), "wide": (480, 300), "small": (100, 130)}
MED_CONFIG = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
    "max_position_embeddings": 512,
    "vocab_size": 30524,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "add_cross_attention": True,
}


def images() -> dict[str, list[Image.Image]]:
    """Smooth seeded images, one per prompt and size."""
    random = np.random.default_rng(0)
    made = {}
    for name, size in SIZES.items():
        coarse = random.integers(0, 256, (len(PROMPTS), 12, 12, 3), dtype=np.uint8)
        made[name] = [Image.fromarray(each).resize(size, Image.BICUBIC) for each in coarse]
    return made


def import_torchvision() -> None:
    """Import torchvision even if its compiled part does not match torch: transforms suffice."""
    try:
        import torchvision
    except RuntimeError:  # it registers shapes for two operators that are missing then
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


def theirs(folder: Path) -> None:
    """Write checkpoint, config, vocabulary and the package's scores to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{a}" for a in letters)]
    words += [f"[unused{n}]" for n in range(30522 - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")

    import_torchvision()
    # The package's __init__ needs CLIP's own package, diffusers and more; its network does not.
    home = importlib.util.find_spec("ImageReward").submodule_search_locations
    for name in ("ImageReward", "ImageReward.models"):
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [f"{each}/{name.partition('.')[2]}" for each in home]
    from transformers import BertTokenizer

    BertTokenizer.from_pretrained = lambda _: BertTokenizer(str(folder / "vocab.txt"))
    from ImageReward.ImageReward import ImageReward

    net = ImageReward(str(folder / "med_config.json")).eval()
    random = torch.Generator().manual_seed(0)
    for name, weight in net.named_parameters():
        noise = torch.randn(weight.shape, generator=random)
        if weight.ndim > 1:
            weight.data = noise / weight[0].numel() ** 0.5  # keeps the signal's scale
        else:
            weight.data = noise * 0.1 + (name.endswith("weight"))  # norms near 1, biases near 0
    torch.save(net.state_dict(), folder / "ImageReward.pt")
    print(f"their checkpoint has {len(net.state_dict())} keys")
    with torch.no_grad():
        scores = {
            name: [net.score(prompt, one) for prompt, one in zip(PROMPTS, pictures, strict=True)]
            for name, pictures in images().items()
        }
    (folder / "theirs.json").write_text(json.dumps(scores))


def ours(folder: Path) -> None:
    """Score the same images, print the differences, and fail if one is too large."""
    from dpok_plugins.image_reward import ImageReward

    expected = json.loads((folder / "theirs.json").read_text())
    reward = ImageReward(ImageReward.Options(model=str(folder)))
    spread = np.std(list(expected.values()))
    print(f"their scores have a standard deviation of {spread:.3f}")
    failed = False
    for name, pictures in images().items():
        # Pillow rounds resized images to 8 bits and tensors do not; this should be the only
        # difference. With Pillow's resize before ours, no further resize takes place.
        for way, limit in (("by Pillow", 1e-4), ("as tensors", 0.05 * spread)):
            given = [short_side(one) for one in pictures] if way == "by Pillow" else pictures
            batch = torch.stack([torch.from_numpy(np.array(one)) for one in given])
            scores = reward.score(batch.permute(0, 3, 1, 2) / 255, PROMPTS)
            difference = (scores - torch.tensor(expected[name])).abs().max().item()
            failed |= bool(difference > limit)
            print(f"{name:>5}, resized {way}: {difference:.2e} at most (limit {limit:.1e})")
    sys.exit(int(failed))


def short_side(picture: Image.Image) -> Image.Image:
    """Resize to a shorter side of 224, like the package."""
    width, height = picture.size
    scale = 224 / min(width, height)
    return picture.resize((int(width * scale), int(height * scale)), Image.BICUBIC)


if __name__ == "__main__":
    {"theirs": theirs, "ours": ours}[sys.argv[1]](Path(sys.argv[2]))
