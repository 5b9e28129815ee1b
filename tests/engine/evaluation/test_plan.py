"""The plan of an evaluation: prompts, seeds, rewards and batches, without torch."""

import subprocess
import sys

import pytest

from dpok_cli.config import EvaluateConfig
from dpok_cli.engine.evaluation.contenders import BASE, Contender
from dpok_cli.engine.evaluation.plan import (
    Evaluation,
    Place,
    Prompt,
    arrange_prompts,
    plan_evaluation,
    settle,
)
from dpok_cli.errors import InputError
from dpok_cli.prompts.unseen import Unseen, unseen_prompts


def test_prompts_are_seen_unseen_or_given():
    tuned = [Contender("x", None, {"prompts": ["A green colored rabbit."]})]
    given = ("a green colored rabbit", "two dogs")
    derived = unseen_prompts(given[:1])
    categories = {"a lion": ("animals", "basic"), given[0]: ("", "short")}
    prompts = arrange_prompts(given, tuned, derived, ["a lion", "Two dogs."], categories)
    assert prompts == (
        Prompt("a green colored rabbit", "seen", "colour", challenge="short"),
        Prompt("two dogs", "unseen"),
        Prompt("A green colored cat.", "unseen", "colour", "a green colored rabbit"),
        Prompt("a lion", "unseen", "animals", challenge="basic"),
    )
    assert arrange_prompts(["a cat"], [Contender("x")], {}) == (Prompt("a cat", "given"),)
    # a variant that was trained on after all does not become unseen
    both = arrange_prompts(["a cat"], tuned, {"a cat": Unseen("subject", ("A CAT",))})
    assert [prompt.text for prompt in both] == ["a cat"]


def test_a_plan_takes_settings_and_prompts_from_the_run(make_run, runs_dir):
    make_run("one", eta=0.5, rewards=("jpeg-compressibility=2",))
    evaluation = plan_evaluation(
        ["one"], unseen=True, extra_prompts=["a purple yak"], runs_dir=runs_dir, samples=3
    )
    assert [each.name for each in evaluation.contenders] == [BASE, "one"]
    assert (evaluation.config.eta, evaluation.config.samples) == (0.5, 3)
    assert [(each.text, each.group) for each in evaluation.prompts] == [
        ("a red cat", "seen"),
        *[(text, "unseen") for text in unseen_prompts(["a red cat"])["a red cat"].variants],
        ("a purple yak", "unseen"),
    ]
    assert evaluation.rewards[:2] == ("jpeg-compressibility", "image-reward:model=tiny")
    assert evaluation.total == 2 * 5 * 3
    (remark,) = evaluation.remarks
    assert "'a purple yak' is not a tiny-world prompt" in remark
    given = plan_evaluation(
        ["one"], runs_dir=runs_dir, eta=1.0, prompts=("a cat",), rewards=("judge=2",)
    )
    assert (given.config.eta, given.rewards) == (1.0, ("judge",))
    assert given.prompts == (Prompt("a cat", "unseen"),)


def test_prompts_without_variants_are_a_remark(make_run, runs_dir):
    make_run("one", prompts=("a red cat", "justice for all"))
    evaluation = plan_evaluation(["one"], unseen=True, runs_dir=runs_dir)
    assert evaluation.remarks[0] == "There are no variants of 'justice for all'."


def test_prompts_that_are_put_together_are_a_remark():
    given = ("a red cat", "A red cat.", "a red dog", "a red dog", "a  red CAT", "a red dog")
    config = EvaluateConfig(prompts=given, rewards=("judge",))
    evaluation = settle(config, [Contender("x")], extra_prompts=["A red dog", "a red wolf"])
    assert [each.text for each in evaluation.prompts] == ["a red cat", "a red dog", "a red wolf"]
    assert evaluation.remarks == (
        "Prompts that differ only in case, spaces or a final full stop are evaluated once:"
        " 'A red cat.' as 'a red cat'; 'a  red CAT' as 'a red cat'; 'A red dog' as 'a red dog';"
        " 'a red dog', given 3 times.",
    )
    many = tuple(f"a cat {number}" for number in range(9)) * 2
    (remark,) = settle(EvaluateConfig(prompts=many, rewards=("clip",)), [Contender("x")]).remarks
    assert remark.count("given 2 times") == 5
    assert remark.endswith("; 4 more.")
    apart = EvaluateConfig(prompts=("a red cat", "a red dog"), rewards=("judge",))
    assert settle(apart, [Contender("x")]).remarks == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(prompts=()), "give --prompt or --prompts"),
        (dict(prompts=("justice for all",)), "no variants of 'justice for all'"),
        (dict(rewards=("juge",)), "Did you mean 'judge'"),
        (dict(model="./nowhere"), "no model folder ./nowhere"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(changes, message):
    config = EvaluateConfig(**{"prompts": ("a red cat",), "rewards": ("judge",)} | changes)
    with pytest.raises(InputError, match=message):
        settle(config, [Contender("x")], unseen=True)


def test_planning_imports_no_torch():
    code = (
        "import sys; from dpok_cli.engine.evaluation.plan import settle;"
        "from dpok_cli.config import EvaluateConfig;"
        "settle(EvaluateConfig(prompts=('a cat',), rewards=('judge',)), []);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def an_evaluation(**changes):
    config = EvaluateConfig(**{"prompts": ("a red cat",), "samples": 5} | changes)
    prompts = (Prompt("a red cat", "seen"), Prompt("a dog", "unseen"))
    return Evaluation(config, (Contender(BASE),), prompts, ("judge",))


def test_batches_do_not_depend_on_what_is_done():
    batches = an_evaluation(sample_batch_size=4, seed=2).batches()
    first = 2 * 10**9 + 2
    assert [len(batch) for batch in batches] == [4, 4, 2]
    places = [place for batch in batches for place in batch]
    assert places == [Place(row, first + n) for row in range(2) for n in range(5)]


def test_a_benchmark_keeps_each_prompt_to_the_letter():
    config = EvaluateConfig(prompts=("a cat", "A cat.", "a cat"), rewards=("clip",))
    evaluation = settle(
        config, [Contender("x")], categories={"A cat.": ("A", "B")}, benchmark="partiprompts"
    )
    assert [prompt.text for prompt in evaluation.prompts] == ["a cat", "A cat."]
    assert evaluation.remarks == (
        "Prompts are evaluated once, in their first category: 'a cat', given 2 times.",
    )
    settings = evaluation.settings()
    assert settings["benchmark"] == "partiprompts"
    assert settings["prompts"] == {"a cat": ["given", ""], "A cat.": ["given", "A", "B"]}
    assert "benchmark" not in settle(config, [Contender("x")]).settings()
