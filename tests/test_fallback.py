"""The cache of compiled kernels: whatever is wrong with it, at worst they are compiled again.

The compiler is stood in for by one that returns known good object code and counts;
tests/test_fallback_processes.py has the real one, and more than one process.
"""

import errno
import os
import re
import tempfile
from pathlib import Path

import numpy as np
import pytest

import fastpack
from fastpack import compiler, fallback, machine

Patch = pytest.MonkeyPatch
LEVEL = machine.supported_levels()[-1]
CODE = b"some object code" * 1000


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: Patch) -> Path:
    """The cache folder, not yet there."""
    monkeypatch.setenv("FASTPACK_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def compiled(monkeypatch: Patch) -> list[str]:
    """The levels that were compiled, as they are."""
    levels: list[str] = []
    monkeypatch.setattr(compiler, "object_code", lambda level: levels.append(level) or CODE)
    return levels


def get(level: str = LEVEL) -> bytes:
    return fallback.cached_object(level, fallback.cache_file(level), lambda said: None)


@pytest.fixture
def kept(folder: Path, compiled: list[str]) -> Path:
    """The file in the cache, once there is one."""
    assert get() == CODE
    assert compiled.pop() == LEVEL
    (file,) = folder.glob("*.o")
    return file


def test_it_compiles_once_and_keeps_the_code_to_itself(kept: Path, compiled: list[str]) -> None:
    assert [get(), get()] == [CODE, CODE]
    assert compiled == []
    assert kept.parent.stat().st_mode & 0o777 == 0o700
    assert kept.stat().st_mode & 0o777 == 0o600
    assert not list(kept.parent.glob("*.new"))


def test_it_says_what_it_does(folder: Path, compiled: list[str], caplog: pytest.LogCaptureFixture) -> None:
    fallback.cached_object(LEVEL, fallback.cache_file(LEVEL))
    assert [record.getMessage() for record in caplog.records] == [
        f"fastpack: compiling the kernels for {LEVEL}, once; it takes about a minute"
    ]


def test_other_levels_sources_and_versions_have_other_files(kept: Path, monkeypatch: Patch) -> None:
    names = {kept, fallback.cache_file("generic")}
    with monkeypatch.context() as patch:
        patch.setattr(fallback, "sources_digest", lambda: "other")
        names.add(fallback.cache_file(LEVEL))
    for changed in ("numba", "llvmlite"):
        with monkeypatch.context() as patch:
            patch.setattr("importlib.metadata.version", lambda name, changed=changed: "9" if name == changed else "0")
            names.add(fallback.cache_file(LEVEL))
    assert len(names) == 5


def truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def cut_to_a_block(file: Path) -> None:
    os.truncate(file, 4096)


def empty(file: Path) -> None:
    os.truncate(file, 0)


def foreign(file: Path) -> None:
    file.write_bytes(b"\x7fELF" + os.urandom(5000))


def one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)


def of_another_level(file: Path) -> None:
    get("x86-64-v3" if LEVEL != "x86-64-v3" else "x86-64-v2")
    (other,) = set(file.parent.glob("*.o")) - {file}
    other.replace(file)


def a_link(file: Path) -> None:
    file.rename(file.with_name("elsewhere"))
    file.symlink_to(file.with_name("elsewhere"))


def a_link_to_nowhere(file: Path) -> None:
    file.unlink()
    file.symlink_to("nowhere")


def a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def writable_by_the_group(file: Path) -> None:
    file.chmod(0o620)


def writable_by_others(file: Path) -> None:
    file.chmod(0o602)


@pytest.mark.parametrize(
    "spoil",
    [
        truncated,
        cut_to_a_block,
        empty,
        foreign,
        one_bit,
        of_another_level,
        a_link,
        a_link_to_nowhere,
        a_pipe,
        writable_by_the_group,
        writable_by_others,
    ],
)
def test_a_file_that_is_not_what_was_written_is_replaced(spoil: object, kept: Path, compiled: list[str]) -> None:
    assert callable(spoil)
    spoil(kept)
    compiled.clear()
    assert get() == CODE
    assert compiled == [LEVEL]
    assert get() == CODE
    assert compiled == [LEVEL], "the new file is used"
    assert kept.is_file()
    assert not kept.is_symlink()


