"""The chain of trust for the backward pass: torch's gradients and the twins' agree. Kernels against twins: test_recurrent_backward.py."""

from collections.abc import Iterator
from itertools import product

import numpy as np
import pytest
import torch
from torch.nn.utils import rnn

from fastpack import Packed, blocks, reference_layers
from fastpack.blocks import GRU, LSTM
from tests.backward_oracle import Case, Kept, Maybe, case_of, layer_case, twin_backward, twin_forward, twin_gradients, twin_layer
from tests.oracle import layout
from tests.recurrent_oracle import KINDS, Kind, Weights, assert_close, batch_of, of_direction, states_of, weights_of
from tests.torch_oracle import layer_of_torch

LENGTHS = [3, 0, 9, 9, 1, 2, 5, 0, 7]
each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
pytestmark = pytest.mark.usefixtures("one_thread")


# ---- torch and the twins

Gradients = dict[str, np.ndarray]


def torchs(kind: Kind, weights: Weights, packed: Packed, states: list[np.ndarray], d_out: Maybe, d_after: list[Maybe]) -> Gradients:
    """Return torch's gradients of a layer's input, states and weights. Its packed layer takes no sequence without steps."""
    order = packed.sorted_indices[packed.lengths[packed.sorted_indices] > 0]
    D = 1 + ("weight_ih_l0_reverse" in weights)
    module = layer_of_torch(kind, weights, 1, D)
    x = torch.from_numpy(packed.data).requires_grad_()
    before = [torch.from_numpy(state[:, order]).requires_grad_() for state in states]
    batch = rnn.PackedSequence(x, torch.from_numpy(packed.batch_sizes))
    out, after = module(batch, tuple(before) if len(before) == 2 else before[0])
    results = [out.data, *(after if isinstance(after, tuple) else [after])]
    given = [None if d is None else torch.from_numpy(d) for d in (d_out, *(d if d is None else d[:, order] for d in d_after))]
    inputs = {"x": x, **{f"state {k}": state for k, state in enumerate(before)}, **dict(module.named_parameters())}
    outputs, d_outputs = zip(*[(one, d) for one, d in zip(results, given, strict=True) if d is not None], strict=True)
    found = torch.autograd.grad(outputs, list(inputs.values()), d_outputs, materialize_grads=True)
    gradients = {name: gradient.numpy() for name, gradient in zip(inputs, found, strict=True)}
    for k, (state, d) in enumerate(zip(states, d_after, strict=True)):  # a sequence without steps ends in the state it begins with
        whole = np.zeros_like(state) if d is None else d.copy()
        whole[:, order] = gradients[f"state {k}"]
        gradients[f"state {k}"] = whole
    return gradients


def twins(kind: Kind, weights: Weights, packed: Packed, states: list[np.ndarray], d_out: Maybe, d_after: list[Maybe]) -> Gradients:
    """Return the twins' gradients of the same."""
    suffixes = ["_l0", "_l0_reverse"][: 1 + ("weight_ih_l0_reverse" in weights)]
    halves = [None] * 2 if d_out is None else np.split(d_out, len(suffixes), axis=1)
    found: Gradients = {"x": np.zeros_like(packed.data)} | {f"state {k}": np.empty_like(state) for k, state in enumerate(states)}
    for k, suffix in enumerate(suffixes):
        one = of_direction(weights, suffix), packed.data, packed[1:], [state[k] for state in states]
        d_x, d_states, d_weights = twin_gradients(Case(kind, *one, k, halves[k], [d if d is None else d[k] for d in d_after]))
        found["x"] += d_x
        for number in range(len(states)):
            found[f"state {number}"][k] = d_states[number]
        found |= {name + suffix: gradient for name, gradient in d_weights.items()}
    return found


def problems() -> Iterator[tuple[int, int, bool, tuple[bool, ...]]]:
    for D, P, bias in [(1, 0, True), (2, 0, False), (1, 3, True), (2, 2, True)]:
        yield from ((D, P, bias, given) for given in product((True, False), repeat=3) if any(given[:2]))
    yield 2, 2, True, (False, False, True)  # through c_n alone


