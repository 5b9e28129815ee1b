"""Measures: what the view, the plot and the docs are made from."""

import pytest

from dpok_cli.engine.rl.measures import rl_measures
from dpok_cli.engine.rl.objectives import OBJECTIVES
from dpok_cli.engine.runs.measures import Measure, advice
from dpok_cli.engine.sft.measures import SFT_MEASURES

HOT = Measure("heat", "How hot.", advice=lambda records, config: "Cool." if config else None)
COLD = Measure("frost", "How cold.", "Below 0.", label="cold", form=".1f", spread="std")


def test_text_has_the_form_and_the_spread():
    assert COLD.text({"frost": -1.25, "std": 0.5}) == "-1.2 ± 0.5"
    assert HOT.text({"heat": 2.0}) == "2.000"


def test_advice_is_by_key_and_only_where_something_is_unhealthy():
    assert advice([HOT, COLD], [{}], config=True) == {"heat": "Cool."}
    assert advice([HOT, COLD], [{}], config=False) == {}


@pytest.mark.parametrize(
    "measures", [rl_measures(OBJECTIVES["dpok"]), SFT_MEASURES], ids=["rl", "sft"]
)
def test_keys_are_unique_and_meanings_are_sentences(measures):
    keys = [one.key for one in measures]
    assert len(set(keys)) == len(keys)
    assert [one.key for one in measures if not one.meaning.endswith(".")] == []
    assert [one.key for one in measures if one.healthy and not one.healthy.endswith(".")] == []


def test_every_measure_of_a_round_is_described(make_model, make_config, green):
    from dpok_cli.engine.rl.loop import train_rl

    config = make_config(rounds=1, advantage="value", kl_target=0.1)
    (record,) = train_rl(config, make_model(), green)
    keys = [one.key for one in rl_measures(config.objective_class)]
    described = [key for key in keys if not key.startswith("grid/")]  # of grids, in a run folder
    shown = [key if key != "reward/green" else "reward/NAME" for key in record]
    assert sorted(shown) == sorted(described)
    assert shown == described
