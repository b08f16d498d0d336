"""Make an ONNX model of an LSTM's weights in torch's names: `python bench/onnx_lstm.py model.npz model.onnx`, where onnx is installed."""

import sys

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def model_of(weights: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a model from x (T, B, F) and lengths (B,) to h_n (1, B, H)."""
    H, F = weights["weight_hh_l0"].shape[1], weights["weight_ih_l0"].shape[1]

    def iofc(weight: np.ndarray) -> np.ndarray:  # torch's gates are i f g o
        i, f, g, o = np.split(weight, 4)
        return np.concatenate([i, o, f, g])

    biases = np.concatenate([iofc(weights["bias_ih_l0"]), iofc(weights["bias_hh_l0"])])
    arrays = {"w": iofc(weights["weight_ih_l0"]), "r": iofc(weights["weight_hh_l0"]), "b": biases}
    lstm = helper.make_node("LSTM", ["x", "w", "r", "b", "lengths"], ["", "h_n"], hidden_size=H)
    takes = [("x", TensorProto.FLOAT, ["T", "B", F]), ("lengths", TensorProto.INT32, ["B"])]
    graph = helper.make_graph(
        [lstm],
        "lstm",
        [helper.make_tensor_value_info(*item) for item in takes],
        [helper.make_tensor_value_info("h_n", TensorProto.FLOAT, [1, "B", H])],
        [numpy_helper.from_array(array[None], name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)], ir_version=8)
    onnx.checker.check_model(model)
    return model


if __name__ == "__main__":
    source, target = sys.argv[1:]
    with np.load(source) as weights:
        onnx.save(model_of(dict(weights)), target)
