"""Laws of training: the same bits from run to run, on any number of threads, alone and in any batch; and what one sequence has it keeps."""

import numpy as np
import pytest
import torch
from torch import Tensor

import fastpack.torch as fp
from fastpack.torch import gradients as by_kernels
from fastpack.torch import parallel, recurrence, training
from tests.gradients import gradients, in_a_list, kernels_differentiate, rows_of, some_states, weighed, with_data
from tests.guarded import CANARY
from tests.layers import CELLS, F, assert_same_bits, flat, inputs, packed, pair, states

LENGTHS = [5, 40, 1, 17, 40, 9, 33]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_recording_changes_no_bit_of_the_results(cell: str, own: dict) -> None:
    for dtype in (torch.float32, torch.float64):
        for sizes in ((F, 7), (5, 40)):
            _, ours = pair(cell, dtype, sizes, num_layers=2, bidirectional=True, **own)
            batches = [packed(dtype, LENGTHS, features=sizes[0]), packed(dtype, [0, 3, 0], features=sizes[0])]
            batches.append(torch.randn(4, 3, sizes[0], dtype=dtype))
            for batch in batches:
                for hx in some_states(ours, batch):
                    with torch.no_grad():
                        expected = flat(ours(batch, hx))
                    assert_same_bits(flat(ours(batch, hx)), expected)


@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_bits_are_the_same_from_run_to_run_and_on_two_threads(cell: str, own: dict, two_threads: None, monkeypatch) -> None:
    ran: list[tuple[str, int]] = []
    original = parallel.run_on
    monkeypatch.setattr(
        parallel, "run_on", lambda block, shares, many: ran.append((type(block).__name__, many)) or original(block, shares, many)
    )
    monkeypatch.setattr(recurrence, "WORTH_WAITING", 1)
    for dtype in (torch.float32, torch.float64):
        _, ours = pair(cell, dtype, (30, 70), num_layers=2, bidirectional=True, **own)
        weights = [*ours.parameters()]
        for lengths in ([20], [15, 6], LENGTHS):  # shares of hidden units, of a sequence each, of several
            batch = packed(dtype, lengths, features=30)
            hx = states(ours, batch)
            ran.clear()
            with kernels_differentiate():
                expected = gradients(ours, weights, batch, hx)
                many = {name: [count for one, count in ran if one == name] for name, _ in ran}
                assert (many["Recur"], many["LayerGradient"]) == ([2] * 4, [2] * 2)
                assert_same_bits(gradients(ours, weights, batch, hx), expected)
                with monkeypatch.context() as patch:
                    patch.setattr(recurrence, "shares_units", lambda *_: True)
                    assert_same_bits(gradients(ours, weights, batch, hx), expected)
                torch.set_num_threads(1)
                assert_same_bits(gradients(ours, weights, batch, hx), expected)
                torch.set_num_threads(2)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("cell", "own"), CELLS, ids=str)
def test_a_sequences_gradients_have_the_same_bits_alone_and_in_any_batch(cell: str, own: dict) -> None:
    generator = np.random.default_rng(0)
    for dtype in (torch.float32, torch.float64):
        _, ours = pair(cell, dtype, (5, 40), num_layers=2, bidirectional=True, **own)
        rows = [torch.randn(length, 5, dtype=dtype) for length in LENGTHS]
        given = [torch.randn(length, ours.proj_size or 40, dtype=dtype).repeat(1, 2) for length in LENGTHS]
        begun = in_a_list(states(ours, fp.pack_sequence(rows, enforce_sorted=False)))

        def found(which: list[int]) -> list[list[Tensor]]:
            """Return of each of these sequences the gradients of its rows and its initial states, in a batch of them."""
            batch = fp.pack_sequence([rows[k] for k in which], enforce_sorted=False)  # noqa: B023
            upstream = fp.pack_sequence([given[k] for k in which], enforce_sorted=False)  # noqa: B023
            data, *leaves = [tensor.requires_grad_() for tensor in (batch.data, *[state[:, which].clone() for state in begun])]  # noqa: B023
            output, after = ours(batch, tuple(leaves) if cell == "LSTM" else leaves[0])  # noqa: B023
            total = sum(tensor.sum() for tensor in flat((0, after))[1:]) + (output.data * upstream.data).sum()
            d_data, *d_states = torch.autograd.grad(total, [data, *leaves])
            each = fp.unpack_sequence(batch._replace(data=d_data))
            return [[one, *[state[:, k] for state in d_states]] for k, one in enumerate(each)]

        with kernels_differentiate():
            every = found([*range(len(LENGTHS))])
            for which in ([3], [4, 1], generator.permutation(len(LENGTHS)).tolist()):
                for k, gradient in zip(which, found(which), strict=True):
                    assert_same_bits(gradient, every[k])


