"""The main job on real data: name the speaker of an utterance, from recordings of unequal length.

The recordings go through a torch DataLoader whose workers pack each batch, into an LSTM that never sees padding: fastpack's, or
torch's in a model of the same weights. Models are trained side by side, on the same batches and the same random draws.
Everything a worker needs stands at the top level of this module, so that fork, spawn and forkserver all find it.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset

from fastpack.torch import LSTM, pad_packed_sequence
from fastpack.torch.loader import Loader as Loader  # for others to have it from here

RECORDINGS = Path(__file__).resolve().parent.parent / "data" / "japanese_vowels.npz"
SPEAKERS = 9


class Settings(NamedTuple):
    """How the classifier is built and trained."""

    hidden_size: int
    pooling: str  # "mean" of all steps, or "last" state of either direction
    dropout: float
    noise: float  # standard deviation added to every standardised input in training
    learning_rate: float
    epochs: int
    batch_size: int


SETTINGS = Settings(
    hidden_size=64, pooling="last", dropout=0.2, noise=1.2, learning_rate=1e-2, epochs=40, batch_size=30
)  # by bench/demo_settings.py


class Utterances(Dataset[tuple[Tensor, int]]):
    """Some of the recordings, with who speaks.

    Parameters
    ----------
    values : Tensor (N, D)
        The frames of all recordings, one recording after another.
    offsets : Tensor of int64 (B + 1,)
        Recording i is `values[offsets[i]:offsets[i + 1]]`.
    speaker : Tensor of int64 (B,)
    chosen : Tensor of int64
        The recordings to use.
    """

    def __init__(self, values: Tensor, offsets: Tensor, speaker: Tensor, chosen: Tensor) -> None:
        self.values, self.offsets, self.speaker, self.chosen = values, offsets, speaker, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        i = int(self.chosen[index])
        return self.values[self.offsets[i] : self.offsets[i + 1]], int(self.speaker[i])

    def only(self, keep: Tensor) -> "Utterances":
        """Return those recordings of this set that `keep`, a mask or indices, picks."""
        return Utterances(self.values, self.offsets, self.speaker, self.chosen[keep])

    def frames(self) -> Tensor:
        """Return every frame of these recordings, (N, D)."""
        return torch.cat([self[k][0] for k in range(len(self))])


def load() -> tuple[Utterances, Utterances]:
    """Return the training and the test set, split as the data set's authors did."""
    with np.load(RECORDINGS) as recordings:
        values, offsets, speaker, is_train = (torch.from_numpy(recordings[k]) for k in ("values", "offsets", "speaker", "is_train"))
    every = Utterances(values, offsets, speaker, torch.arange(len(speaker)))
    return every.only(is_train), every.only(~is_train)


class SpeakerNamer(nn.Module):
    """A bidirectional LSTM over packed utterances, and one score a speaker.

    Parameters
    ----------
    frames : Tensor (N, D)
        Training frames: inputs are standardised by their mean and deviation.
    settings : Settings
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, frames: Tensor, settings: Settings) -> None:
        super().__init__()
        self.settings = settings
        self.register_buffer("mean", frames.mean(0))
        self.register_buffer("deviation", frames.std(0))
        self.lstm = LSTM(frames.shape[1], settings.hidden_size, bidirectional=True)
        self.dropout = nn.Dropout(settings.dropout)
        self.scores = nn.Linear(2 * settings.hidden_size, SPEAKERS)

    def forward(self, packed: PackedSequence) -> Tensor:
        """Return the scores (B, SPEAKERS) of B utterances, in the order they were given."""
        rows = (packed.data - self.mean) / self.deviation
        if self.training:
            rows = rows + self.settings.noise * torch.randn_like(rows)
        states, (last, _) = self.lstm(packed._replace(data=rows))
        if self.settings.pooling == "last":
            pooled = torch.cat([last[0], last[1]], dim=1)
        else:
            padded, lengths = pad_packed_sequence(states, batch_first=True)  # zeros behind each end add nothing
            pooled = padded.sum(1) / lengths[:, None]
        scores: Tensor = self.scores(self.dropout(pooled))
        return scores


class Epoch(NamedTuple):
    """What one pass of a model over the training set came to."""

    losses: list[float]  # of each step
    accuracy: float
    seconds: float  # of the steps, the loading of their batches left out

    @property
    def loss(self) -> float:
        """The mean of the steps' losses."""
        return sum(self.losses) / len(self.losses)


class Trainer:
    """A model with its optimiser, which takes a training step on a batch, and notes loss and time."""

    def __init__(self, model: SpeakerNamer, steps: int) -> None:
        rate = model.settings.learning_rate
        self.model = model
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, rate, total_steps=steps)
        self.begin_epoch()

    def begin_epoch(self) -> None:
        """Forget the losses and times of the epoch before."""
        self.model.train()
        self.losses: list[float] = []
        self.seconds, self.right, self.seen = 0.0, 0, 0

    def step(self, packed: PackedSequence, speakers: Tensor) -> None:
        """Change the weights by one batch."""
        begin = time.perf_counter()
        scores = self.model(packed)
        loss = nn.functional.cross_entropy(scores, speakers)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.schedule.step()
        self.losses.append(loss.item())
        self.seconds += time.perf_counter() - begin
        self.right += int((scores.argmax(1) == speakers).sum())
        self.seen += len(speakers)


def train(models: Sequence[SpeakerNamer], loader: "DataLoader[Any]") -> Iterator[list[Epoch]]:
    """Train models of the same settings side by side, yielding what each came to after each epoch.

    A step of one is followed by the same step of the next: on the same batch, with the same noise and the same units dropped.
    """
    epochs = models[0].settings.epochs
    trainers = [Trainer(model, epochs * len(loader)) for model in models]
    for _ in range(epochs):
        for trainer in trainers:
            trainer.begin_epoch()
        for packed, speakers in loader:
            draws = torch.get_rng_state()
            for trainer in trainers:
                torch.set_rng_state(draws)
                trainer.step(packed, speakers)
        yield [Epoch(trainer.losses, trainer.right / trainer.seen, trainer.seconds) for trainer in trainers]


def evaluate(model: SpeakerNamer, batches: Iterable[tuple[PackedSequence, Tensor]]) -> tuple[float, Tensor]:
    """Return the mean loss, and of each utterance whether its speaker was named."""
    model.eval()
    losses, named = [], []
    with torch.no_grad():
        for packed, speakers in batches:
            scores = model(packed)
            losses.append(nn.functional.cross_entropy(scores, speakers, reduction="none"))
            named.append(scores.argmax(1) == speakers)
    return float(torch.cat(losses).mean()), torch.cat(named)
