from dataclasses import dataclass
from typing import Literal

import pytest

from dpok_cli.errors import InputError
from dpok_cli.rewards.base import RewardModel
from dpok_cli.rewards.spec import RewardSpec, make_options, parse_spec


class Sharpness(RewardModel):
    name = "sharpness"

    @dataclass(frozen=True)
    class Options:
        url: str
        scale: float = 1.0
        retries: int = 3
        fast: bool = False
        limit: int | None = 5
        mode: Literal["mean", "max"] = "mean"
        size: Literal[1, 2] = 1

        def __post_init__(self):
            if self.retries < 0:
                raise ValueError("retries must not be negative")

    def score_batch(self, images, prompts):
        raise NotImplementedError


@pytest.mark.parametrize(
    ("text", "name", "weight", "options"),
    [
        ("clip", "clip", 1.0, {}),
        ("clip=0.5", "clip", 0.5, {}),
        ("clip=-2", "clip", -2.0, {}),
        ("clip=1e-3", "clip", 0.001, {}),
        ("clip:model=tiny", "clip", 1.0, {"model": "tiny"}),
        ("clip=2:model=a/b,scale=true", "clip", 2.0, {"model": "a/b", "scale": "true"}),
        ("http:url=http://h:80/x?a=b", "http", 1.0, {"url": "http://h:80/x?a=b"}),
        ("http=3:url=http://h:80,n=1", "http", 3.0, {"url": "http://h:80", "n": "1"}),
        ("clip:model=C:\\w=1", "clip", 1.0, {"model": "C:\\w=1"}),
        ("clip:model=", "clip", 1.0, {"model": ""}),
        ('vlm:question="a, b",n=1', "vlm", 1.0, {"question": "a, b", "n": "1"}),
        ('vlm: question = "a ""b"", c=d" ', "vlm", 1.0, {"question": 'a "b", c=d'}),
        ('vlm:question=is it "b"?', "vlm", 1.0, {"question": 'is it "b"?'}),
        ('vlm:question=" ",n="",m="""a"', "vlm", 1.0, {"question": " ", "n": "", "m": '"a'}),
        ('vlm:question="a\nb,"', "vlm", 1.0, {"question": "a\nb,"}),
        (" clip = 2 : model = tiny , n = 1 ", "clip", 2.0, {"model": "tiny", "n": "1"}),
    ],
)
def test_parse_reads_the_grammar_and_str_writes_it(text, name, weight, options):
    spec = parse_spec(text)
    assert spec == RewardSpec(name, weight, options)
    assert parse_spec(str(spec)) == spec


def test_str_is_short():
    assert str(RewardSpec("clip")) == "clip"
    assert str(RewardSpec("clip", 2.0, {"a": "1", "b": "x=y"})) == "clip=2:a=1,b=x=y"
    assert str(RewardSpec("clip", 0.1)) == "clip=0.1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the name is missing"),
        ("=2", "the name is missing"),
        (":a=b", "the name is missing"),
        ("clip=", "the weight '' is not a number"),
        ("clip=much", "the weight 'much' is not a number"),
        ("clip=0", "must be finite and not zero"),
        ("clip=nan", "must be finite and not zero"),
        ("clip=inf", "must be finite and not zero"),
        ("clip:", "the option '' is not of the form KEY=VALUE"),
        ("clip:model", "the option 'model' is not of the form KEY=VALUE"),
        ("clip:a=1,", "the option '' is not of the form KEY=VALUE"),
        ("clip:=1", "the option '=1' is not of the form KEY=VALUE"),
        ("clip:a=1,a=2", "the option 'a' is given twice"),
        ('clip:a="b,c', "the option 'a' starts with a quote, which must end it"),
        ('clip:a="b"c,d=e', "the option 'a' starts with a quote, which must end it"),
    ],
)
def test_parse_refuses_invalid_specs(text, message):
    with pytest.raises(InputError) as caught:
        parse_spec(text)
    assert message in str(caught.value)
    assert "NAME[=WEIGHT][:KEY=VALUE,...]" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("url", "12", "12"),
        ("scale", "2", 2.0),
        ("scale", "1e-2", 0.01),
        ("retries", "7", 7),
        ("fast", "true", True),
        ("fast", "Yes", True),
        ("fast", "0", False),
        ("fast", "off", False),
        ("limit", "none", None),
        ("limit", "8", 8),
        ("mode", "max", "max"),
        ("size", "2", 2),
    ],
)
def test_options_are_cast_to_their_fields_type(key, text, value):
    options = make_options(Sharpness, {"url": "u", key: text})
    assert getattr(options, key) == value
    assert type(getattr(options, key)) is type(value)


def test_options_left_out_keep_their_defaults():
    assert make_options(Sharpness, {"url": "u"}) == Sharpness.Options("u")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"scale": "2"}, "needs the option 'url'"),
        ({"url": "u", "scal": "2"}, "has no option 'scal'. Did you mean 'scale'?"),
        ({"url": "u", "qqq": "2"}, "Known: fast, limit, mode, retries, scale, size, url."),
        ({"url": "u", "scale": "big"}, "scale='big' must be a finite number"),
        ({"url": "u", "scale": "nan"}, "scale='nan' must be a finite number"),
        ({"url": "u", "retries": "1.5"}, "retries='1.5' must be a whole number"),
        ({"url": "u", "fast": "maybe"}, "fast='maybe' must be true or false"),
        ({"url": "u", "limit": "x"}, "limit='x' must be a whole number, or none"),
        ({"url": "u", "mode": "min"}, "mode='min' must be one of mean, max"),
        ({"url": "u", "retries": "-1"}, "retries must not be negative"),
    ],
)
def test_invalid_options_are_named(given, message):
    with pytest.raises(InputError) as caught:
        make_options(Sharpness, given)
    assert message in str(caught.value)
    assert "'sharpness'" in str(caught.value)


def test_a_reward_without_options_says_so():
    class Plain(RewardModel):
        name = "plain"

        def score_batch(self, images, prompts):
            raise NotImplementedError

    with pytest.raises(InputError, match=r"'plain' has no option 'a'. Known: none."):
        make_options(Plain, {"a": "1"})
