"""--change-limit: a round whose updates go too far keeps a part of them."""

import pytest
import torch

from dpok_cli.engine.rl.objectives.nft import trust


@pytest.mark.parametrize(
    ("change", "limit", "kept"),
    [(4e-4, 1e-4, 0.5), (1e-4, 1e-4, 1), (0, 1e-4, 1), (9, 1e-2, 1 / 30)],
)
def test_the_change_grows_with_the_square_of_the_step(change, limit, kept):
    assert trust(change, limit) == {"step_kept": pytest.approx(kept)}


def test_without_a_limit_there_is_nothing_to_log():
    assert trust(1.0, 0.0) == {}


@pytest.mark.parametrize("objective", ["nft", "mixed"])
def test_a_round_is_shortened_to_the_limit(objective, make_config, make_model, green, rl_loop):
    def round_with(limit):
        """Return a round's record, and the adapter before and after it."""
        config = make_config(
            objective=objective, change_limit=limit, group_size=1, least_signal=0.0
        )
        loop = rl_loop(config, make_model(beta_end=0.004), green)
        adapter = loop.session.model.adapter
        before = {key: each.detach().clone() for key, each in adapter.state_dict().items()}
        return loop.advance(1), before, adapter.state_dict()

    free, start, far = round_with(0.0)
    assert "step_kept" not in free
    limited, same_start, near = round_with(free["change"] / 16)
    assert limited["step_kept"] == pytest.approx(1 / 4)
    assert any((far[key] - start[key]).abs().max() > 1e-3 for key in far)
    for key in far:
        assert torch.equal(start[key], same_start[key])
        torch.testing.assert_close(near[key] - start[key], (far[key] - start[key]) / 4)
    loose, _, whole = round_with(free["change"] * 1.01)
    assert loose["step_kept"] == 1
    assert all(torch.equal(whole[key], far[key]) for key in far)
