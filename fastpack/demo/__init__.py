"""`fastpack demo`: three sequences packed step by step, then the main job on real recordings, trained, timed and drawn."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fastpack.demo import notebook, picture, speakers, timing, training

if TYPE_CHECKING:
    from rich.console import Console


def run(console: "Console", output: Path, seeds: list[int], workers: int = 2, start_method: str | None = None) -> float:
    """Run the whole demo.

    Parameters
    ----------
    console : rich.console.Console
    output : Path
        Where the picture goes; the suffix says in which format.
    seeds : list of int
        Of everything random, a training by each layer from each: the same seed gives the same result on the same machine.
    workers : int
        Processes that load and pack the recordings; with 0, this one does.
    start_method : str, optional
        How they start: 'fork', 'spawn' or 'forkserver'; the platform's own otherwise.

    Returns
    -------
    float
        The share of the test utterances whose speaker was named by the models trained on fastpack's layers.
    """
    # One thread, as in a DataLoader's worker, where packing belongs. It gives the same result on any number of cores and leaves
    # cores to the workers; torch's two threads wait for each other: the training took 269 s, not 9.5, beside another busy process.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        torch.manual_seed(seeds[0])
        notebook.run(console)
        heading(console, "Nine speakers, 640 recordings: the main job")
        to_train, to_test = speakers.load()
        describe(console, to_train, to_test, workers)
        options = {"num_workers": workers, "multiprocessing_context": start_method} if workers else {}
        pairs = training.run(console, to_train, to_test, seeds, persistent_workers=workers > 0, **options)
        heading(console, "The time it takes, beside torch's own functions")
        sizes = speakers.SETTINGS.batch_size, len(to_train)
        timings = [row for size in sizes for row in timing.compare(timing.batches(to_train, size))]
    finally:
        torch.set_num_threads(threads)
    console.print(timing.table(timings))
    console.print("Medians on one thread, as in a worker; calls in turns, results compared before.", style="dim")
    drawn = picture.figure([to_train[k][0] for k in range(0, len(to_train), 27)], pairs, timings)
    drawn.savefig(output, format=output.suffix[1:].lower())
    console.print(f"\nPicture: {output.resolve()}", markup=False, soft_wrap=True)
    return sum(pair.fastpack.accuracy for pair in pairs) / len(pairs)


def heading(console: "Console", text: str) -> None:
    """Print the title of a part."""
    console.print()
    console.rule(f"[bold]{text}[/bold]", align="left", characters="=", style="dim")


def describe(console: "Console", training: speakers.Utterances, test: speakers.Utterances, workers: int) -> None:
    """Print what the recordings are, what padding them would cost, and how they are used."""
    lengths, settings = torch.diff(training.offsets), speakers.SETTINGS
    rows, cells = int(lengths.sum()), len(lengths) * int(lengths.max())
    shape = f"{int(lengths.min())} to {int(lengths.max())} frames of {training.values.shape[1]} numbers"
    console.print(f"Who speaks? {len(lengths)} utterances of two vowels by {speakers.SPEAKERS} men, {shape}:")
    console.print(f"{len(training)} to train, {len(test)} to test. Padded to the longest, {1 - rows / cells:.0%} would be padding.")
    console.print('"Japanese Vowels", M. Kudo, J. Toyama, M. Shimbo, UCI repository, CC BY 4.0', style="dim")
    packs = f"{workers} worker processes pack" if workers > 1 else "A worker process packs" if workers else "This process packs"
    console.print(f"\n{packs} each batch of {settings.batch_size} for a bidirectional LSTM of {settings.hidden_size} units, fastpack's")
    console.print("and torch's, both on packed rows: a step of one, then the same step of the other.")
