"""The built libraries: what they want from outside, what they show, which instructions they hold, and how they are built."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastpack import compiler, machine

BUILT = [level for level in machine.cpu_levels() if level in machine.X86_LEVELS]
# The GNU assembler is the judge of instructions: told a CPU, it refuses what that CPU lacks.
ASSEMBLER_NAMES = {"sse4_1": "sse4.1", "sse4_2": "sse4.2", "bmi1": "bmi", "abm": "lzcnt"}


def tool(*command: str | Path, text: str = "") -> str:
    return subprocess.run([str(part) for part in command], input=text, capture_output=True, text=True, check=True).stdout


def library(level: str) -> Path:
    return Path(machine.LIBRARIES) / machine.library_name(level)


def instructions(path: Path) -> list[str]:
    """Return the disassembled instructions, such that the assembler takes them again: the padding left out, no names."""
    lines = [line.split("\t")[1] for line in tool("objdump", "-d", "--no-show-raw-insn", path).splitlines() if "\t" in line]
    lines = [line.partition("#")[0].strip() for line in lines]
    lines = [re.sub(r"\b[0-9a-f]+ <.*>$", "0", line) for line in lines if "nop" not in line and "data16" not in line]
    # `rep bsf`, which any CPU runs as bsf and newer ones as tzcnt, is shown as the latter; LLVM uses it where both agree
    return [re.sub(r"^tzcnt", "bsf", line) for line in lines]


def beyond(level: str, lines: list[str]) -> list[str]:
    """Return the complaints of an assembler that knows only the CPUs of `level`."""
    levels = list(machine.X86_LEVELS)
    features = " ".join(machine.X86_LEVELS[name] for name in levels[: levels.index(level) + 1]).split()
    cpu = "+".join(["generic64", "sse3", *(ASSEMBLER_NAMES.get(feature, feature) for feature in features)])
    command = ["as", f"-march={cpu}", "-o", "/dev/null", "-"]
    said = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True).stderr
    return [line for line in said.splitlines() if "Error:" in line]


@pytest.mark.parametrize("level", BUILT)
def test_wants_nothing_of_the_c_library_but_to_move_memory_and_to_give_way(level: str) -> None:
    wanted = {line.split()[-1] for line in tool("nm", "-D", "--undefined-only", library(level)).splitlines()}
    assert wanted <= {"memcpy", "memmove", "memset", "sched_yield"}
    assert "sched_yield" in wanted  # the list is that of these libraries
    header = tool("readelf", "-dlW", library(level))
    assert not re.findall(r"\((?:NEEDED|RPATH|RUNPATH|TEXTREL|INIT|INIT_ARRAY)\)", header)
    assert re.search(r"GNU_STACK .* RW ", header), "the stack is not to be executable"
    assert not re.search(r"LOAD .* RWE ", header), "no page is to be writable and executable"


@pytest.mark.parametrize("level", BUILT)
def test_shows_exactly_the_kernels(level: str) -> None:
    shown = [line.split()[1:] for line in tool("nm", "-D", "--defined-only", library(level)).splitlines()]
    assert sorted(shown) == sorted(["T", machine.symbol(block)] for block in machine.kernel_blocks().values())


@pytest.mark.parametrize("level", BUILT)
def test_holds_no_instruction_beyond_its_level(level: str) -> None:
    lines = instructions(library(level))
    assert len(lines) > 1000
    assert not beyond(level, lines)


@pytest.mark.parametrize(("held", "judged"), [(2, 0), (2, 1), (1, 0)])
def test_the_judge_of_instructions_goes_red(held: int, judged: int) -> None:
    levels = list(machine.X86_LEVELS)
    assert beyond(levels[judged], instructions(library(levels[held])))


@pytest.mark.parametrize(
    "instruction",
    ["vpermb %zmm0,%zmm1,%zmm2", "vpdpbusd %zmm0,%zmm1,%zmm2", "vaddph %zmm0,%zmm1,%zmm2", "vaesenc %zmm0,%zmm1,%zmm2", "(bad)"],
)
def test_the_judge_of_instructions_goes_red_beyond_the_highest_level(instruction: str) -> None:
    highest = list(machine.X86_LEVELS)[-1]
    assert not beyond(highest, ["vpermd %zmm0,%zmm1,%zmm2", "ret"])
    assert len(beyond(highest, [instruction, "ret"])) == 1


def test_linking_is_reproducible(small_object: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # that compiling is, and that the environment changes nothing, test_wheel.py and test_fallback.py show by second builds
    compiler.link(small_object, tmp_path / "one" / "a.so")
    monkeypatch.setenv("LD_RUN_PATH", str(tmp_path))
    compiler.link(small_object, tmp_path / "another" / "b.so")
    assert (tmp_path / "one" / "a.so").read_bytes() == (tmp_path / "another" / "b.so").read_bytes()


@pytest.fixture
def small_object(tmp_path: Path) -> bytes:
    """Object code that links in no time."""
    tool("as", "-o", tmp_path / "small.o", "-", text=".globl small\nsmall: ret\n")
    return (tmp_path / "small.o").read_bytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to build into, in place of the package's."""
    monkeypatch.setattr(compiler, "LIBRARIES", str(tmp_path / "built"))
    return tmp_path / "built"


