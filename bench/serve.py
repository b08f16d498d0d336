"""A process that serves an LSTM: `python bench/serve.py fastpack FOLDER`, or torch, or onnx. Imports only what it serves with.

FOLDER holds the model in each one's format, and a batch. Prints a line at the first answer, and then the resident kilobytes
and the microseconds of an answer, to the batch and to one sequence alone; leaves the answer to the batch in FOLDER.
"""

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Sequences = list[np.ndarray]


def with_fastpack(folder: str) -> Callable[[Sequences], np.ndarray]:
    """Serve with NumPy and fastpack alone."""
    import fastpack

    layer = fastpack.LSTM.from_state_dict(np.load(f"{folder}/model.npz"))
    return lambda sequences: layer(fastpack.pack(sequences))[1][0][0]


def with_torch(folder: str) -> Callable[[Sequences], np.ndarray]:
    """Serve with torch."""
    import torch
    from torch.nn.utils.rnn import pack_sequence

    torch.set_num_threads(1)
    weights = torch.load(f"{folder}/model.pt")
    layer = torch.nn.LSTM(weights["weight_ih_l0"].shape[1], weights["weight_hh_l0"].shape[1])
    layer.load_state_dict(weights)

    @torch.inference_mode()
    def answer(sequences: Sequences) -> np.ndarray:
        return layer(pack_sequence([torch.from_numpy(item) for item in sequences], enforce_sorted=False))[1][0][0].numpy()

    return answer


def with_onnx(folder: str) -> Callable[[Sequences], np.ndarray]:
    """Serve with ONNX Runtime, whose LSTM takes padded batches and their lengths."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, ["CPUExecutionProvider"])

    def answer(sequences: Sequences) -> np.ndarray:
        lengths = np.array([len(item) for item in sequences], np.int32)
        padded = np.zeros((lengths.max(), len(sequences), sequences[0].shape[1]), np.float32)
        for k, item in enumerate(sequences):
            padded[: len(item), k] = item
        return session.run(["h_n"], {"x": padded, "lengths": lengths})[0][0]

    return answer


SERVERS = {"fastpack": with_fastpack, "torch": with_torch, "onnx": with_onnx}


def resident() -> int:
    """Return this process's resident memory in kilobytes, as Linux counts it."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("VmRSS"))


def median(answer: Callable[[Sequences], Any], sequences: Sequences) -> float:
    """Return the median microseconds of an answer."""
    taken = []
    end = time.perf_counter() + 0.3
    while time.perf_counter() < end:
        begin = time.perf_counter()
        answer(sequences)
        taken.append(time.perf_counter() - begin)
    return statistics.median(taken) * 1e6


def main() -> None:
    """Answer once, and then for a while."""
    server, folder = sys.argv[1:]
    answer = SERVERS[server](folder)
    with np.load(f"{folder}/batch.npz") as batch:
        sequences = np.split(batch["values"], batch["offsets"][1:-1])
    given = answer(sequences)
    print("answered", flush=True)
    print(resident(), median(answer, sequences), median(answer, sequences[:1]))
    np.save(f"{folder}/{server}.npy", given)


if __name__ == "__main__":
    main()
