"""What a recurrent layer refuses to run on: each with its own error, and nothing changed."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from fastpack import Packed
from tests.oracle import unchanged
from tests.recurrent_oracle import KINDS, batch_of, layer_of, run, states_of, weights_of

LSTM = layer_of(KINDS["LSTM"], weights_of(KINDS["LSTM"], 3, 5, 2, L=2))
GRU = layer_of(KINDS["GRU"], weights_of(KINDS["GRU"], 3, 5, dtype=np.float64))
RNN = layer_of(KINDS["relu"], weights_of(KINDS["relu"], 3, 5, D=2))
PACKED = batch_of([2, 0, 1], 3)
DOUBLE = PACKED._replace(data=PACKED.data.astype(np.float64))
H_0, C_0 = states_of(KINDS["LSTM"], 2, 3, 5, 2)


def with_data(data: Any) -> Packed:
    return PACKED._replace(data=data)


REFUSED = [
    # what is no packed batch, or one that is not consistent
    (LSTM, None, None, TypeError, r"^packed is a NoneType, not a Packed: make one by pack, pack_padded or pack_ragged$"),
    (LSTM, PACKED.data, None, TypeError, r"^packed is a ndarray, not a Packed"),
    (LSTM, tuple(PACKED), None, TypeError, r"^packed is a tuple, not a Packed"),
    (LSTM, torch.nn.utils.rnn.pack_sequence([torch.zeros(2, 3)]), None, TypeError, r"^packed is a PackedSequence, not a Packed"),
    (LSTM, PACKED._replace(batch_sizes=[2, 2]), None, ValueError, r"^batch_sizes add up to 4, but data has 3 rows$"),
    (LSTM, PACKED._replace(batch_sizes=[1, 2]), None, ValueError, r"^batch_sizes\[1\] is 2, but batch sizes .* never grow"),
    (LSTM, PACKED._replace(batch_sizes=[4, -1]), None, ValueError, r"^batch_sizes\[0\] is 4, but"),
    (LSTM, PACKED._replace(batch_sizes=[2.0, 1.0]), None, TypeError, r"^batch_sizes\[0\] is 2.0, not an integer"),
    (LSTM, PACKED._replace(sorted_indices=[0, 2, 3]), None, ValueError, r"^sorted_indices\[2\] is 3, but it is a permutation of 0 to 2$"),
    (LSTM, PACKED._replace(sorted_indices=[0, 1, 2]), None, ValueError, r"^unsorted_indices\[1\] is 2, but sorted_indices\[1\] is 1"),
    (LSTM, PACKED._replace(sorted_indices=[]), None, ValueError, r"^sorted_indices is empty"),
    # rows that do not fit the layer
    (LSTM, DOUBLE, None, TypeError, r"^data is of dtype float64, but the layer's weights are of float32: convert one, as by packed.data"),
    (GRU, PACKED, None, TypeError, r"^data is of dtype float32, but the layer's weights are of float64"),
    (LSTM, with_data(PACKED.data.astype(">f4")), None, TypeError, r"^data is of dtype >f4, but the layer's weights are of float32"),
    (LSTM, with_data(PACKED.data.astype("F")), None, TypeError, r"^data is of dtype complex64, but"),
    (LSTM, with_data(PACKED.data.astype(object)), None, TypeError, r"^data is of dtype object"),
    (LSTM, with_data(PACKED.data[:, :2]), None, ValueError, r"^data has the shape \(3, 2\), but needs \(rows, input_size\), and .* is 3$"),
    (LSTM, with_data(PACKED.data[:, 0]), None, ValueError, r"^data has the shape \(3,\), but needs"),
    (LSTM, with_data(PACKED.data[:, :, None]), None, ValueError, r"^data has the shape \(3, 3, 1\), but needs"),
    (LSTM, with_data(PACKED.data[:, :0]), None, ValueError, r"^data has the shape \(3, 0\), but needs"),
    # states
    (LSTM, PACKED, H_0, TypeError, r"^state is a ndarray, but an LSTM's is a pair: pass \(h_0, c_0\), either None for zeros$"),
    (LSTM, PACKED, (H_0,), TypeError, r"^state is a tuple, but an LSTM's is a pair"),
    (LSTM, PACKED, [H_0, C_0, C_0], TypeError, r"^state is a list, but an LSTM's is a pair"),
    (LSTM, PACKED, 3, TypeError, r"^state is an int, but an LSTM's is a pair"),
    (LSTM, PACKED, {"h": H_0, "c": C_0}, TypeError, r"^state is a dict, but an LSTM's is a pair"),
    (LSTM, PACKED, (C_0, H_0), ValueError, r"^h_0 has the shape \(2, 3, 5\), but needs \(layers .* width\), here \(2, 3, 2\)$"),
    (LSTM, PACKED, (H_0, H_0), ValueError, r"^c_0 has the shape \(2, 3, 2\), but needs .*, here \(2, 3, 5\)$"),
    (LSTM, PACKED, (H_0[:1], C_0), ValueError, r"^h_0 has the shape \(1, 3, 2\), but needs"),
    (LSTM, PACKED, (H_0, C_0[:, :2]), ValueError, r"^c_0 has the shape \(2, 2, 5\), but needs"),
    (LSTM, PACKED, (H_0[0], C_0), ValueError, r"^h_0 has the shape \(3, 2\), but needs"),
    (LSTM, PACKED, (H_0.astype("f8"), C_0), TypeError, r"^h_0 is of dtype float64, but the layer's weights are of float32: convert it"),
    (LSTM, PACKED, (H_0, C_0.tolist()), TypeError, r"^c_0 is of dtype float64, but the layer's weights are of float32"),
    (LSTM, PACKED, (H_0, "c"), TypeError, r"^c_0 is a str, not an array of rows"),
    (GRU, DOUBLE, (np.zeros((1, 3, 5)), None), ValueError, r"^h_0 is not a regular array"),
    (GRU, DOUBLE, np.zeros((2, 3, 5)), ValueError, r"^h_0 has the shape \(2, 3, 5\), but needs .*, here \(1, 3, 5\)$"),
    (GRU, DOUBLE, np.ma.zeros((1, 3, 5)), TypeError, r"^h_0 is a masked array"),
    (RNN, PACKED, C_0[:, ::-1, :4], ValueError, r"^h_0 has the shape \(2, 3, 4\), but needs"),
]


@pytest.mark.parametrize(("layer", "packed", "state", "error", "match"), REFUSED)
def test_bad_calls(layer: Callable[..., Any], packed: Any, state: Any, error: type[Exception], match: str):
    given = [*(packed if isinstance(packed, Packed) else []), *(state if isinstance(state, tuple) else [state])]
    for num_threads in (1, 2):
        with unchanged(*(item for item in given if isinstance(item, np.ndarray))), pytest.raises(error, match=match):
            layer(packed, state, num_threads=num_threads)


def test_bad_numbers_of_threads():
    for wrong, error, match in [
        (0, ValueError, r"^num_threads is 0, but needs at least 1$"),
        (-1, ValueError, r"^num_threads is -1, but needs at least 1$"),
        (2.0, TypeError, r"^num_threads is 2.0, not an integer$"),
        (None, TypeError, r"^num_threads is None, not an integer$"),
        (True, TypeError, r"^num_threads is True, not an integer$"),
    ]:
        with pytest.raises(error, match=match):
            LSTM(PACKED, num_threads=wrong)
    with pytest.raises(TypeError, match="takes from 2 to 3 positional arguments but 4 were given"):
        LSTM(PACKED, None, 2)
    assert run(RNN, PACKED, num_threads=np.int64(2))[0].shape == (3, 10)
