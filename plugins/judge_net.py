"""The judge's network: a small ResNet that says what a picture of the tiny world shows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from dpok_cli.rewards.images import resize
from dpok_cli.tiny.words import COLOURS, MAX_COUNT, OBJECTS, PLACES, Scene, Thing

IMAGE_SIZE = 64


@dataclass(frozen=True)
class Views:
    """What the judge sees in B images, as logits."""

    counts: Tensor  # (B, objects, MAX_COUNT + 1): how many of each object, 0 to 5
    colours: Tensor  # (B, objects, colours): which colour each object has, if it is there
    place: Tensor  # (B, places)


class JudgeNet(nn.Module):
    """Images of the tiny world to logits of their objects' counts and colours, and of the place."""

    def __init__(self, config: ResNetConfig):
        super().__init__()
        assert config.hidden_sizes
        self.backbone = ResNetModel(config)
        width = config.hidden_sizes[-1]
        self.counts = nn.Linear(width, len(OBJECTS) * (MAX_COUNT + 1))
        self.colours = nn.Linear(width, len(OBJECTS) * len(COLOURS))
        self.place = nn.Linear(width, len(PLACES))

    @classmethod
    def from_folder(cls, folder: Path) -> JudgeNet:
        """Read ``config.json`` and ``model.safetensors``; in fp32, whatever the file holds."""
        net = cls(ResNetConfig.from_json_file(folder / "config.json"))
        net.load_state_dict(load_file(folder / "model.safetensors"))
        return net.eval()

    def save(self, folder: Path) -> None:
        """Write what ``from_folder`` reads, in the network's own precision."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.config.to_json_file(folder / "config.json")
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def forward(self, images: Tensor) -> Views:
        """Look at (B, 3, H, W) in [0, 1]; another size than 64 x 64 is resized."""
        images = resize(images, IMAGE_SIZE, IMAGE_SIZE)
        features = self.backbone(images * 2 - 1).pooler_output.flatten(1)  # (B, width)
        return Views(
            self.counts(features).unflatten(1, (len(OBJECTS), MAX_COUNT + 1)),
            self.colours(features).unflatten(1, (len(OBJECTS), len(COLOURS))),
            self.place(features),
        )


def scenes(views: Views) -> list[Scene]:
    """Return the most likely scene of each image: the objects counted more than zero times."""
    counts = views.counts.argmax(-1).tolist()
    colours = views.colours.argmax(-1).tolist()
    places = views.place.argmax(-1).tolist()
    return [
        Scene(
            tuple(
                Thing(name, count, COLOURS[colour])
                for name, count, colour in zip(OBJECTS, *seen, strict=True)
                if count
            ),
            PLACES[place],
        )
        for *seen, place in zip(counts, colours, places, strict=True)
    ]
