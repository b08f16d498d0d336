"""Files of lengths, for the command line: text, .npy, .npz, and Parquet."""

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fastpack import checks
from fastpack.checks import Int64Array

MOST = 2**61  # steps, of all sequences together
TOO_MUCH = f"but there can be at most {MOST:,} steps"


def read(file: str, as_offsets: bool = False, column: str = "") -> Int64Array:
    """Return the lengths in a file, by its suffix; any other than .parquet and those in `READERS` is text.

    Raises
    ------
    OSError
        It cannot be read.
    TypeError, ValueError, OverflowError
        What is in it are no lengths, or, if `as_offsets`, no offsets.
    """
    path = Path(file)
    if path.suffix.lower() == ".parquet":
        from fastpack import parquet

        name, found = "lengths", parquet.lengths_of(path, column)
    elif column:
        raise ValueError(f"no Parquet file, so there is no column {column!r} in it")
    else:
        name, found = READERS.get(path.suffix.lower(), _from_text)(path)
    if as_offsets or name == "offsets":
        offsets = checks.integers(found, "offsets")
        return np.diff(checks.offsets(offsets, int(offsets[-1]) if len(offsets) else 0))
    return checks.lengths(found)[0]


def _from_text(path: Path) -> tuple[str, Any]:
    try:
        return "lengths", parse(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"no text in UTF-8; files that are none have names in {', '.join([*READERS, '.parquet'])}") from error


def _from_npy(path: Path) -> tuple[str, Any]:
    try:
        return "lengths", np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"not an array of numbers in NumPy's format: {error}") from error


def _from_npz(path: Path) -> tuple[str, Any]:
    """Return the array called lengths, else offsets, else the only one."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            names = list(arrays) if isinstance(arrays, np.lib.npyio.NpzFile) else []
            name = next((name for name in ("lengths", "offsets") if name in names), names[0] if len(names) == 1 else "")
            if name:
                return name, arrays[name]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"not arrays of numbers in NumPy's format: {error}") from error
    raise ValueError(f"has the arrays {', '.join(names) or 'none'}, but none called lengths or offsets")


READERS: dict[str, Callable[[Path], tuple[str, Any]]] = {".npy": _from_npy, ".npz": _from_npz}


def parse(text: str, lines: bool = True, most: int = MOST, too_much: str = TOO_MUCH) -> list[int]:
    """Return the whole numbers in `text`, between spaces, commas or line ends.

    Raises
    ------
    ValueError
        An entry, named with its line where there are `lines`, is no length, or more than `most`.
    """
    entries = text.replace(",", " ").split()
    if not entries:
        raise ValueError("no lengths")
    try:
        lengths = list(map(int, entries))
    except ValueError:
        lengths = []
    if not lengths or min(lengths) < 0 or max(lengths) > most:
        k, entry, wrong = next((k, entry, wrong) for k, entry in enumerate(entries) if (wrong := _wrong_with(entry, most, too_much)))
        where = f" (line {_line_of(text, k)})" if lines else ""
        raise ValueError(f"entry {k + 1}{where} is {entry if len(entry) <= 40 else entry[:39] + '…'!r}, {wrong}")
    return lengths


def _wrong_with(entry: str, most: int, too_much: str) -> str:
    """Return what keeps an entry from being a length; empty where nothing does."""
    try:
        length = int(entry)
    except ValueError:
        return too_much if entry.isdecimal() else "not a whole number"  # Python reads no more than 4,300 digits
    if length < 0:
        return "but a length is 0 or more"
    return too_much if length > most else ""


def _line_of(text: str, k: int) -> int:
    """Return the line, from 1, of the k-th entry of `text`."""
    for number, line in enumerate(text.replace(",", " ").split("\n"), 1):
        k -= len(line.split())
        if k < 0:
            return number
    return 0