@pytest.mark.usefixtures("one_thread")
def test_padded_and_packed_batches_have_gradients_of_the_same_bits() -> None:
    for cell, own in CELLS:
        _, ours = pair(cell, num_layers=2, bidirectional=True, **own)
        padded = torch.randn(6, 3, F)
        batch = fp.pack_padded_sequence(padded, [6, 6, 6])
        for hx in some_states(ours, batch):
            one, other = gradients(ours, [*ours.parameters()], batch, hx), gradients(ours, [*ours.parameters()], padded, hx)
            for k, (tensor, of_padded) in enumerate(zip(one, other, strict=True)):
                assert_same_bits([tensor.view(of_padded.shape)], [of_padded]), k


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_sequence(bad: float) -> None:
    for cell, own in CELLS:
        _, ours = pair(cell, num_layers=2, bidirectional=True, **own)
        rows = [torch.randn(length, F) for length in (3, 6, 2, 6)]
        for where in ("the input", "a gradient"):
            every = []
            for spoilt in (False, True):
                batch = fp.pack_sequence(rows, enforce_sorted=False)
                one = next(k for k, row in enumerate(batch.data) if torch.equal(row, rows[1][2]))
                data = batch.data.clone()
                if spoilt and where == "the input":
                    data[one] = bad
                hx = [state.requires_grad_() for state in in_a_list(states(ours, batch))]
                output, _ = ours(batch._replace(data=data.requires_grad_()), tuple(hx) if cell == "LSTM" else hx[0])
                upstream = torch.ones_like(output.data)
                if spoilt and where == "a gradient":
                    upstream[one] = bad
                d_data, *d_states = torch.autograd.grad(output.data, [data, *hx], upstream)
                every.append((fp.unpack_sequence(batch._replace(data=d_data)), d_states))
            (clean, clean_states), (found, found_states) = every
            others = [0, 2, 3]
            assert_same_bits([found[k] for k in others], [clean[k] for k in others])
            assert_same_bits([state[:, others] for state in found_states], [state[:, others] for state in clean_states])
            if where == "a gradient":  # what a ReLU has of a NaN is no NaN, to torch neither
                assert not found[1].isfinite().all()


@pytest.mark.usefixtures("one_thread")
def test_nothing_is_written_but_what_is_returned() -> None:
    for cell, own in CELLS:
        _, ours = pair(cell, num_layers=2, bidirectional=True, **own)
        for batch in inputs(ours).values():
            hx = states(ours, batch)
            data, *begun = [tensor.clone().requires_grad_() for tensor in (rows_of(batch), *in_a_list(hx))]
            results = flat(ours(with_data(batch, data), tuple(begun) if cell == "LSTM" else begun[0]))
            given = [torch.randn_like(tensor) for tensor in results]
            kept = [data, *begun, *results, *given, *ours.parameters()]
            before, versions = [tensor.detach().clone() for tensor in kept], [tensor._version for tensor in kept]
            torch.autograd.grad(results, [data, *begun, *ours.parameters()], given)
            assert_same_bits(kept, before)
            assert [tensor._version for tensor in kept] == versions


@pytest.mark.usefixtures("one_thread")
def test_what_gradients_need_is_written_whole_and_nothing_beside_it() -> None:
    for cell, own in CELLS:
        for H in (1, 7, 16, 40):
            _, ours = pair(cell, sizes=(F, H), bidirectional=True, **({"proj_size": 1} if own.get("proj_size") and H > 1 else {}))
            call = ours._prepare(packed(lengths=LENGTHS), None)
            plan, N = call.panels.plan, call.rows.N
            memory = torch.full((2 * N * plan.saved_items + 2 * 16,), float("nan"))
            training.run_one(call, 0, recurrence.divided(plan, call.rows), call.x, memory[16:].data_ptr())
            assert memory[16:-16].isfinite().all()
            assert memory[:16].isnan().all()
            assert memory[-16:].isnan().all()
            assert plan.saved_items == {"LSTM": 5, "GRU": 4}.get(cell, 0) * H


def test_workspaces_are_large_enough(two_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    memories: list[tuple[Tensor, int, int]] = []

    def among_canaries(nbytes: int) -> recurrence.Spare:
        memory = torch.full((nbytes + 512,), CANARY, dtype=torch.uint8)
        start = -(-(memory.data_ptr() + 128) // 64) * 64
        memories.append((memory, start - memory.data_ptr(), start - memory.data_ptr() + nbytes))
        return recurrence.Spare(start, recurrence.SPARE + 1, memory)  # too large to be kept

    monkeypatch.setattr(by_kernels, "room_for", among_canaries)
    monkeypatch.setattr(recurrence, "room_for", among_canaries)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for cell, own in CELLS:
            for sizes in ((1, 4), (5, 40)):
                _, ours = pair(cell, sizes=sizes, bidirectional=True, **own)
                for lengths in ([1], [20], LENGTHS, [0, 0, 2]):
                    batch = packed(lengths=lengths, features=sizes[0])
                    loss = weighed(flat(ours(batch, states(ours, batch))))
                    loss.backward()
    assert memories
    for memory, start, end in memories:
        assert (memory[:start] == CANARY).all(), "written before a workspace"
        assert (memory[end:] == CANARY).all(), "written behind a workspace"
        assert (memory[start:end] != CANARY).any()
