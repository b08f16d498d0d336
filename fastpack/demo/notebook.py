"""Three sequences, packed step by step: the notebook that fastpack grew from. Every number is computed."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from fastpack import Layout, show
from fastpack.demo import timing
from fastpack.torch import accelerate, pack_padded_sequence, pad_packed_sequence, pad_sequence

if TYPE_CHECKING:
    from rich.console import Console

SEQUENCES = ([1.0, 2.0, 3.0], [4.0, 5.0], [6.0, 7.0, 8.0, 9.0])


def run(console: "Console") -> None:
    """Print the whole notebook."""

    def say(*lines: str) -> None:
        for line in lines:
            console.print(line, markup=False, soft_wrap=True)

    def title(text: str) -> None:
        console.print(f"\n{text}", style="bold", markup=False)

    console.rule("[bold]Packed sequence internals[/bold]", align="left", characters="=", style="dim")
    sequences = [torch.tensor(values)[:, None] for values in SEQUENCES]
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    padded = pad_sequence(sequences, batch_first=True, padding_value=0)
    packed = pack_padded_sequence(padded, lengths, batch_first=True, enforce_sorted=False)

    title("1. ORIGINAL PADDED DATA:")
    say(f"Shape: {padded.shape}", "Data:")
    say(*(f"  Batch {i}: {row.squeeze(1).tolist()} (length: {n})" for i, (row, n) in enumerate(zip(padded, lengths.tolist(), strict=True))))
    title("2. AFTER PACKING:")
    say(f"Packed data shape: {packed.data.shape}")
    say(*(f"Packed {name}: {getattr(packed, name).tolist()}" for name in ("batch_sizes", "sorted_indices", "unsorted_indices")))
    title("3. HOW THE DATA IS REORGANIZED:")
    say("Original padded layout:", *padded_steps(padded, lengths))
    say("", "Packed layout (no padding!):", f"  Packed data: {packed.data.squeeze(1).tolist()}")
    say("", "How to read packed data:", *packed_steps(packed), "")
    show.cells(Layout(lengths.numpy()), console)
    title("4. LSTM PROCESSING COMPARISON:")
    say(*through_lstm(padded, packed, lengths))
    title("5. COMPUTATION SAVINGS:")
    padded_ops, packed_ops = padded.shape[0] * padded.shape[1], packed.data.shape[0]
    say(f"  Padded approach: {padded_ops} operations", f"  Packed approach: {packed_ops} operations")
    console.print(f"  Savings: {(padded_ops - packed_ops) / padded_ops:.1%}", style="bold green")


def padded_steps(padded: Tensor, lengths: Tensor) -> list[str]:
    """Return a line for each step of a padded batch (B, T, 1)."""
    B, lines = len(lengths), []
    for t, values in enumerate(padded.squeeze(2).T.tolist()):
        active = int((lengths > t).sum())
        who = f"all {B} sequences" if active == B else f"{active} sequence{'s' * (active != 1)} + padding"
        lines.append(f"  Timestep {t}: {values}  <- {who}")
    return lines


def packed_steps(packed: PackedSequence) -> list[str]:
    """Return a line for each step of a packed batch (N, 1)."""
    steps = torch.split(packed.data.squeeze(1), packed.batch_sizes.tolist())
    return [f"  Timestep {t}: {rows.tolist()} <- {len(rows)} active sequence{'s' * (len(rows) != 1)}" for t, rows in enumerate(steps)]


def through_lstm(padded: Tensor, packed: PackedSequence, lengths: Tensor) -> list[str]:
    """Return what LSTMs do with the padded (B, T, 1) and with the packed batch, whether the results agree, and the time it takes."""
    theirs = nn.LSTM(input_size=1, hidden_size=2, batch_first=True)
    ours = accelerate(copy.deepcopy(theirs))
    with torch.inference_mode():
        padded_output, _ = theirs(padded)
        packed_output, _ = theirs(packed)
        torch.testing.assert_close(ours(packed)[0].data, packed_output.data)
        times = [timing.microseconds(taken) for taken in timing.in_turns(lambda: theirs(packed), lambda: ours(packed))]
    unpacked, _ = pad_packed_sequence(packed_output, batch_first=True)
    B, T = padded_output.shape[:2]
    real = torch.arange(T) < lengths[:, None]
    torch.testing.assert_close(unpacked[real], padded_output[real])
    return [
        "Method 1 - Padded processing:",
        f"  Padded output shape: {padded_output.shape}",
        f"  Total computations: {B * T} timesteps",
        f"  ({int((~real).sum())} of them on padding: wasted)",
        "",
        "Method 2 - Packed processing:",
        f"  Packed output shape: {packed_output.data.shape}",
        f"  Total computations: {len(packed_output.data)} timesteps",
        "  (Only real data, no padding!)",
        f"  Time for this packed batch: torch.nn.LSTM {times[0]}, fastpack.torch.LSTM {times[1]}, the same outputs",
        "",
        "After unpacking:",
        f"  Unpacked shape: {unpacked.shape}",
        f"  The same outputs as Method 1 at all {int(real.sum())} real steps",
    ]
