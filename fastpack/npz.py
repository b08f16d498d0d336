"""Arrays of an .npz file, memory-mapped where they lie in it as they are: np.load reads them, whatever its mmap_mode says."""

import os
import struct
import zipfile
from typing import Any

import numpy as np
from numpy.lib import format as npy

from fastpack.checks import Array

LOCAL_HEADER = struct.Struct("<26x2H")  # of a file in a zip archive: the sizes of its name and of its extra field end it


def arrays_of(path: str | os.PathLike[str]) -> dict[str, Array]:
    """Return each array of a file by its name: mapped, or read to memory where it is compressed, as by np.savez_compressed.

    Raises
    ------
    ValueError
        The file is no .npz file, is truncated, or holds Python objects.
    """
    try:
        with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
            return {info.filename.removesuffix(".npy"): _array(archive, info, path, file) for info in archive.infolist()}
    except (zipfile.BadZipFile, ValueError, EOFError) as error:
        raise ValueError(f"{os.fspath(path)} is no .npz file of arrays, or is truncated: {error}") from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: str | os.PathLike[str], file: Any) -> Array:
    if info.compress_type == zipfile.ZIP_STORED:
        file.seek(info.header_offset)
        file.seek(sum(LOCAL_HEADER.unpack(file.read(LOCAL_HEADER.size))), os.SEEK_CUR)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        reader = readers.get(npy.read_magic(file))
        if reader is not None:
            shape, is_fortran, dtype = reader(file)
            if not dtype.hasobject and 0 not in shape and dtype.itemsize:
                return np.memmap(path, dtype, "r", file.tell(), shape, "F" if is_fortran else "C")
    with archive.open(info) as member:
        found: Array = npy.read_array(member, allow_pickle=False)
    return found