@each_kind
@pytest.mark.parametrize(("D", "P", "bias", "given"), list(problems()))
def test_torchs_gradients_are_the_twins(kind: Kind, D: int, P: int, bias: bool, given: tuple[bool, ...]):
    P, given = (P, given) if kind.name == "LSTM" else (0, (given[0], not given[0] or given[1]))
    weights = weights_of(kind, 3, 5, P, 1, D, bias, np.float64)
    packed, states = batch_of(LENGTHS, 3, np.float64), states_of(kind, D, len(LENGTHS), 5, P, np.float64)
    d_out = batch_of(LENGTHS, D * (P or 5), np.float64, seed=4).data
    d_after = [np.random.default_rng(k).standard_normal(state.shape) for k, state in enumerate(states)]
    gradients = [d if has else None for d, has in zip([d_out, *d_after], given, strict=True)]
    expected = torchs(kind, weights, packed, states, gradients[0], gradients[1:])
    found = twins(kind, weights, packed, states, gradients[0], gradients[1:])
    assert found.keys() == expected.keys()
    assert any(np.abs(item).max() > 0.1 for item in expected.values())
    for name, item in found.items():
        assert_close([item], [expected[name]], 1e-13)


@each_kind
@pytest.mark.parametrize("reverse", [0, 1])
def test_zeros_are_what_is_not_given(kind: Kind, reverse: int):
    case = case_of(kind, LENGTHS, 3, 7, 2, reverse, np.float64)
    zeros = case._replace(states=[0 * state for state in case.states], d_out=0 * case.d_out, d_after=[0 * d for d in case.d_after])
    for part, nothing in [("states", []), ("d_out", None), ("d_after", [None] * len(case.d_after))]:
        expected = twin_gradients(case._replace(**{part: getattr(zeros, part)}))
        found = twin_gradients(case._replace(**{part: nothing}))
        for one, other in zip([found[0], *found[2].values()], [expected[0], *expected[2].values()], strict=True):
            np.testing.assert_array_equal(one, other)


@each_kind
@pytest.mark.parametrize(("D", "P"), [(1, 0), (2, 0), (2, 3)])
def test_the_gradients_of_a_layer_are_those_of_its_directions(kind: Kind, D: int, P: int):
    layer = layer_case(kind, LENGTHS, 3, 7, P, D, np.float64)
    each = [twin_forward(layer.direction(k), 4) for k in range(D)]
    c, gates = (None if parts[0] is None else np.stack(parts) for parts in zip(*[saved[1:] for saved in each], strict=True))
    found = twin_layer(layer, Kept(np.concatenate([saved.out for saved in each], 1), c, gates), 4)
    d_x = np.zeros_like(layer.x)
    for k, suffix in enumerate(("", "_reverse")[:D]):
        d_x_k, d_states, d_weights = twin_gradients(layer.direction(k))
        d_x += d_x_k
        for name, state in zip(("h_0", "c_0"), d_states, strict=True):
            if state is not None:
                np.testing.assert_array_equal(found[name][k], state)
        for name, gradient in d_weights.items():
            np.testing.assert_array_equal(found[name + suffix], gradient)
    assert_close([found["x"]], [d_x], 1e-15)


def test_a_wrong_gradient_is_noticed():
    kind, P = KINDS["LSTM"], 3
    weights, packed = weights_of(kind, 3, 5, P, 1, 1, True, np.float64), batch_of(LENGTHS, 3, np.float64)
    states, d_out = states_of(kind, 1, len(LENGTHS), 5, P, np.float64), batch_of(LENGTHS, P, np.float64, seed=4).data
    expected = torchs(kind, weights, packed, states, d_out, [None, None])
    for wrong in (
        twins(kind, weights, packed, states, d_out[::-1], [None, None]),
        twins(kind, weights, packed, states, d_out, [states[0], None]),
        twins(kind, weights, packed, [state[:, ::-1] for state in states], d_out, [None, None]),
    ):
        for name in expected:
            with pytest.raises(AssertionError):
                assert_close([wrong[name]], [expected[name]], 1e-13)


