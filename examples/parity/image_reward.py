"""Compare `image-reward` and `image-reward-package` with the published package itself.

`make parity` runs ``image_reward.py FOLDER`` after `dpok rewards install image-reward-package`. In
that environment it writes a full-size checkpoint of seeded random weights in the published layout,
a vocabulary, and what the package scores seeded images. Then it scores the same images with both
rewards, and fails if a score differs by more than 1e-5.
"""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

PROMPTS = ["a green rabbit", "Four wolves, in the park.", "", "a dog on the moon " * 12]
# Width and height: the network's own size, and sizes that are resized and cropped.
SIZES = [(100, 77), (224, 224), (300, 451), (512, 512), (640, 427)]
LIMIT = 1e-5
WORKER = Path(__file__).parents[2] / "plugins" / "image_reward_package_worker.py"
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
    for width, height in SIZES:
        coarse = random.integers(0, 256, (len(PROMPTS), 12, 12, 3), dtype=np.uint8)
        pictures = [Image.fromarray(each) for each in coarse]
        made[f"{width}x{height}"] = [
            each.resize((width, height), Image.BICUBIC) for each in pictures
        ]
    return made


def theirs(folder: Path) -> None:
    """Write checkpoint, config, vocabulary and the package's scores to ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "med_config.json").write_text(json.dumps(MED_CONFIG))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,"
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{a}" for a in letters)]
    words += [f"[unused{n}]" for n in range(30522 - len(words))]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")

    worker = runpy.run_path(str(WORKER))
    worker["import_torchvision"](torch)
    worker["take_vocabulary"](str(folder / "vocab.txt"))
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
            name: [net.score(prompt, one) for prompt, one in zip(PROMPTS, pictures)]  # noqa: B905
            for name, pictures in images().items()
        }
    (folder / "theirs.json").write_text(json.dumps(scores))


def ours(folder: Path) -> None:
    """Score the same images, print the differences, and fail if one is too large."""
    from dpok_cli.rewards.manager import build

    expected = json.loads((folder / "theirs.json").read_text())
    spread = np.std(list(expected.values()))
    print(f"their scores have a standard deviation of {spread:.3f}")
    rewards = build([f"{name}:model={folder}" for name in ("image-reward", "image-reward-package")])
    failed = False
    for size, pictures in images().items():
        batch = torch.stack([torch.from_numpy(np.array(one)) for one in pictures])
        batch = batch.permute(0, 3, 1, 2) / 255
        for name, scores in rewards.score(batch, PROMPTS).raw.items():
            difference = (scores - torch.tensor(expected[size])).abs().max().item()
            failed |= bool(difference > LIMIT)
            print(f"{size:>7}, {name}: {difference:.2e} at most (limit {LIMIT:.0e})")
        on_tensors = rewards.score_one("image-reward", batch.requires_grad_(), PROMPTS, grad=True)
        difference = (on_tensors.detach() - torch.tensor(expected[size])).abs().max().item()
        print(f"{size:>7}, image-reward with gradients: {difference:.2e} at most")
    sys.exit(int(failed))


def main(folder: Path) -> None:
    from dpok_cli.rewards.environment import python_in
    from dpok_plugins.image_reward_package import ImageRewardPackage

    environment = ImageRewardPackage.environment.folder(ImageRewardPackage.name)
    command = [python_in(environment), "-W", "ignore", __file__, "theirs", str(folder)]
    subprocess.run(command, check=True)
    ours(folder)


if __name__ == "__main__":
    if sys.argv[1] == "theirs":
        theirs(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
