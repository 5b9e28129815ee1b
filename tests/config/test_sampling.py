import pytest

from dpok_cli.config import SampleConfig, SamplingConfig, sampling_settings
from dpok_cli.config.fields import flag
from dpok_cli.errors import InputError


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("model", value) for value in ("", " ")),
        *(("prompts", value) for value in (("",), ("a cat", " "))),
        *(("num_inference_steps", value) for value in (0, -1)),
        *(("guidance_scale", value) for value in (-1.0, float("nan"), float("inf"))),
        *(("eta", value) for value in (-0.1, 1.1, float("nan"))),
        *(("height", value) for value in (-8, 4, 2056)),
        *(("width", value) for value in (-8, 63, 100_000)),
        ("sample_batch_size", 0),
        ("precision", "fp8"),
        *(("seed", value) for value in (-1, 2**63)),
    ],
)
def test_out_of_range(key, value):
    with pytest.raises(InputError, match=f"^{flag(key)} "):
        SamplingConfig(**{key: value})


def test_on_the_edge_of_the_range():
    edge = {"eta": 0.0, "guidance_scale": 0.0, "seed": 2**63 - 1, "height": 8, "width": 2048}
    config = SamplingConfig(**edge)
    assert {key: getattr(config, key) for key in edge} == edge


def test_messages():
    with pytest.raises(
        InputError, match=r"^--width 60: must be a multiple of 8 up to 2048, or 0\.$"
    ):
        SamplingConfig(width=60)
    with pytest.raises(InputError, match=r"^--prompt ' ': must be texts that are not blank\.$"):
        SamplingConfig(prompts=["a cat", " "])


def test_prompts_may_be_a_list():
    assert SampleConfig(prompts=["a cat"]).prompts == ("a cat",)


def test_sampling_settings_leave_out_the_machine_and_what_is_not_sampling():
    run = {"eta": 0.5, "model": "tiny", "seed": 3, "device": "cpu", "rounds": 9}
    assert sampling_settings(run) == {"eta": 0.5, "model": "tiny"}
