"""Every family draws what its own pipeline draws, and its steps are a policy."""

import pytest
import torch

from dpok_cli.config import SampleConfig
from dpok_cli.engine.bases.model import DiffusionModel
from dpok_cli.engine.sampling.sampler import Sampler
from support.families import FAMILIES, guidance, make

PROMPTS = ("a green rabbit", "cat")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


@pytest.fixture
def model(family):
    return DiffusionModel(make(family))


def sampler(model, **changes):
    settings = dict(prompts=PROMPTS, num_inference_steps=4, eta=0.0, guidance_scale=4.0)
    return Sampler(model, SampleConfig(**settings | changes))


def drawn_by_the_pipeline(pipeline, guidance_scale, **more):
    images = []
    for number, prompt in enumerate(PROMPTS):
        generator = torch.Generator().manual_seed(number)
        made = pipeline(
            prompt,
            num_inference_steps=4,
            generator=generator,
            output_type="pt",
            **guidance(pipeline, guidance_scale),
            **more,
        )
        images.append(made.images[0])
    return torch.stack(images)


@pytest.mark.parametrize("guidance_scale", [4.0, 1.0])
@pytest.mark.parametrize("size", [(0, 0), (32, 16)])
def test_images_are_those_of_the_pipeline(model, guidance_scale, size):
    model.latent_shape = model.base.latent_shape(*size)
    height, width = model.size
    assert size in ((0, 0), (height, width))
    drawing = sampler(model, guidance_scale=guidance_scale)
    with torch.no_grad():
        latents = drawing.latents(model.encode(PROMPTS), [0, 1])
        ours = model.decode(latents)
    theirs = drawn_by_the_pipeline(model.pipeline, guidance_scale, height=height, width=width)
    assert ours.shape == theirs.shape == (2, 3, height, width)
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours[0] - ours[1]).abs().max() > 1e-3


def test_an_image_does_not_depend_on_its_batch(model):
    drawing = sampler(model, eta=1.0)
    texts = model.encode(PROMPTS)
    with torch.no_grad():
        together = drawing.latents(texts, [0, 1])
        alone = torch.cat([drawing.latents(texts[[row]], [row]) for row in (0, 1)])
    assert (together - alone).abs().max() <= 2e-6 * together.abs().max()


def test_the_ratio_before_an_update_is_one(model):
    drawing = sampler(model, eta=1.0, num_inference_steps=6)
    texts = model.encode(PROMPTS)
    stochastic = drawing.denoising.stochastic.tolist()
    assert stochastic
    with torch.no_grad():
        for index, step in enumerate(drawing.steps(texts, [0, 1])):
            if index in stochastic:
                before = step.policy.log_prob(step.next_latents)
                for row in (0, 1):
                    again = drawing.policy(step.latents[[row]], torch.tensor([index]), texts[[row]])
                    after = again.log_prob(step.next_latents[[row]])
                    assert ((after - before[row]).exp() - 1).abs() <= 1e-6


def test_prompts_are_encoded_the_same_every_time(model):
    prompts = list(PROMPTS)
    first, second = model.encode(prompts), model.encode(prompts)
    assert torch.equal(first.prompts.embeds, second.prompts.embeds)
    assert prompts == list(PROMPTS)


def test_latents_go_to_the_vae_and_back(model):
    latents = torch.randn(2, *model.latent_shape)
    torch.testing.assert_close(model.base.from_vae(model.base.to_vae(latents)), latents)


def test_the_end_of_a_prompt_that_no_encoder_sees(model):
    """Its words change nothing, and those before it do; it is the pipeline that cuts it off."""
    words = ["cat"] * 700
    end = model.base.unread(" ".join(words)).split()
    assert 1 < len(end) < 700

    def encoded(*dogs):
        changed = ["dog" if number in dogs else word for number, word in enumerate(words)]
        return model.encode([" ".join(changed)]).prompts

    first = 700 - len(end)
    plain, same, other = encoded(), encoded(first + 1, 699), encoded(first - 1)
    assert torch.equal(plain.embeds, same.embeds)
    assert plain.embeds.shape == other.embeds.shape
    assert not torch.equal(plain.embeds, other.embeds)
    assert model.unread(["a cat", " ".join(words)]) == [
        f"The text encoder does not see {' '.join(end)!r} at the end of {' '.join(words)!r}."
    ]
