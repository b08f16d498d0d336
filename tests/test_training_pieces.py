"""The backward pass in pieces of the steps: torch's gradients whatever the pieces, and memory for one piece, not for all rows."""

import pytest
import torch

import fastpack.torch as fp
from fastpack.blocks import SUMMED
from fastpack.torch import gradients as by_kernels
from fastpack.torch import recurrence
from fastpack.torch.gradients import piece_rows
from fastpack.torch.rows import PACKED, Rows
from tests.gradients import assert_alike, by_torch_alone, gradients, kernels_differentiate, some_states
from tests.layers import CELLS, assert_same_bits, packed, pair, states

LENGTHS = [40, 3, 0, 40, 17, 1, 29, 40]


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have pieces of some 20 rows, or of a step."""
    monkeypatch.setattr(by_kernels, "PIECE", 1)
    monkeypatch.setattr(by_kernels, "LEAST", 20)


def rows_of_sizes(batch_sizes: list[int]) -> Rows:
    """Return the rows of a packed batch, as far as pieces need to know."""
    return Rows((0, 0), max(batch_sizes, default=0), len(batch_sizes), sum(batch_sizes), 0, 4, 0, (), None, PACKED)


@pytest.mark.usefixtures("one_thread", "small_pieces")
@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_gradients_are_torchs_in_pieces(cell: str, own: dict) -> None:
    for options in ({}, {"num_layers": 2, "bidirectional": True}):
        _, ours = pair(cell, torch.float64, (5, 9), **own, **options)
        for batch in (packed(torch.float64, LENGTHS, features=5), torch.randn(31, 4, 5, dtype=torch.float64)):
            for hx in some_states(ours, batch):
                expected = gradients(by_torch_alone(ours), [*ours.parameters()], batch, hx)
                with kernels_differentiate():
                    assert_alike(gradients(ours, [*ours.parameters()], batch, hx), expected, 1e-11)


@pytest.mark.usefixtures("one_thread", "small_pieces")
@pytest.mark.parametrize("cell", ["LSTM", "GRU", "RNN"])
def test_gradients_of_batches_with_sequences_first_and_of_single_ones_in_pieces(cell: str) -> None:
    _, ours = pair(cell, torch.float64, (5, 9), bidirectional=True, batch_first=True)
    for batch in (torch.randn(4, 31, 5, dtype=torch.float64), torch.randn(31, 5, dtype=torch.float64)):
        expected = gradients(by_torch_alone(ours), [*ours.parameters()], batch, states(ours, batch))
        with kernels_differentiate():
            assert_alike(gradients(ours, [*ours.parameters()], batch, states(ours, batch)), expected, 1e-11)


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
@pytest.mark.parametrize("lengths", [[60], LENGTHS])
def test_pieces_have_the_same_bits_on_two_threads(cell: str, own: dict, lengths: list[int], two_threads: None, monkeypatch) -> None:
    monkeypatch.setattr(recurrence, "WORTH_WAITING", 1)  # so that shares are of hidden units for a single sequence
    _, ours = pair(cell, torch.float32, (30, 70), bidirectional=True, **own)
    batch, weights = packed(torch.float32, lengths, features=30), [*ours.parameters()]
    hx = states(ours, batch)
    on_two = gradients(ours, weights, batch, hx)
    torch.set_num_threads(1)
    assert_same_bits(gradients(ours, weights, batch, hx), on_two)


@pytest.mark.parametrize(
    "batch_sizes", [[1] * 3000, [700] * 3, [600, 400, 200, 100, 100, 100, 1], [SUMMED], [SUMMED + 1, 1], [300, 300, 300, 300, 1, 1]]
)
def test_pieces_have_room_for_a_step_and_are_about_as_large_as_each_other(batch_sizes: list[int]) -> None:
    rows = rows_of_sizes(batch_sizes)
    most = piece_rows(rows, 1 << 20)
    if rows.N <= SUMMED:
        assert most == rows.N
    else:
        assert batch_sizes[0] <= most <= max(SUMMED, batch_sizes[0])
        assert most >= min(SUMMED, rows.N) / 2


def test_rows_with_few_sums_make_large_pieces() -> None:
    assert piece_rows(rows_of_sizes([10] * 1000), 4) == 10_000
    assert piece_rows(rows_of_sizes([10] * 1000), 1024) == 2000
    assert piece_rows(rows_of_sizes([]), 1024) == 0


@pytest.mark.usefixtures("one_thread")
def test_a_workspace_holds_pieces_and_not_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    original = by_kernels.room_for
    monkeypatch.setattr(by_kernels, "room_for", lambda nbytes: taken.append(nbytes) or original(nbytes))
    ours = fp.LSTM(4, 64)
    for steps in (1000, 4000):
        ours(torch.randn(steps, 4, 4, requires_grad=True))[0].sum().backward()
    assert len(taken) == 2
    assert max(taken) < 4000 * 4 * 4 * 64 * 4
    assert taken[1] < 1.1 * taken[0]


def test_a_gradient_without_a_step_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    _, ours = pair("LSTM", torch.float64, (5, 9))
    batch = packed(torch.float64, LENGTHS, features=5)
    expected = gradients(by_torch_alone(ours), [*ours.parameters()], batch)
    original = by_kernels._run
    fewer = {"T": max(LENGTHS) - 1, "N": sum(LENGTHS) - 3}
    monkeypatch.setattr(by_kernels, "_run", lambda record, *rest: original(record._replace(rows=record.rows._replace(**fewer)), *rest))
    with pytest.raises(AssertionError):
        assert_alike(gradients(ours, [*ours.parameters()], batch), expected, 1e-11)