def test_a_folder_under_the_files_name_is_left_alone(kept: Path, compiled: list[str]) -> None:
    kept.unlink()
    (kept / "something").mkdir(parents=True)
    assert [get(), get()] == [CODE, CODE]
    assert compiled == [LEVEL, LEVEL]
    assert (kept / "something").is_dir()
    assert not list(kept.parent.glob("*.new"))


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(mode: int, kept: Path, compiled: list[str], caplog: pytest.LogCaptureFixture) -> None:
    kept.parent.chmod(mode)
    assert [get(), get()] == [CODE, CODE]
    assert compiled == [LEVEL, LEVEL]
    assert f"are not kept: others can write to {kept.parent}" in caplog.text
    kept.unlink()
    get()
    assert not kept.exists(), "nothing is written there"


@pytest.mark.parametrize("whose", ["file", "folder"])
def test_what_belongs_to_someone_else_is_refused(whose: str, kept: Path, compiled: list[str], monkeypatch: Patch) -> None:
    theirs = (kept if whose == "file" else kept.parent).stat().st_ino
    honest = os.fstat

    def fstat(handle: int) -> os.stat_result:
        status = honest(handle)
        return os.stat_result((*status[:4], status.st_uid + (status.st_ino == theirs), *status[5:10]))

    monkeypatch.setattr(os, "fstat", fstat)
    assert get() == CODE
    assert compiled == [LEVEL]


def test_without_user_ids_the_digest_alone_decides(kept: Path, compiled: list[str], monkeypatch: Patch) -> None:
    monkeypatch.delattr(os, "geteuid")  # as on Windows
    assert get() == CODE
    assert compiled == []
    truncated(kept)
    assert get() == CODE
    assert compiled == [LEVEL]


def below_a_file(base: Path, patch: Patch) -> None:
    (base / "file").touch()
    patch.setenv("FASTPACK_CACHE_DIR", str(base / "file" / "cache"))


def not_writable(base: Path, patch: Patch) -> None:
    patch.setenv("FASTPACK_CACHE_DIR", "/proc/fastpack")  # for the superuser as well


def too_long(base: Path, patch: Patch) -> None:
    patch.setenv("FASTPACK_CACHE_DIR", str(base / ("x" * 300)))


def a_loop_of_links(base: Path, patch: Patch) -> None:
    (base / "loop").symlink_to("loop")
    patch.setenv("FASTPACK_CACHE_DIR", str(base / "loop"))


def no_home(base: Path, patch: Patch) -> None:
    for name in ("FASTPACK_CACHE_DIR", "XDG_CACHE_HOME", "HOME"):
        patch.delenv(name, raising=False)
    patch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # a user whom nobody knows, as in many containers


def a_home_that_is_not_there(base: Path, patch: Patch) -> None:
    no_home(base, patch)
    patch.setenv("HOME", "/proc/nobody")


def a_folder_that_was_removed(base: Path, patch: Patch) -> None:
    (base / "gone").mkdir()
    patch.chdir(base / "gone")
    (base / "gone").rmdir()
    patch.setenv("FASTPACK_CACHE_DIR", "cache")


