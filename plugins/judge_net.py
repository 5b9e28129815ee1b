"""The judge's network: a small ResNet that predicts what an image of the tiny world shows."""

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
    """Predictions for B images, as logits."""

    counts: Tensor  # (B, objects, MAX_COUNT + 1): how many of each object, 0 to 5
    colours: Tensor  # (B, objects, colours): the colour of each object, if present
    place: Tensor  # (B, places)


class JudgeNet(nn.Module):
    """Maps images of the tiny world to logits of object counts, object colours and the place."""

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
        """Read ``config.json`` and ``model.safetensors``; always in fp32."""
        net = cls(ResNetConfig.from_json_file(folder / "config.json"))
        net.load_state_dict(load_file(folder / "model.safetensors"))
        return net.eval()

    def save(self, folder: Path) -> None:
        """Write the files that ``from_folder`` reads, in the network's precision."""
        folder.mkdir(parents=True, exist_ok=True)
        self.backbone.config.to_json_file(folder / "config.json")
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    def forward(self, images: Tensor) -> Views:
        """Predict from (B, 3, H, W) in [0, 1]; other sizes are resized to 64 x 64."""
        images = resize(images, IMAGE_SIZE, IMAGE_SIZE)
        features = self.backbone(images * 2 - 1).pooler_output.flatten(1)  # (B, width)
        return Views(
            self.counts(features).unflatten(1, (len(OBJECTS), MAX_COUNT + 1)),
            self.colours(features).unflatten(1, (len(OBJECTS), len(COLOURS))),
            self.place(features),
        )


def scenes(views: Views) -> list[Scene]:
    """Return the most likely scene of each image: the objects with a count above zero."""
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
