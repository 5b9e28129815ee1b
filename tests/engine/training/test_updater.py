"""The updater: what one optimizer step does with gradients that are given."""

import copy

import pytest
import torch

from dpok_cli.engine.distributed import accelerator_for
from dpok_cli.engine.training.updater import MAX_SKIPPED, Updater
from dpok_cli.errors import TrainingError


class Weights:
    """An adapter of two weights."""

    def __init__(self):
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def parameters(self):
        return [self.weight]


@pytest.fixture
def make(make_config):
    def make(**changes):
        config = make_config(**dict(weight_decay=0.0, lr_schedule="constant") | changes)
        weights = Weights()
        accelerator = accelerator_for(torch.device("cpu"), "fp32")
        network = torch.nn.Linear(1, 1)
        return Updater(config, weights, network, accelerator, steps=4), weights.weight

    return make


def first_moment(updater, weight):
    return updater.optimizer.state[weight]["exp_avg"].tolist()


@pytest.mark.parametrize(
    ("most", "taken"),
    [
        (10.0, [3.0, 4.0]),  # the norm is 5, which is allowed
        (1.0, [0.6, 0.8]),
        (0.1, [0.06, 0.08]),
    ],
)
def test_gradients_are_clipped_to_their_largest_norm(make, most, taken):
    """Adam's own step does not depend on a gradient's scale; its first moment does."""
    updater, weight = make(max_grad_norm=most, adam_beta1=0.5)
    updater.backward((weight * torch.tensor([3.0, 4.0])).sum())
    assert updater.step().item() == pytest.approx(5.0)  # before clipping
    assert first_moment(updater, weight) == pytest.approx([0.5 * one for one in taken], rel=1e-4)
    assert not weight.grad  # ready for the next step


def test_batches_of_a_step_add_up(make):
    updater, weight = make(max_grad_norm=100.0, adam_beta1=0.5)
    for last in (False, True):
        with updater.accumulate(last):
            updater.backward((weight * torch.tensor([1.0, -2.0])).sum())
    updater.step()
    assert first_moment(updater, weight) == pytest.approx([1.0, -2.0], rel=1e-4)


def test_a_step_moves_against_the_gradient_by_the_learning_rate(make):
    updater, weight = make(learning_rate=0.25)
    updater.backward((weight * torch.tensor([3.0, -4.0])).sum())
    updater.step()
    assert weight.tolist() == pytest.approx([-0.25, 0.25], rel=1e-4)


def test_a_gradient_that_is_not_finite_changes_nothing(make):
    updater, weight = make()
    updater.backward((weight * torch.tensor([1.0, float("nan")])).sum())
    assert not updater.step().isfinite()
    assert (weight.tolist(), updater.skipped) == ([0.0, 0.0], 1)
    updater.backward(weight.sum())
    updater.step()
    assert weight.max() < 0
    assert updater.skipped == 1


def test_the_step_is_that_of_adamw_by_hand(make):
    """w - rate * (decay * w + sign), and the mean of the squares moves by 1 - beta2."""
    updater, weight = make(learning_rate=0.1, weight_decay=0.5, adam_beta2=0.75, max_grad_norm=99.0)
    weight.data.copy_(torch.tensor([2.0, -4.0]))
    updater.backward((weight * torch.tensor([3.0, -4.0])).sum())
    updater.step()
    assert weight.tolist() == pytest.approx([2.0 - 0.1 - 0.1, -4.0 + 0.2 + 0.1], rel=1e-4)
    squares = updater.optimizer.state[weight]["exp_avg_sq"].tolist()
    assert squares == pytest.approx([0.25 * 9, 0.25 * 16], rel=1e-4)


def take(updater, weight, gradient):
    updater.backward((weight * torch.tensor([1.0, gradient])).sum())
    updater.step()


def test_only_steps_in_a_row_that_are_not_finite_end_the_run(make):
    updater, weight = make()
    for _ in range(3):
        for _ in range(MAX_SKIPPED - 1):
            take(updater, weight, float("inf"))
        take(updater, weight, 1.0)
    assert updater.skipped == 3 * (MAX_SKIPPED - 1)
    other, second = make()  # a resume does not begin to count anew
    for _ in range(MAX_SKIPPED - 2):
        take(updater, weight, float("inf"))
    other.load_state_dict(copy.deepcopy(updater.state_dict()))
    take(other, second, float("nan"))
    with pytest.raises(TrainingError, match=f"not finite {MAX_SKIPPED} times in a row"):
        take(other, second, float("nan"))


@pytest.mark.parametrize(("precision", "steps"), [("fp32", 0), ("bf16", 0), ("fp16", 1)])
def test_in_half_precision_the_scaler_skips_by_itself(precision, steps, make, monkeypatch):
    updater, weight = make(precision=precision)
    taken, step = [], updater.optimizer.step
    monkeypatch.setattr(updater.optimizer, "step", lambda: taken.append(step()))
    take(updater, weight, float("inf"))
    assert (len(taken), updater.skipped) == (steps, 1)


def test_the_scale_of_the_gradients_comes_back(make):
    one, other = (make()[0] for _ in range(2))
    scalers = [torch.amp.GradScaler("cpu", init_scale=scale) for scale in (8.0, 2.0)]
    for updater, scaler in zip((one, other), scalers, strict=True):
        scaler.scale(torch.ones(1))  # as in a step
        updater.accelerator.scaler = scaler
    other.load_state_dict(one.state_dict())
    assert scalers[1].get_scale() == 8.0


