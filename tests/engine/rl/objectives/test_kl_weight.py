"""The KL's weight: constant, or led by --kl-target."""

from types import SimpleNamespace

import pytest

from dpok_cli.engine.rl.objectives.base import KLWeight


def weight(target, beta=0.5):
    return KLWeight(SimpleNamespace(beta=beta, kl_target=target))


@pytest.mark.parametrize(
    ("kl", "beta"), [(0.16, 4.0), (0.14, 2.0), (0.1, 2.0), (0.07, 2.0), (0.06, 1.0)]
)
def test_beta_follows_the_target(kl, beta):
    led = weight(0.1)
    led.beta = 2.0
    assert led.follow(kl) == {"beta": beta}
    assert led.beta == beta


@pytest.mark.parametrize(("target", "beta"), [(0.0, 0.5), (0.1, 0.0)])
def test_without_a_target_or_a_penalty_it_stays_and_is_not_logged(target, beta):
    constant = weight(target, beta)
    assert [constant.follow(kl) for kl in (0.0, 9.0)] == [{}, {}]
    assert constant.beta == beta


def test_it_stays_between_the_first_and_a_factor_of_it():
    up, down = weight(0.1), weight(0.1)
    for _ in range(50):
        up.follow(9.0)
        down.follow(0.0)
    assert (up.beta, down.beta) == (0.5 * 1024, 0.5)


@pytest.mark.parametrize("objective", ["dpok", "nft", "mixed"])
def test_a_round_changes_the_weight_and_a_resume_has_it(
    objective, make_config, make_model, green, rl_loop
):
    config = make_config(
        objective=objective, kl_target=1e-9, beta=0.01, group_size=1, least_signal=0.0
    )
    loop, other = (rl_loop(config, make_model(beta_end=0.004), green) for _ in range(2))
    records = [loop.advance(number) for number in (1, 2)]
    # In the first update nothing has changed yet, but in the second.
    assert [record["beta"] for record in records] == [0.02, 0.04]
    other.load_state_dict(loop.state_dict())
    assert other.advance(3)["beta"] == 0.08


def test_the_loss_has_the_weight_as_it_is(make_config, make_model, green, rl_loop, shake):
    loop = rl_loop(make_config(kl_target=1e-9, beta=0.5), make_model(beta_end=0.004), green)
    loop.advance(1)
    shake(loop.sampler.model, size=0.02)
    batch = loop.buffer.examples
    before = loop.objective.loss(batch)
    loop.objective.kl_weight.beta *= 3
    after = loop.objective.loss(batch)
    added = (after.loss - before.loss).item()
    assert added == pytest.approx(2 * 1.0 * before.measured["kl"].item(), rel=1e-3)
