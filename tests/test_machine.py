"""Which library is opened, and how a kernel is called."""

import ctypes
import os
import platform
import re
import threading
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

import fastpack
from fastpack import blocks, fallback, machine
from fastpack.kernels import kernel as kernels

EVERYTHING = set(" ".join(machine.X86_LEVELS.values()).split())
Patch = pytest.MonkeyPatch


@pytest.fixture
def fresh(monkeypatch: Patch) -> None:
    """No library is open yet; FASTPACK_* is unset."""
    monkeypatch.setattr(machine, "_library", None)
    monkeypatch.setattr(machine, "_calls", {})
    for name in ("FASTPACK_CPU", "FASTPACK_KERNELS"):
        monkeypatch.delenv(name, raising=False)


def on_x86(monkeypatch: Patch, features: set[str]) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "cpu_features", lambda: features)


@pytest.mark.usefixtures("fresh")
def test_fastpack_cpu_picks_a_lower_level(monkeypatch: Patch) -> None:
    for level in machine.supported_levels():
        monkeypatch.setattr(machine, "_library", None)
        monkeypatch.setenv("FASTPACK_CPU", level)
        assert machine.library().level == level
        assert machine.library().reason == "FASTPACK_CPU; built ahead"
        assert Path(machine.library().origin).name == machine.library_name(level)


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("wanted", ["x86-64-v9", "haswell", "X86-64-V3", " ", "../x86-64-v3", "x86-64"])
def test_an_unknown_level_is_an_error(wanted: str, monkeypatch: Patch) -> None:
    monkeypatch.setenv("FASTPACK_CPU", wanted)
    for _ in range(2):  # and stays one
        with pytest.raises(ValueError, match=f"FASTPACK_CPU is '{re.escape(wanted)}', but the levels here are .*x86-64-v3"):
            fastpack.pack([np.arange(3)])
    monkeypatch.delenv("FASTPACK_CPU")
    assert len(fastpack.pack([np.arange(3)]).data) == 3


@pytest.mark.usefixtures("fresh")
def test_a_level_beyond_this_cpu_is_an_error(monkeypatch: Patch) -> None:
    on_x86(monkeypatch, EVERYTHING - {"avx512f"})
    monkeypatch.setenv("FASTPACK_CPU", "x86-64-v4")
    with pytest.raises(ValueError, match="FASTPACK_CPU is 'x86-64-v4', but this CPU runs no more than x86-64-v3"):
        machine.library()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("wish", ["JIT", "1", "no", " jit"])
def test_an_unknown_wish_for_kernels_is_an_error(wish: str, monkeypatch: Patch) -> None:
    monkeypatch.setenv("FASTPACK_KERNELS", wish)
    with pytest.raises(ValueError, match=f"FASTPACK_KERNELS is '{wish}', but can only be 'jit' or unset"):
        machine.library()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize("variable", ["FASTPACK_CPU", "FASTPACK_KERNELS"])
def test_an_empty_variable_is_an_unset_one(variable: str, monkeypatch: Patch) -> None:
    monkeypatch.setenv(variable, "")
    assert machine.library().reason == "the highest level of this CPU; built ahead"


