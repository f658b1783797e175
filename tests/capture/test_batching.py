"""Batches: every row once, little padding, and an out-of-memory that costs a retry and no row."""

import random

import pytest

from traitmill.engine.capture.batching import Batch, Budget, padding_share, run_batches
from traitmill.engine.errors import ResourceError


class Device:
    """Runs batches of up to `capacity` padded tokens and remembers them."""

    def __init__(self, capacity):
        self.capacity = capacity
        self.ran = []
        self.refused = []

    def __call__(self, batch):
        if batch.padded_tokens > self.capacity:
            self.refused.append(batch)
            raise RuntimeError("CUDA out of memory. Tried to allocate")
        self.ran.append(batch)
        return sum(batch.indices)


def no_memory(error):
    return "out of memory" in str(error)


def ragged(n, seed=0):
    rng = random.Random(seed)
    return [
        min(154, 40 + rng.randrange(50) + round(rng.lognormvariate(3.2, 0.6))) for _ in range(n)
    ]


@pytest.mark.parametrize("limit", [1, 100, 2048, 10**6])
@pytest.mark.parametrize("max_rows", [None, 1, 7])
def test_each_row_is_in_exactly_one_batch_within_the_budget(limit, max_rows):
    lengths = ragged(203)
    found = [
        batch
        for batch, _ in run_batches(
            lengths, Budget(limit, max_rows=max_rows), Device(10**9), no_memory
        )
    ]
    assert sorted(index for batch in found for index in batch.indices) == list(range(203))
    for batch in found:
        assert batch.width == max(lengths[index] for index in batch.indices)
        assert batch.padded_tokens <= limit or len(batch.indices) == 1
        assert max_rows is None or len(batch.indices) <= max_rows


def test_rows_that_may_not_be_together_are_apart():
    lengths = ragged(200)

    def together(longest, other):
        return longest <= 90 or (longest <= 120 and other > 90)

    found = [
        b
        for b, _ in run_batches(lengths, Budget(10**6), Device(10**9), no_memory, together=together)
    ]
    assert sorted(index for batch in found for index in batch.indices) == list(range(200))
    longest = [index for index, length in enumerate(lengths) if length > 120]
    assert len(found) == len(longest) + 2
    for batch in found:
        assert (
            all(together(batch.width, lengths[index]) for index in batch.indices)
            or len(batch.indices) == 1
        )


def test_sorting_by_length_leaves_little_padding():
    lengths = ragged(400)
    sorted_batches = [b for b, _ in run_batches(lengths, Budget(2048), Device(10**9), no_memory)]
    arrival = [Batch(tuple(range(i, i + 8)), max(lengths[i : i + 8])) for i in range(0, 400, 8)]
    assert padding_share(lengths, sorted_batches) < 0.03
    assert padding_share(lengths, arrival) > 0.15


def test_growth_makes_wide_batches_smaller():
    budget = Budget(1000, growth=0.01)
    assert budget.rows_at(10) == 90
    assert budget.rows_at(100) == 5
    assert budget.rows_at(10_000) == 1


def test_f21_out_of_memory_halves_and_remembers():
    device, budget, lengths = Device(300), Budget(2048), [50] * 120
    done = [
        index
        for batch, _ in run_batches(lengths, budget, device, no_memory)
        for index in batch.indices
    ]
    assert sorted(done) == list(range(120))
    assert [len(batch.indices) for batch in device.refused[:3]] == [40, 20, 10]
    refused = len(device.refused)
    list(run_batches([50] * 20, budget, device, no_memory))
    assert len(device.refused) == refused, "a later call starts from what was learnt"


def test_f21_memory_that_comes_back_is_used_again():
    device, budget = Device(300), Budget(2048)
    list(run_batches([50] * 120, budget, device, no_memory))
    device.capacity = 10**9
    list(run_batches([50] * 2000, budget, device, no_memory))
    assert budget.now == 2048


def test_f21_probes_grow_rare_when_memory_does_not_come_back():
    device, budget = Device(300), Budget(2048)
    list(run_batches([50] * 10_000, budget, device, no_memory))
    batches = len(device.ran)
    assert batches > 1500
    assert len(device.refused) < 14


def test_f21_one_row_that_does_not_fit_is_named_at_the_start():
    device = Device(300)
    with pytest.raises(ResourceError, match="one row of 500 tokens"):
        list(run_batches([50, 500], Budget(2048), device, no_memory))
    assert device.ran == []


def test_other_errors_pass():
    def broken(_batch):
        raise RuntimeError("index out of bounds")

    with pytest.raises(RuntimeError, match="index out of bounds"):
        list(run_batches([5, 6], Budget(100), broken, no_memory))


@pytest.mark.parametrize("arguments", [{"limit": 0}, {"limit": 5, "max_rows": 0}])
def test_a_budget_holds_something(arguments):
    with pytest.raises(ValueError, match="at least 1"):
        Budget(**arguments)
