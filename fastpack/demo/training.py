"""The speaker model trained twice from each seed, on fastpack's layers and on torch's: the losses, the speakers named, the time."""

import copy
import statistics
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import RandomSampler

from fastpack.demo import speakers
from fastpack.torch import restore

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

NAMES = ("torch.nn", "fastpack.torch")  # whose LSTM it is
CLOSE = 1e-3  # how far the losses of the first epoch may be apart, relatively: they differ by rounding, which later grows


class Run(NamedTuple):
    """What the training of a model came to."""

    losses: list[list[float]]  # of each epoch's steps
    seconds: float  # of the steps
    named: Tensor  # of each test utterance, whether its speaker was named

    @property
    def accuracy(self) -> float:
        """The share of the test utterances whose speaker was named."""
        return float(self.named.float().mean())


class Pair(NamedTuple):
    """The two trainings from a seed: the same initial weights, batches, noise and dropout."""

    torch: Run
    fastpack: Run

    def apart(self) -> list[float]:
        """Return how far the losses of each step are apart, relative to torch's."""
        theirs, ours = (chain.from_iterable(run.losses) for run in self)
        return [abs(a - b) / a for a, b in zip(theirs, ours, strict=True)]


def run(console: "Console", training: speakers.Utterances, test: speakers.Utterances, seeds: list[int], **options: Any) -> list[Pair]:
    """Train from each seed with progress, print how it went, and return it. The options are the DataLoader's.

    Raises
    ------
    RuntimeError
        The losses of a first epoch are not the same up to rounding.
    """
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    settings, pairs, order = speakers.SETTINGS, [], torch.Generator()
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[state]}"), TimeElapsedColumn())
    with (
        # of generators of their own: what else is drawn does not depend on how batches are loaded
        speakers.Loader(
            training, settings.batch_size, sampler=RandomSampler(training, generator=order), generator=torch.Generator(), **options
        ) as loader,
        # without the refreshing thread: nothing else runs while worker processes are forked
        Progress(*columns, console=console, auto_refresh=False) as progress,
    ):
        bar = progress.add_task("training", total=len(seeds) * settings.epochs, state="")
        progress.refresh()
        for k, seed in enumerate(seeds, 1):
            order.manual_seed(seed)
            torch.manual_seed(seed)
            ours = speakers.SpeakerNamer(training.frames(), settings)
            theirs = restore(copy.deepcopy(ours))
            epochs = []
            for both in speakers.train([theirs, ours], loader):
                epochs.append(both)
                state = f"seed {k} of {len(seeds)}, epoch {len(epochs)}/{settings.epochs}, losses {both[0].loss:.3f} and {both[1].loss:.3f}"
                progress.update(bar, advance=1, state=state, refresh=True)
            pairs.append(Pair(*results([theirs, ours], epochs, test)))
            if max(pairs[-1].apart()[: len(loader)]) > CLOSE:
                raise RuntimeError(f"seed {seed}: {NAMES[1]}'s LSTM is not trained as {NAMES[0]}'s is")
    report(console, pairs, test.speaker[test.chosen])
    return pairs


def results(models: list[speakers.SpeakerNamer], epochs: list[list[speakers.Epoch]], test: speakers.Utterances) -> Iterator[Run]:
    """Test the models, and yield what each came to."""
    batches = list(speakers.Loader(test, 74))
    for model, mine in zip(models, zip(*epochs, strict=True), strict=True):
        named = speakers.evaluate(model, batches)[1]
        yield Run([epoch.losses for epoch in mine], sum(epoch.seconds for epoch in mine), named)


def report(console: "Console", pairs: list[Pair], speaker: Tensor) -> None:
    """Print whom the models named, how accurate they are and what their training took."""
    runs = {name: [pair[k] for pair in pairs] for k, name in enumerate(NAMES)}
    console.print("\nTest utterances of each speaker, and for how many of them a model named him:")
    console.print(speaker_table(speaker, runs))
    console.print(training_table(runs))
    steps = len(pairs[0].fastpack.losses[0])
    first = max(max(pair.apart()[:steps]) for pair in pairs)
    console.print(
        f"Mean and standard deviation of {len(pairs)} seed{'s' * (len(pairs) > 1)}; seconds of one training. From a seed, both begin with"
        f" the same weights and have the same batches, noise and dropout. In the first {steps} steps their losses differ by {first:.1g} of"
        " themselves at most, by rounding, which grows from step to step.",
        style="dim",
    )


def speaker_table(speaker: Tensor, runs: dict[str, list[Run]]) -> "Table":
    """Return how many test utterances each speaker has, and of how many he was named by the models: means of the runs."""
    made = table("speaker", *map(str, range(1, speakers.SPEAKERS + 1)))
    made.add_row("utterances", *(str(int((speaker == k).sum())) for k in range(speakers.SPEAKERS)))
    for name, mine in runs.items():
        named = torch.stack([run.named for run in mine]).float().mean(0)
        made.add_row(name, *(f"{float(named[speaker == k].sum()):.1f}" for k in range(speakers.SPEAKERS)))
    return made


def training_table(runs: dict[str, list[Run]]) -> "Table":
    """Return accuracies, last losses and seconds: means and standard deviations of the runs."""
    made = table("LSTM of", "test accuracy", "last loss", "seconds", "speed-up")
    slowest = spread([run.seconds for run in runs[NAMES[0]]])[0]
    for name, mine in runs.items():
        accuracy, accuracy_spread = spread([100 * run.accuracy for run in mine])
        loss, loss_spread = spread([statistics.mean(run.losses[-1]) for run in mine])
        seconds, seconds_spread = spread([run.seconds for run in mine])
        shown = f"{accuracy:.2f}% ± {accuracy_spread:.2f}", f"{loss:.4f} ± {loss_spread:.4f}", f"{seconds:.2f} ± {seconds_spread:.2f}"
        ratio = slowest / seconds
        made.add_row(name, *shown, f"[bold {'green' if ratio >= 1 else 'red'}]{ratio:.1f}x[/]" if name != NAMES[0] else "")
    return made


def table(first: str, *names: str) -> "Table":
    """Return an empty table with a column of names and columns of numbers."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    made.add_column(first)
    for name in names:
        made.add_column(name, justify="right")
    return made


def spread(values: list[float]) -> tuple[float, float]:
    """Return mean and standard deviation; that of a single value is 0."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0
