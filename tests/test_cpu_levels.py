"""Which levels a CPU runs, by what Linux or NumPy say of it."""

import builtins
import io
import platform
import re
import sys
from typing import Any

import pytest

from fastpack import machine

EVERYTHING = set(" ".join(machine.X86_LEVELS.values()).split())
Patch = pytest.MonkeyPatch


def on_x86(monkeypatch: Patch, features: set[str]) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(machine, "cpu_features", lambda: features)


def with_cpuinfo(monkeypatch: Patch, content: bytes | None) -> None:
    """Let /proc/cpuinfo hold `content`, or be missing."""
    honest = builtins.open

    def answer(path: Any, *arguments: Any, **options: Any) -> Any:
        if path != "/proc/cpuinfo":
            return honest(path, *arguments, **options)
        if content is None:
            raise FileNotFoundError(path)
        return io.BytesIO(content)

    monkeypatch.setattr(builtins, "open", answer)


@pytest.mark.parametrize(
    ("missing", "levels"),
    [
        ("", ["x86-64-v2", "x86-64-v3", "x86-64-v4"]),
        ("avx512vl", ["x86-64-v2", "x86-64-v3"]),
        ("avx512f avx512bw avx512cd avx512dq avx512vl", ["x86-64-v2", "x86-64-v3"]),
        ("movbe", ["x86-64-v2"]),  # a hypervisor that hides one feature of the third level: AVX-512 is then of no use
        ("fma avx2", ["x86-64-v2"]),
        ("sse4_2", ["generic"]),
        ("cx16 popcnt sse4_1 sse4_2 ssse3 avx2", ["generic"]),
    ],
)
def test_a_level_needs_all_its_features_and_those_below(missing: str, levels: list[str], monkeypatch: Patch) -> None:
    on_x86(monkeypatch, EVERYTHING - set(missing.split()))
    assert machine.supported_levels() == levels


def test_unknown_features_mean_the_lowest_level(monkeypatch: Patch) -> None:
    on_x86(monkeypatch, set())
    assert machine.supported_levels() == ["x86-64-v2"]


@pytest.mark.parametrize("name", ["x86_64", "AMD64", "amd64"])
def test_names_of_x86(name: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: name)
    assert machine.cpu_levels() == list(machine.X86_LEVELS)
    monkeypatch.setattr(sys, "maxsize", 2**31 - 1)  # a 32-bit Python on such a CPU
    assert machine.cpu_levels()[0] == "generic"


ARM = b"processor\t: 0\nBogoMIPS\t: 50.00\nFeatures\t: fp asimd sve\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n"


@pytest.mark.parametrize("name", ["aarch64", "arm64", "ppc64le", "riscv64", "i686", ""])
def test_other_machines_have_a_generic_and_their_own_level(name: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: name)
    with_cpuinfo(monkeypatch, ARM)
    levels = machine.cpu_levels()
    assert re.fullmatch(r"generic,host-[0-9a-f]{8}", ",".join(levels))
    assert machine.supported_levels() == levels
    assert machine.chosen_level()[0] == levels[1]


def test_the_host_level_is_that_of_exactly_this_cpu(monkeypatch: Patch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    seen = []
    for content in [ARM, ARM.replace(b"0xd40", b"0xd0c"), ARM.replace(b" sve", b""), b"cpu\t\t: POWER10\n", b"cpu\t\t: POWER9\n"]:
        with_cpuinfo(monkeypatch, content)
        seen.append(machine.cpu_levels()[1])
    assert len(set(seen)) == len(seen)
    # the same CPU with another clock, and with more cores
    with_cpuinfo(monkeypatch, ARM.replace(b"50.00", b"48.00") + ARM)
    assert machine.cpu_levels()[1] == seen[0]


@pytest.mark.parametrize("content", [None, b"", b"processor\t: 0\nBogoMIPS\t: 50.00\n"])
def test_cpus_that_cannot_be_told_apart_have_no_level_of_their_own(content: bytes | None, monkeypatch: Patch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "arm64")
    monkeypatch.setattr(sys, "platform", "darwin")
    with_cpuinfo(monkeypatch, content)
    assert machine.cpu_levels() == ["generic"]


def test_features_are_read_from_the_first_core_however_many_there_are(monkeypatch: Patch) -> None:
    core = b"processor\t: 0\nmodel name\t: \xff\xfe\nflags\t\t: " + b"x" * 20_000 + b" avx2 fma4\n\n"
    with_cpuinfo(monkeypatch, core + core.replace(b"avx2", b"avx512f") * 500)
    assert machine.cpu_features() >= {"avx2", "fma4"}
    assert not machine.cpu_features() & {"avx512f", "fma"}


NUMPY_2_0 = {"SSE42": True, "SSE41": True, "SSSE3": True, "POPCNT": True, "AVX": True, "F16C": True, "FMA3": True, "AVX2": True}
SKYLAKE = {f"AVX512{part}": True for part in ("F", "CD", "BW", "DQ", "VL")}


@pytest.mark.parametrize(
    ("known", "highest"),
    [
        (NUMPY_2_0 | SKYLAKE, "x86-64-v4"),
        (NUMPY_2_0 | SKYLAKE | {"AVX512VL": False}, "x86-64-v3"),
        (NUMPY_2_0, "x86-64-v3"),
        (NUMPY_2_0 | {"FMA3": False}, "x86-64-v2"),
        ({"SSE2": True, "SSE42": False}, "generic"),
        ({}, "x86-64-v2"),
    ],
)
def test_without_cpuinfo_numpy_is_asked(known: dict[str, bool], highest: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with_cpuinfo(monkeypatch, None)
    monkeypatch.setattr("numpy._core._multiarray_umath.__cpu_features__", known)
    assert machine.supported_levels()[-1] == highest


def test_without_cpuinfo_and_numpys_private_table_the_lowest_level_is_used(monkeypatch: Patch) -> None:
    with_cpuinfo(monkeypatch, None)
    monkeypatch.delattr("numpy._core._multiarray_umath.__cpu_features__")
    assert machine.cpu_features() == set()


def test_numpy_and_linux_agree_on_this_machine(monkeypatch: Patch) -> None:
    by_linux = machine.supported_levels()
    with_cpuinfo(monkeypatch, None)
    assert machine.supported_levels() == by_linux