@pytest.mark.parametrize(
    "arrange", [below_a_file, not_writable, too_long, a_loop_of_links, no_home, a_home_that_is_not_there, a_folder_that_was_removed]
)
def test_where_nothing_can_be_kept_it_compiles_each_time(arrange: object, compiled: list[str], tmp_path: Path) -> None:
    assert callable(arrange)
    with pytest.MonkeyPatch.context() as patch:
        arrange(tmp_path, patch)
        assert [get(), get()] == [CODE, CODE]
    assert compiled == [LEVEL, LEVEL]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"FASTPACK_CACHE_DIR": "here"}, "work/here"),
        ({"FASTPACK_CACHE_DIR": "~/there"}, "home/there"),
        ({"XDG_CACHE_HOME": "{base}/xdg"}, "xdg/fastpack"),
        ({"XDG_CACHE_HOME": "relative"}, "home/.cache/fastpack"),  # which its rules say to ignore
        ({"FASTPACK_CACHE_DIR": "", "XDG_CACHE_HOME": ""}, "home/.cache/fastpack"),
        ({"HOME": "relative"}, None),
    ],
)
def test_the_folder(environment: dict[str, str], expected: str | None, tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    for name in ("FASTPACK_CACHE_DIR", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(base=tmp_path))
    assert fallback.cache_folder() == (expected and tmp_path / expected)


def test_a_relative_folder_stays_where_it_is(compiled: list[str], tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setenv("FASTPACK_CACHE_DIR", "cache")
    monkeypatch.chdir(tmp_path)
    path = fallback.cache_file(LEVEL)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    fallback.cached_object(LEVEL, path, lambda said: None)
    assert len(list((tmp_path / "cache").glob("*.o"))) == 1


@pytest.mark.parametrize("full", ["at once", "part of the way"])
def test_a_full_disk(full: str, folder: Path, compiled: list[str], monkeypatch: Patch, caplog: pytest.LogCaptureFixture) -> None:
    honest = tempfile.mkstemp

    def mkstemp(**options: object) -> tuple[int, str]:
        if full == "at once":
            raise OSError(errno.ENOSPC, "No space left on device")
        handle, path = honest(**options)  # type: ignore[call-overload]
        os.write(handle, b"the part that went well")
        os.close(handle)
        return os.open("/dev/full", os.O_WRONLY), path  # where each write fails for want of space

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)
    assert get() == CODE
    assert compiled == [LEVEL]
    assert re.search(r"the compiled kernels are not kept: .*No space left on device", caplog.text)
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_an_interrupted_write_leaves_nothing(folder: Path, compiled: list[str], monkeypatch: Patch) -> None:
    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        get()
    assert [path.suffix for path in folder.iterdir()] == [".lock"]


def test_sources_that_changed_while_waiting_are_not_kept_under_the_old_name(folder: Path, compiled: list[str], monkeypatch: Patch) -> None:
    path = fallback.cache_file(LEVEL)
    monkeypatch.setattr(fallback, "sources_digest", lambda: "changed")
    assert fallback.cached_object(LEVEL, path, lambda said: None) == CODE
    assert not list(folder.glob("*.o"))


def test_what_is_old_is_removed_and_nothing_else(kept: Path, compiled: list[str]) -> None:
    old = [kept.with_name(name) for name in ("kernels-x86-64-v2-old.o", "kernels-x86-64-v2-old.lock", "tmpabc.new")]
    others = [kept.with_name(name) for name in ("notes.txt", "kernels-x86-64-v2-recent.o")]
    for path in [*old, *others]:
        path.touch()
    for path in [*old, others[0]]:
        os.utime(path, (0, 0))
    kept.unlink()
    get()
    assert not any(path.exists() for path in old)
    assert all(path.exists() for path in [*others, kept])


@pytest.mark.parametrize("spoil", [a_link_to_nowhere, a_pipe])
def test_a_lock_that_is_no_file_is_done_without(spoil: object, kept: Path, compiled: list[str]) -> None:
    assert callable(spoil)
    kept.unlink()
    spoil(kept.with_suffix(".lock"))
    assert [get(), get()] == [CODE, CODE]
    assert compiled == [LEVEL]


def test_a_second_compilation_is_the_same_to_the_byte(good_code: bytes, tmp_path: Path) -> None:
    # whatever the environment and the time; tests/test_wheel.py shows so for another level and folder
    compiler.link(good_code, tmp_path / "again.so")
    assert (tmp_path / "again.so").read_bytes() == (Path(machine.LIBRARIES) / machine.library_name(LEVEL)).read_bytes()


def test_code_for_other_arguments_is_an_error(good_code: bytes, folder: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(compiler, "object_code", lambda level: good_code)
    assert all(fallback.load(LEVEL, "a test").addresses.values())
    monkeypatch.setattr(fallback, "symbol", lambda block: f"{machine.symbol(block)}x")
    with pytest.raises(RuntimeError, match="files have changed since this process imported it: start the process again"):
        fallback.load(LEVEL, "a test")


def test_kernels_from_the_cache_run(good_code: bytes, folder: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(compiler, "object_code", lambda level: good_code)
    for origin in ("memory", str(folder)):
        with monkeypatch.context() as patch:
            if origin == "memory":
                no_home(folder, patch)
            patch.setattr(machine, "_library", None)
            patch.setattr(machine, "_calls", {})
            patch.setenv("FASTPACK_KERNELS", "jit")
            packed = fastpack.pack([np.array(list("abc")), np.array(["x"])])
            assert "".join(packed.data) == "axbc"
            assert machine.library().origin.startswith(origin)
            assert machine.library().reason == "the highest level of this CPU; FASTPACK_KERNELS=jit; compiled here"
