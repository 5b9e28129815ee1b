"""Stage 4: continue the diffusion model's training from the pipeline folder, for sharper edges.

It is longer, uses a lower learning rate and keeps adjusting the lie rates by measurement, so that
the model matches the final rates.
"""

import json
from pathlib import Path

from diffusers import StableDiffusionPipeline
from torch import nn

from diffusion import Phase, dataset, run_phase, save
from stage import note

STEPS = 7000


def main(work: Path, output: Path) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(output / "pipeline", safety_checker=None)
    vae = pipeline.vae.float().eval().requires_grad_(False)
    model = nn.ModuleDict({"text_encoder": pipeline.text_encoder, "unet": pipeline.unet})
    model.float().train()
    known = json.loads((output / "measured.json").read_text())["diffusion"]
    state: dict = {"rates": dict(known["lie_rates"]), "measured": []}
    phase = Phase(
        name="polish",
        key=4,
        steps=STEPS,
        cycle=STEPS,
        learning_rate=6e-4,
        warm_up=0.05,
        floor=0.2,
        noisy=6,
        measure_from=600,
        measure_every=600,
        rates=known["lie_rates"],
    )
    data = dataset(vae, work)
    run_phase(phase, model, pipeline.tokenizer, vae, data, state, work, output)
    save(model, pipeline.tokenizer, vae, output)
    measured = [{"phase": phase.name} | each for each in state["measured"]]
    known |= {"lie_rates": state["rates"], "measured": known["measured"] + measured}
    note(output, "diffusion", known)
