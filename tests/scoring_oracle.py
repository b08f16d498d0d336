"""What scoring is tested with: layers of random weights, files of sequences, and each row's result by the twin of torch."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet

F, H = 3, 5


def module(kind: str = "LSTM", **options: Any) -> torch.nn.RNNBase:
    torch.manual_seed(0)
    return getattr(torch.nn, kind)(options.pop("input_size", F), H, **options)


def weights(layer: torch.nn.Module, prefix: str = "") -> dict[str, np.ndarray]:
    return {prefix + name: value.detach().numpy() for name, value in layer.state_dict().items()}


def sequences(count: int, seed: int = 0) -> list[Any]:
    """Return lists of rows: empty ones, and nulls, among them."""
    random = np.random.default_rng(seed)
    lengths = random.integers(0, 6, count)
    return [None if k % 7 == 3 else random.standard_normal((length, F), np.float32).tolist() for k, length in enumerate(lengths)]


def table(count: int, seed: int = 0) -> pa.Table:
    kind = pa.list_(pa.list_(pa.float32()))
    return pa.table(
        {"id": np.arange(count) + 1000 * seed, "x": pa.array(sequences(count, seed), kind), "name": [f"s{k}" for k in range(count)]}
    )


def write(path: Path, count: int, seed: int = 0, group: int = 10) -> Path:
    parquet.write_table(table(count, seed), path, row_group_size=group)
    return path


@torch.no_grad()
def expected(layer: torch.nn.RNNBase, sequence: Any) -> tuple[Any, Any]:
    """Return the last state and the output rows of one sequence, by torch alone."""
    if sequence is None:
        return None, None
    directions = 2 if layer.bidirectional else 1
    if not sequence:
        return [0.0] * directions * (layer.proj_size or layer.hidden_size), []
    output, state = layer(torch.tensor(sequence, dtype=next(layer.parameters()).dtype).reshape(len(sequence), -1))
    h_n = state[0] if isinstance(state, tuple) else state
    return h_n[-directions:].reshape(-1).tolist(), output.tolist()


def check(found: pa.Table, layer: torch.nn.RNNBase, source: pa.Table, tolerance: float = 1e-5) -> None:
    """Check that the results in `found` are those of the sequences in `source`, row for row."""
    assert found.num_rows == source.num_rows
    for row, sequence in zip(found.to_pylist(), source["x"].to_pylist(), strict=True):
        for name, value in zip(("last", "rows"), expected(layer, sequence), strict=True):
            if name not in row:
                continue
            if value is None or not value:
                assert row[name] == value
            else:
                np.testing.assert_allclose(row[name], value, rtol=0, atol=tolerance)