# ---- where things are, in miniature: H = 3 units, 2 lanes


@pytest.mark.parametrize(
    ("cell", "over_h", "gates"),
    [(LSTM, 0, "ifgo"), (LSTM, 1, "ifgo"), (GRU, 0, "nrz"), (GRU, 1, "rzn"), (blocks.RNN_TANH, 1, "h"), (blocks.LINEAR, 0, "y")],
)
def test_the_order_of_gradient_panels(cell: int, over_h: int, gates: str):
    torchs_order = {LSTM: "ifgo", GRU: "rzn"}.get(cell, gates)
    weight = np.array([[f"{gate}{unit}{column}" for column in range(3)] for gate in torchs_order for unit in range(3)])
    numbers = np.arange(1.0, 1 + weight.size).reshape(weight.shape)
    found = np.full((3, len(weight), 2), np.nan)
    reference_layers.pack_gradient_panels(cell, over_h, numbers, found)
    panels = np.array(["-", *weight.flat])[found.astype(int)]
    rows = [f"{gate}{unit}" for units in ((0, 1), (2,)) for gate in gates for unit in units]
    assert panels[0].tolist() == [[f"{row}0", f"{row}1"] for row in rows]
    assert panels[1].tolist() == [[f"{row}2", "-"] for row in rows]
    assert panels[2].tolist() == [["-", "-"] for _ in rows]


def test_the_order_of_gates():
    H, sizes, order, _ = 3, *layout([1])
    for cell in (LSTM, GRU):
        starts = np.arange(4.0 * H).reshape(4, H) / 10 - 0.6
        panels = np.zeros((2, 4 + reference_layers.GATES[cell] * H, 2))  # weights are zeros
        for unit in range(H):
            panels[unit // 2, :4, unit % 2] = starts[:, unit]
        gates, out, after = np.full((1, 12), np.nan), np.empty((1, H)), [np.empty((1, H)) for _ in range(2 if cell == LSTM else 1)]
        c_n, c = (after[1], np.full((1, H), np.nan)) if cell == LSTM else (None, None)
        reference_layers.recur(cell, 0, panels, None, order, sizes, np.empty((1, 0)), out, None, None, after[0], c_n, c, gates)
        sigmoid = 1 / (1 + np.exp(-starts))
        if cell == LSTM:
            expected = [sigmoid[0], sigmoid[1], np.tanh(starts[2]), sigmoid[3]]
            np.testing.assert_array_equal(c, c_n)
        else:
            expected = [sigmoid[0], sigmoid[1], np.tanh(starts[2] + sigmoid[0] * starts[3]), starts[3]]
        in_blocks = [gate[unit] for units in ((0, 1), (2,)) for gate in expected for unit in units]
        np.testing.assert_allclose(gates[0], in_blocks, 1e-15)


def test_the_order_of_gradients_of_sums():
    for name, order in [("LSTM", ["ih 0", "ih 1", "ih 2", "ih 3"]), ("GRU", ["ih 2", "ih 0", "ih 1", "hh 2"]), ("tanh", ["hh 0"])]:
        case = case_of(KINDS[name], [4, 2], 2, 3, dtype=np.float64)
        biases = {part: gradient.reshape(-1, 3) for part, gradient in twin_gradients(case)[2].items()}  # as torch's: (G, H)
        expected = [biases[f"bias_{item[:2]}"][int(item[3])] for item in order]
        d_sums = twin_backward(case, twin_forward(case, 2), 2).d_sums
        assert d_sums.shape == (2, 6, len(order), 2)
        np.testing.assert_allclose(d_sums[0].sum(0), [gradient[:2] for gradient in expected], 1e-13)
        np.testing.assert_allclose(d_sums[1, ..., 0].sum(0), [gradient[2] for gradient in expected], 1e-13)
        assert not d_sums[1, ..., 1].any()