def test_its_state_comes_back(make):
    one, first = make(lr_warmup_steps=3)
    other, second = make(lr_warmup_steps=3)
    for gradient in ([1.0, 2.0], [float("inf"), 0.0]):
        one.backward((first * torch.tensor(gradient)).sum())
        one.step()
    other.load_state_dict(copy.deepcopy(one.state_dict()))  # as a file would be read
    second.data.copy_(first.data)
    assert (other.skipped, other.learning_rate) == (1, one.learning_rate)
    for updater, weight in ((one, first), (other, second)):
        updater.backward((weight * torch.tensor([2.0, -1.0])).sum())
        updater.step()
    assert torch.equal(first, second)


def mean_of(weight, seen=None, most=99):
    """Makes a loss of rows: the mean of weight * (row, 1); more rows than ``most`` do not fit."""

    def compute(rows):
        if seen is not None:
            seen.append(len(rows))
        loss = (weight * torch.stack([rows.float(), torch.ones(len(rows))], 1)).sum(1).mean()
        if len(rows) > most:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return loss, len(rows)

    return compute


def test_passes_of_any_size_have_the_gradient_of_the_batches_that_are_set(make):
    gradients = []
    for size in (4, 2, 3, 12):
        updater, weight = make(batch_size=4, gradient_accumulation=3)
        updater.batch_size = size
        batches = torch.arange(12.0).split(4)
        assert updater.accumulate_over(batches, mean_of(weight)) == [size] * (12 // size)
        gradients.append(weight.grad.tolist())
    assert gradients == [pytest.approx([5.5, 1.0])] * 4


def test_a_smaller_last_batch_counts_as_much_as_the_others(make):
    updater, weight = make(batch_size=4, gradient_accumulation=2)
    updater.batch_size = 2
    assert updater.accumulate_over(torch.arange(6.0).split(4), mean_of(weight)) == [2, 2, 2]
    assert weight.grad.tolist() == pytest.approx([(1.5 + 4.5) / 2, 1.0])


def test_after_out_of_memory_the_step_is_taken_in_smaller_passes(make):
    lines, seen = [], []
    updater, weight = make(batch_size=12)
    updater.warn = lines.append
    batches = [torch.arange(12.0)]
    assert updater.accumulate_over(batches, mean_of(weight, seen, most=3)) == [3] * 4
    assert seen == [12, 6, 3, 3, 3, 3]
    assert weight.grad.tolist() == pytest.approx([5.5, 1.0])
    assert [line.partition(":")[0] for line in lines] == [
        "Out of memory with 12 examples per pass",
        "Out of memory with 6 examples per pass",
    ]
    updater.accumulate_over(batches, mean_of(weight, seen))
    assert seen[6:] == [3] * 4  # it stays so
    resumed, _ = make(batch_size=12)
    resumed.load_state_dict(updater.state_dict())
    assert resumed.batch_size == 3
    other, _ = make(batch_size=2, gradient_accumulation=6)
    other.load_state_dict(updater.state_dict())
    assert other.batch_size == 2  # the user asks for it
    chosen, _ = make(batch_size=12, auto_batch_size=True)
    chosen.load_state_dict(updater.state_dict())
    assert chosen.batch_size == 0  # to be chosen


def test_out_of_memory_in_the_middle_of_a_step_leaves_none_of_its_gradients(make):
    updater, weight = make(batch_size=4, gradient_accumulation=3)
    updater.warn = lambda line: None
    compute, failed = mean_of(weight), []

    def fails_once(rows):
        if rows[0] == 4 and not failed:
            failed.append(rows)
            raise torch.cuda.OutOfMemoryError("CUDA out of memory.")
        return compute(rows)

    assert updater.accumulate_over(torch.arange(12.0).split(4), fails_once) == [2] * 6
    assert weight.grad.tolist() == pytest.approx([5.5, 1.0])


def test_one_example_that_does_not_fit_ends_the_run(make):
    updater, weight = make(batch_size=2)
    updater.warn = lambda line: None
    with pytest.raises(torch.cuda.OutOfMemoryError):
        updater.accumulate_over([torch.arange(2.0)], mean_of(weight, most=0))


@pytest.mark.parametrize(
    ("free", "size"),
    [(10**12, 12), (5.9 / 0.8, 4), (1.5 / 0.8, 1), (0.0, 1)],
)
def test_the_batch_size_is_chosen_by_the_free_memory(make, monkeypatch, free, size):
    from dpok_cli.engine.training import plan

    updater, weight = make(batch_size=4, gradient_accumulation=3, auto_batch_size=True)
    config = updater.config
    model = plan._without_weights(config)
    example = plan._Batches(model, config, processes=1, on_cpu=True).update()
    monkeypatch.setattr(plan, "_free_memory", lambda device, processes: free * example)
    random = torch.get_rng_state()
    passes = updater.accumulate_over(torch.arange(12.0).split(4), mean_of(weight))
    assert passes == [size] * (12 // size)
    assert weight.grad.tolist() == pytest.approx([5.5, 1.0])
    assert torch.equal(torch.get_rng_state(), random)


def test_no_more_examples_are_taken_than_pay(make):
    updater, weight = make(batch_size=128, gradient_accumulation=3, auto_batch_size=True)
    passes = updater.accumulate_over(torch.arange(384.0).split(128), mean_of(weight))
    assert passes == [64] * 6