@pytest.fixture
def asked(monkeypatch: Patch, fresh: None) -> list[tuple[str, str]]:
    """Return the levels and reasons that the fallback was asked with; it gives a library that says so."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(fallback, "load", lambda level, reason: calls.append((level, reason)) or machine.Library(level, {}, "", "", None))
    return calls


def use_folder(monkeypatch: Patch, folder: Path, level: str = "", content: bytes = b"") -> None:
    """Let `folder` be where libraries are, with one in it."""
    monkeypatch.setattr(machine, "LIBRARIES", str(folder))
    folder.mkdir(exist_ok=True)
    if level:
        (folder / machine.library_name(level)).write_bytes(content)


def built(level: str) -> bytes:
    return (Path(machine.LIBRARIES) / machine.library_name(level)).read_bytes()


def test_without_libraries_the_fallback_is_asked(asked: list[Any], tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(machine, "LIBRARIES", str(tmp_path / "missing"))
    assert machine.library().level == machine.supported_levels()[-1]
    assert asked == [(machine.supported_levels()[-1], "the highest level of this CPU; no library was built ahead")]


def test_libraries_of_other_sources_are_not_used(asked: list[Any], tmp_path: Path, monkeypatch: Patch) -> None:
    content = built("x86-64-v2")
    use_folder(monkeypatch, tmp_path)
    (tmp_path / "x86-64-v2-0123456789abcdef.so").write_bytes(content)
    machine.library()
    assert asked[0][1].endswith("; the library was built from other sources")


def test_the_best_library_that_was_built_will_do_unless_one_is_asked_for(asked: list[Any], tmp_path: Path, monkeypatch: Patch) -> None:
    on_x86(monkeypatch, EVERYTHING - {"avx512f"})
    use_folder(monkeypatch, tmp_path, "x86-64-v2", built("x86-64-v2"))
    assert machine.library().level == "x86-64-v2"
    monkeypatch.setattr(machine, "_library", None)
    monkeypatch.setenv("FASTPACK_CPU", "x86-64-v3")
    machine.library()
    assert asked == [("x86-64-v3", "FASTPACK_CPU; no library was built ahead")]


@pytest.mark.parametrize("content", [b"", b"no library", b"\x7fELF" + bytes(60)])
def test_a_library_that_cannot_be_opened_is_not_used(content: bytes, asked: list[Any], tmp_path: Path, monkeypatch: Patch) -> None:
    use_folder(monkeypatch, tmp_path, "x86-64-v2", content)
    machine.library()
    assert re.search(r"; x86-64-v2-\w+\.so cannot be opened: ", asked[0][1])


def test_a_library_for_other_arguments_is_not_used(asked: list[Any], monkeypatch: Patch) -> None:
    # the package is upgraded under a running process: new files on disk, old blocks in memory
    class PackPadded(NamedTuple):
        padded: blocks.Bytes
        something: blocks.Size

    monkeypatch.setattr(blocks, "PackPadded", PackPadded)
    machine.library()
    assert "cannot be opened" in asked[0][1]
    assert machine.symbol(PackPadded) in asked[0][1]


@pytest.mark.usefixtures("fresh")
def test_a_frozen_program_without_sources_uses_its_library(tmp_path: Path, monkeypatch: Patch) -> None:
    level = machine.supported_levels()[-1]
    use_folder(monkeypatch, tmp_path / "_machine_code", level, built(level))
    monkeypatch.setattr(machine, "PACKAGE", str(tmp_path))
    assert machine.library().level == level
    assert Path(machine.library().origin).parent == tmp_path / "_machine_code"


def test_the_digest_covers_all_sources_and_nothing_else(tmp_path: Path, monkeypatch: Patch) -> None:
    for folder in ("blocks", "kernels"):
        (tmp_path / folder).mkdir()
    for path in ("kernels/rows.py", "kernels/layout.py", "blocks/rows.py", "compiler.py"):
        (tmp_path / path).write_bytes(b"one\ntwo\n")
    monkeypatch.setattr(machine, "PACKAGE", str(tmp_path))
    before = machine.sources_digest()
    (tmp_path / "blocks" / "rows.py").write_bytes(b"one\r\ntwo\r\n")  # as git may check it out
    (tmp_path / "kernels" / ".#rows.py").symlink_to("nowhere")  # an editor's lock
    (tmp_path / "kernels" / "rows.pyc").touch()
    assert machine.sources_digest() == before
    seen = {before}
    for path in ("kernels/rows.py", "kernels/layout.py", "blocks/rows.py", "compiler.py", "kernels/new.py"):
        (tmp_path / path).write_bytes(b"three\n")
        seen.add(machine.sources_digest())
    (tmp_path / "kernels" / "new.py").rename(tmp_path / "kernels" / "newer.py")
    assert len(seen | {machine.sources_digest()}) == 7


def test_each_block_has_a_kernel_and_each_kernel_a_block() -> None:
    import fastpack.kernels  # noqa: F401  registers them

    assert set(kernels.KERNELS) == set(machine.kernel_blocks()) == set(machine.library().addresses)
    for name, block in machine.kernel_blocks().items():
        hints = typing.get_type_hints(block, include_extras=True)
        assert kernels.KERNELS[name].kinds == tuple(hint.__metadata__[0] for hint in hints.values())
        assert machine.kernel(block)[2] == machine.library().addresses[name] != 0
        assert name == kernels.KERNELS[name].function.__name__ == machine.kernel_name(block)


class Miniature(NamedTuple):
    rows: blocks.Bytes
    N: blocks.Size


@pytest.mark.parametrize(
    "function",
    [
        lambda begin, end, N, rows: None,
        lambda begin, end, rows: None,
        lambda begin, end, rows, N, T: None,
        lambda end, begin, rows, N: None,
        lambda rows, N: None,
    ],
)
def test_a_kernel_whose_parameters_differ_from_its_block_is_refused(function: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match=r"takes .*, but its block is begin, end, rows, N"):
        kernels.kernel(Miniature)(function)
    assert "<lambda>" not in kernels.KERNELS


def test_a_symbol_tells_names_kinds_and_order_of_arguments() -> None:
    class Other(NamedTuple):
        N: blocks.Size
        rows: blocks.Bytes

    class Third(NamedTuple):
        rows: blocks.Int64s
        N: blocks.Size

    Other.__name__ = Third.__name__ = "Miniature"
    symbols = {machine.symbol(block) for block in (Miniature, Other, Third)}
    assert len(symbols) == 3
    assert all(re.fullmatch("fastpack_miniature_[0-9a-f]{8}", symbol) for symbol in symbols)


@pytest.mark.usefixtures("fresh")
def test_threads_open_one_library_and_call_at_once(monkeypatch: Patch) -> None:
    opened: list[str] = []
    honest = ctypes.CDLL
    monkeypatch.setattr(ctypes, "CDLL", lambda path: opened.append(path) or honest(path))
    start, results = threading.Barrier(8), []

    def work(k: int) -> None:
        start.wait()
        results.extend((k, fastpack.pack([np.full(3, k), np.full(1, -k)]).data.tolist()) for _ in range(50))

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 1
    assert len(results) == 400
    assert all(data == [k, -k, k, k] for k, data in results)


@pytest.mark.usefixtures("fresh")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_forked_while_a_thread_opens_the_library_opens_its_own(monkeypatch: Patch) -> None:
    opening, go_on = threading.Event(), threading.Event()
    honest = machine._open_library

    def slow() -> machine.Library:
        opening.set()
        go_on.wait(60)
        return honest()

    monkeypatch.setattr(machine, "_open_library", slow)
    thread = threading.Thread(target=machine.library)
    thread.start()
    opening.wait(60)
    monkeypatch.setattr(machine, "_open_library", honest)
    pid = os.fork()
    if pid == 0:  # the child must not wait for a thread that it has not
        try:
            os._exit(0 if fastpack.pack([np.arange(3)]).data.tolist() == [0, 1, 2] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    go_on.set()
    thread.join()
    assert machine.library().level == machine.supported_levels()[-1]