@pytest.mark.parametrize("linker", ["false", "no-such-linker", "true", "cp /dev/null"])
def test_without_a_linker_the_build_says_so(linker: str, small_object: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # missing, failing, making nothing, failing by an option
    folder.mkdir()
    (folder / "x86-64-v2-0123456789abcdef.so").write_bytes(b"of other sources")
    monkeypatch.setattr(compiler, "object_code", lambda level: small_object)
    monkeypatch.setenv("CC", linker)
    said: list[str] = []
    assert compiler.build(["x86-64-v2", "x86-64-v3"], said.append) == []
    assert len(said) == 2
    assert all("for want of a linker; kernels will be compiled at first use" in line and linker.split()[0] in line for line in said)
    assert list(folder.iterdir()) == []


def test_a_linker_with_options_is_understood(small_object: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "object_code", lambda level: small_object)
    monkeypatch.setenv("CC", f"'{shutil.which('cc')}' -O2")
    assert len(compiler.build(["x86-64-v2"], lambda said: None)) == 1


def test_a_build_takes_what_is_there_and_removes_what_is_old(small_object: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[str] = []
    monkeypatch.setattr(compiler, "object_code", lambda level: compiled.append(level) or small_object)
    for _ in range(2):
        compiler.build(["x86-64-v2", "x86-64-v3"], lambda said: None)
        assert sorted(compiled) == ["x86-64-v2", "x86-64-v3"]
    monkeypatch.setattr(compiler, "sources_digest", lambda: "other")
    monkeypatch.setattr(compiler, "library_name", lambda level: f"{level}-other.so")
    compiler.build(["x86-64-v2"], lambda said: None)
    assert [path.name for path in folder.iterdir()] == ["x86-64-v2-other.so"]


def test_sources_that_change_meanwhile_make_no_library(small_object: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = iter(["x86-64-v2-before.so", "x86-64-v2-after.so"])
    monkeypatch.setattr(compiler, "object_code", lambda level: small_object)
    monkeypatch.setattr(compiler, "library_name", lambda level: next(names))
    with pytest.raises(RuntimeError, match="sources changed while they were compiled"):
        compiler.build(["x86-64-v2"], lambda said: None)
    assert not folder.exists()


def test_an_interrupted_build_leaves_no_part_of_a_library(small_object: bytes, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(compiler, "object_code", lambda level: small_object)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            compiler.build(["x86-64-v2"], lambda said: None)
        assert not list(folder.glob("*.so"))
    (built,) = compiler.build(["x86-64-v2"], lambda said: None)
    assert built.stat().st_size > 100


@pytest.mark.parametrize("broken", ["none", "frozen", "embedded"])
def test_where_no_python_can_be_started_nothing_is(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "" if broken == "none" else sys.executable)
    monkeypatch.setattr(sys, "frozen", broken == "frozen", raising=False)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a program was started"))
    if broken == "embedded":  # it was started by us as if it were a Python
        monkeypatch.setenv("FASTPACK_COMPILING", "x86-64-v2")
    with pytest.raises(RuntimeError, match=r"sys\.executable is no Python here"):
        compiler.object_code("x86-64-v2")


def test_a_compiler_that_fails_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "CHILD", "import sys; print('printed'); sys.exit('the reason')")
    with pytest.raises(RuntimeError, match=r"compiling fastpack's kernels for x86-64-v2 failed: printed \| the reason"):
        compiler.object_code("x86-64-v2")


def test_a_compiler_that_says_nothing_is_no_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "CHILD", "")
    with pytest.raises(RuntimeError, match="failed: exit status 0"):
        compiler.object_code("x86-64-v2")


def test_what_else_is_printed_is_not_in_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "CHILD", "import sys; print('noise'); print(sys.argv[2] + 'object', end='')")
    assert compiler.object_code("x86-64-v2") == b"object"
