"""A process that takes one step of training along long sequences: `python -m bench.training_step "torch, packed" 1000`.

8 sequences, the shortest half as long as the longest, 64 features, 128 hidden units, one thread: an LSTM and a read-out of its
states learn the sum of what they have been shown so far, scaled to a variance of 1. Prints the seconds of the step, the most bytes
of memory that it took beyond batch and weights, and the loss before and after it.
"""

import sys
import time

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_sequence, pad_packed_sequence

import fastpack.torch

B, F, H = 8, 64, 128
CONTENDERS = ["fastpack", "torch, packed", "torch, padded"]


def batch(T: int) -> tuple[PackedSequence, PackedSequence]:
    """Return sequences of up to T steps (N, F), and for each step the scaled sum of all items so far (N, 1)."""
    torch.manual_seed(0)
    sequences = [torch.randn(length, F) for length in torch.linspace(T / 2, T, B).round().long().tolist()]
    sums = [item.sum(1, keepdim=True).cumsum(0) / (F * torch.arange(1, len(item) + 1)[:, None]).sqrt() for item in sequences]
    return pack_sequence(sequences, enforce_sorted=False), pack_sequence(sums, enforce_sorted=False)


class Task:
    """A model of one contender's, and the batch in the form that it takes."""

    def __init__(self, contender: str) -> None:
        torch.manual_seed(1)
        self.is_padded = contender == "torch, padded"
        self.lstm = (fastpack.torch.LSTM if contender == "fastpack" else nn.LSTM)(F, H)
        self.read_out = nn.Linear(H, 1)
        self.optimizer = torch.optim.Adam([*self.lstm.parameters(), *self.read_out.parameters()], lr=1e-3)

    def form(self, given: tuple[PackedSequence, PackedSequence]) -> tuple[PackedSequence | Tensor, Tensor, Tensor]:
        """Return rows, wanted values and, for each of these, its share in the mean of them: none in the padding."""
        rows, sums = given
        share = sums._replace(data=torch.full_like(sums.data, 1 / len(sums.data)))
        if self.is_padded:
            rows, wanted, share = (pad_packed_sequence(item)[0] for item in (rows, sums, share))
            return rows, wanted, share
        return rows, sums.data, share.data

    def loss(self, rows: PackedSequence | Tensor, wanted: Tensor, share: Tensor) -> Tensor:
        """Return the mean squared error."""
        output, _ = self.lstm(rows)
        found = self.read_out(output if self.is_padded else output.data)
        return ((found - wanted).square() * share).sum()

    def step(self, formed: tuple[PackedSequence | Tensor, Tensor, Tensor]) -> float:
        """Change the weights, and return the loss before."""
        loss = self.loss(*formed)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())


def memory(name: str) -> int:
    """Return what Linux counts for this process, in bytes: VmRSS now, VmHWM at most."""
    with open("/proc/self/status") as file:  # not getrusage, whose maximum begins with that of the process that forked
        return next(1024 * int(line.split()[1]) for line in file if line.startswith(name))


def main() -> None:
    """Warm up with short sequences, and take the step."""
    torch.set_num_threads(1)
    contender, T = sys.argv[1], int(sys.argv[2])
    task = Task(contender)
    task.step(task.form(batch(10)))
    formed = task.form(batch(T))
    resident, begin = memory("VmRSS"), time.perf_counter()
    before = task.step(formed)
    seconds, peak = time.perf_counter() - begin, memory("VmHWM") - resident
    with torch.no_grad():
        after = float(task.loss(*formed))
    print(seconds, peak, before, after)


if __name__ == "__main__":
    main()
