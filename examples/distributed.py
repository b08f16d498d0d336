"""Who speaks? An LSTM trained by several processes, each of which reads its own share of a Parquet file, packed.

    python examples/distributed.py --ranks 2
    torchrun --nproc-per-node 2 examples/distributed.py    # likewise, and on several machines

Sequences are of unequal length, so processes that get as many sequences have more or less to do, and wait for each other in
each step. The sampler gives each as many batches, and as many real steps in them. Gradients are torch's, averaged over the processes
by DistributedDataParallel; the data are the 9 speakers of `fastpack demo`.
"""

import argparse
import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # before there is a group: see work
from pyarrow import parquet
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.rnn import PackedSequence

import fastpack
from fastpack import TokenBudgetBatchSampler
from fastpack.torch import LSTM, RaggedDataset, loader

RECORDINGS = Path(fastpack.__file__).parent / "data" / "japanese_vowels.npz"
FEATURES, HIDDEN, SPEAKERS = 12, 32, 9
MAX_TOKENS = 256  # real steps of a batch, at most
LEARNING_RATE = 1e-2
PATIENCE = timedelta(seconds=60)  # how long a process waits for the others


def write_recordings(folder: Path) -> None:
    """Write the recordings as Parquet files, those to train and those to test with: a list of frames and a speaker in each row."""
    with np.load(RECORDINGS) as file:
        values, offsets, speaker, is_train = (file[name] for name in ("values", "offsets", "speaker", "is_train"))
    frames = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), FEATURES)
    table = pa.table({"frames": pa.LargeListArray.from_arrays(pa.array(offsets), frames), "speaker": speaker})
    for name, chosen in (("train", is_train), ("test", ~is_train)):
        parquet.write_table(table.filter(pa.array(chosen)), folder / f"{name}.parquet", row_group_size=64)


class Model(nn.Module):
    """Scores of the speakers of each sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = LSTM(FEATURES, HIDDEN)
        self.scores = nn.Linear(HIDDEN, SPEAKERS)

    def forward(self, packed: PackedSequence) -> Tensor:
        """Return the scores (B, speakers) of B packed sequences."""
        _, (h_n, _) = self.lstm(packed)
        scores: Tensor = self.scores(h_n[-1])
        return scores


def train(folder: Path, epochs: int) -> None:
    """Train as one of several processes, which have found each other."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    rank, ranks = dist.get_rank(), dist.get_world_size()
    dataset = RaggedDataset.from_parquet(folder / "train.parquet", "frames", "speaker")
    sampler = TokenBudgetBatchSampler(dataset.lengths, MAX_TOKENS, rank=rank, world_size=ranks)
    batches_of_epoch = loader(dataset, batch_sampler=sampler, num_threads=1)  # gathered while the layer is at work
    model = DistributedDataParallel(Model())
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        batches, steps, total = 0, 0, torch.zeros(2, dtype=torch.float64)  # loss and sequences
        for packed, speaker in batches_of_epoch:
            loss = nn.functional.cross_entropy(model(packed), speaker, reduction="sum")
            both = torch.tensor([loss.item(), len(speaker)], dtype=torch.float64)
            dist.all_reduce(both)
            optimizer.zero_grad()
            (loss * ranks / both[1]).backward()  # type: ignore[no-untyped-call]  # so that each sequence counts as much as any other
            optimizer.step()
            batches, steps, total = batches + 1, steps + len(packed.data), total + both
        shares: list[Any] = [None] * ranks
        dist.all_gather_object(shares, f"{batches} batches, {steps} steps")
        if rank == 0:
            said = "; ".join(f"rank {k}: {share}" for k, share in enumerate(shares))
            print(f"epoch {epoch}: loss {total[0] / total[1]:.3f}; {said}", flush=True)
    if rank == 0:
        print(f"{accuracy(model.module, folder / 'test.parquet'):.0%} of the recordings held out named right", flush=True)


@torch.inference_mode()
def accuracy(model: nn.Module, file: Path) -> float:
    """Return the share of sequences whose speaker scores best."""
    dataset = RaggedDataset.from_parquet(file, "frames", "speaker")
    packed, speaker = dataset.__getitems__(range(len(dataset)))
    return float((model(packed).argmax(1) == speaker).double().mean())


def work(rank: int, ranks: int, meeting: str, folder: str, epochs: int) -> None:
    """Be one of several processes; they find each other by a file, or as the launcher says.

    A group's threads end with its last reference, and abort one process in ten where that is left to the interpreter's end.
    Default arguments in torch.distributed.nn.functional keep the group there is when it is imported, which a
    DistributedDataParallel does (torch 2.13); imported before, they keep none.
    """
    where: dict[str, Any] = {"init_method": f"file://{meeting}", "rank": rank, "world_size": ranks} if meeting else {}
    dist.init_process_group("gloo", timeout=PATIENCE, **where)
    try:
        train(Path(folder), epochs)
    finally:
        dist.destroy_process_group()


def main() -> None:
    """Start the processes, or be one that a launcher has started."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2, help="processes to start here, where no launcher has started them")
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    if options.ranks < 1 or options.epochs < 1:
        parser.error("--ranks and --epochs must be more than 0")
    with tempfile.TemporaryDirectory() as name:
        write_recordings(Path(name))  # by a launcher, each process for itself: they are small
        if "RANK" in os.environ:
            work(0, 0, "", name, options.epochs)
        else:
            if sys.platform == "linux":
                os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # whatever this machine's name stands for
            meeting = f"{name}/meeting"  # a file and no port, which another program could have taken
            spawn(work, (options.ranks, meeting, name, options.epochs), nprocs=options.ranks)  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
