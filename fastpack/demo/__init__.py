"""`fastpack demo`: three sequences packed step by step, then the main job on real recordings, timed and drawn."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fastpack.demo import notebook, picture, speakers, timing
from fastpack.torch import LSTM

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def run(console: "Console", output: Path, seed: int = 0, workers: int = 2, start_method: str | None = None) -> float:
    """Run the whole demo.

    Parameters
    ----------
    console : rich.console.Console
    output : Path
        Where the picture goes; the suffix says in which format.
    seed : int
        Of everything random: the same seed gives the same result on the same machine.
    workers : int
        Processes that load and pack the recordings; with 0, this one does.
    start_method : str, optional
        How they start: 'fork', 'spawn' or 'forkserver'; the platform's own otherwise.

    Returns
    -------
    float
        The share of the test utterances whose speaker was named.
    """
    # One thread, as in a DataLoader's worker, where packing belongs. It gives the same result on any number of cores and leaves
    # cores to the workers; torch's two threads wait for each other: the training took 269 s, not 9.5, beside another busy process.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(seed)
        notebook.run(console)
        heading(console, "Nine speakers, 640 recordings: the main job")
        training, test = speakers.load()
        describe(console, training, test)
        accuracy, lstm = name_speakers(console, training, test, workers, start_method)
        heading(console, "The time it takes, beside torch's own functions")
        sizes = speakers.SETTINGS.batch_size, len(training)
        timings = [row for size in sizes for row in timing.compare(timing.batches(training, size), lstm)]
    finally:
        torch.set_num_threads(threads)
    console.print(timing.table(timings))
    console.print("Medians on one thread, as in a worker; calls in turns, results compared before.", style="dim")
    drawn = picture.figure([training[k][0] for k in range(0, len(training), 27)], timings)
    drawn.savefig(output, format=output.suffix[1:].lower())
    console.print(f"\nPicture: {output.resolve()}", markup=False, soft_wrap=True)
    return accuracy


def heading(console: "Console", text: str) -> None:
    """Print the title of a part."""
    console.print()
    console.rule(f"[bold]{text}[/bold]", align="left", characters="=", style="dim")


def describe(console: "Console", training: speakers.Utterances, test: speakers.Utterances) -> None:
    """Print what the recordings are, and what padding them would cost."""
    lengths = torch.diff(training.offsets)
    rows, cells = int(lengths.sum()), len(lengths) * int(lengths.max())
    shape = f"{int(lengths.min())} to {int(lengths.max())} frames of {training.values.shape[1]} numbers"
    console.print(f"Who speaks? {len(lengths)} utterances of two vowels by {speakers.SPEAKERS} men, {shape}:")
    console.print(f"{len(training)} to train, {len(test)} to test. Padded to the longest, {1 - rows / cells:.0%} would be padding.")
    console.print('"Japanese Vowels", M. Kudo, J. Toyama, M. Shimbo, UCI repository, CC BY 4.0', style="dim")


def name_speakers(
    console: "Console", training: speakers.Utterances, test: speakers.Utterances, workers: int, start_method: str | None
) -> tuple[float, LSTM]:
    """Train and test the classifier with progress, print how it did, and return the test accuracy and the trained LSTM."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    settings = speakers.SETTINGS
    model = speakers.SpeakerNamer(training.frames(), settings)
    options: dict[str, Any] = {
        "num_workers": workers,
        "multiprocessing_context": start_method if workers else None,
    }
    packs = f"{workers} worker processes pack" if workers > 1 else "A worker process packs" if workers else "This process packs"
    console.print(f"\n{packs} each batch of {settings.batch_size} for a bidirectional LSTM of {settings.hidden_size} units.")
    begin = time.perf_counter()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("epoch {task.completed}/{task.total}"),
        TextColumn("{task.fields[state]}"),
    )
    with (
        speakers.Loader(training, settings.batch_size, shuffle=True, persistent_workers=workers > 0, **options) as loader,
        # without the refreshing thread: nothing else runs while worker processes are forked
        Progress(*columns, TimeElapsedColumn(), console=console, auto_refresh=False) as progress,
    ):
        bar = progress.add_task("training", total=settings.epochs, state="")
        progress.refresh()
        for epoch in speakers.train(model, loader):
            state = f"loss {epoch.loss:.3f}, {epoch.accuracy:.1%} right"
            progress.update(bar, completed=epoch.number, state=state, refresh=True)
    with speakers.Loader(test, 74, **options) as loader:
        _, named = speakers.evaluate(model, loader)
    console.print(speaker_table(test.speaker[test.chosen], named))
    accuracy = float(named.float().mean())
    seconds = time.perf_counter() - begin
    console.print(
        f"Test accuracy {accuracy:.1%}: {int(named.sum())} of {len(named)} speakers named, after {seconds:.1f} s.", style="bold green"
    )
    return accuracy, model.lstm


def speaker_table(speaker: torch.Tensor, named: torch.Tensor) -> "Table":
    """Return how many test utterances each speaker has, and of how many he was named."""
    from rich import box
    from rich.table import Table

    made = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("speaker", *map(str, range(1, speakers.SPEAKERS + 1))):
        made.add_column(name, justify="right")
    made.add_row("utterances", *(str(int((speaker == k).sum())) for k in range(speakers.SPEAKERS)))
    made.add_row("named", *(str(int(named[speaker == k].sum())) for k in range(speakers.SPEAKERS)))
    return made
