"""Scores with the published package ``image-reward``, in an environment without dpok."""

import os


def load(options, device):
    """Load ``options["model"]`` by the package's own loader.

    It is a name that the loader knows, or a folder with ImageReward.pt and med_config.json. A
    vocab.txt in the folder is used instead of that of bert-base-uncased on the hub.
    """
    import torch

    import_torchvision(torch)
    import ImageReward

    folder = os.path.expanduser(options["model"])
    if os.path.isdir(folder):
        vocabulary = os.path.join(folder, "vocab.txt")
        if os.path.isfile(vocabulary):
            take_vocabulary(vocabulary)
        checkpoint = os.path.join(folder, "ImageReward.pt")
        med_config = os.path.join(folder, "med_config.json")
        net = ImageReward.load(checkpoint, device, med_config=med_config)
    else:
        net = ImageReward.load(options["model"], device)

    def score(images, prompts):
        with torch.no_grad():
            return [net.score(prompt, image) for prompt, image in zip(prompts, images)]  # noqa: B905

    return score


def import_torchvision(torch):
    """Import torchvision even if its compiled part does not match torch: transforms suffice."""
    try:
        import torchvision
    except RuntimeError:  # it registers shapes for two operators that are missing then
        operators = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


def take_vocabulary(file):
    """Have the package, which asks transformers for bert-base-uncased, get this vocabulary."""
    from transformers import BertTokenizer

    BertTokenizer.from_pretrained = classmethod(lambda kind, name: kind(file))
