"""The least training of the very small pipeline, as flags of `dpok train-rl`."""

from pathlib import Path


def least_training(model: Path, prompt: str, name: str, **changes: object) -> list[str]:
    """Return the flags of three rounds of two images; ``changes`` go over them."""
    settings = {
        "model": model,
        "prompt": prompt,
        "rounds": 3,
        "samples-per-round": 2,
        "num-inference-steps": 2,
        "batch-size": 2,
        "updates-per-round": 1,
        "lora-rank": 2,
        "evaluation-samples": 0,
        "sample-every": 0,
        "tracker": "",
        "device": "cpu",
        "name": name,
    } | {key.replace("_", "-"): value for key, value in changes.items()}
    return [text for key, value in settings.items() for text in (f"--{key}", str(value))]
