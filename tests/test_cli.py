"""The command line: what each command prints, and how it fails; tests/test_demo.py has the demo."""

import re
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import fastpack
from fastpack import compiler, machine
from fastpack.cli import app


def run(*arguments, stdin=None, **environment):
    return CliRunner().invoke(app, [str(item) for item in arguments], input=stdin, env={"COLUMNS": "80", "LINES": "25"} | environment)


def one_line(result, code):
    """Return the only line of a failure, which is on standard error."""
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    (line,) = result.stderr.splitlines()
    return line


# --- explain


@pytest.mark.parametrize("arguments", [("3", "2", "4"), ("3,2,4",), ("3,", "2", "4")])
def test_explain(arguments):
    result = run("explain", *arguments)
    assert result.exit_code == 0
    for line in ("batch_sizes       [3, 3, 2, 1]", "sorted_indices    [2, 0, 1]", "unsorted_indices  [1, 2, 0]"):
        assert line in result.stdout.splitlines()
    assert "9 of 12 padded cells filled (75.0%): packing saves 25.0%" in result.stdout
    assert "\x1b" not in result.stdout  # no colour into a pipe


def test_explain_reads_a_file_and_standard_input(tmp_path):
    path = tmp_path / "lengths.txt"
    path.write_bytes(b"\xef\xbb\xbf3 2,\r\n4\n\n")
    expected = run("explain", 3, 2, 4).stdout
    assert run("explain", "--file", path).stdout == expected
    assert run("explain", "--file", "-", stdin="3,2\n4").stdout == expected


def test_explain_a_million(tmp_path):
    path = tmp_path / "lengths.txt"
    path.write_text("\n".join(map(str, np.random.default_rng(0).integers(0, 500, 10**6).tolist())))
    begin = time.monotonic()
    result = run("explain", "--file", path)
    assert time.monotonic() - begin < 10
    assert result.stdout.startswith("1,000,000 sequences, up to 499 steps")
    assert len(result.stdout.splitlines()) < 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "give the lengths either as arguments"),
        (("3", "--file", "-"), "give the lengths either as arguments"),
        (("3", "x", "4"), "entry 2 is 'x', not a whole number"),
        (("3", "1.0"), "entry 2 is '1.0', not a whole number"),
        (("3", "-1"), "entry 2 is '-1', but a length is 0 or more"),
        (("9" * 30,), "but explain draws at most 134,217,728 steps"),
        (("9" * 5000,), f"entry 1 is '{'9' * 39}…', but explain draws at most 134,217,728 steps"),
        (("--file", "no/such/file"), "--file cannot be read: no/such/file: No such file"),
        (("--file", "."), "--file cannot be read: .: Is a directory"),
        (("3", "--png", "no/such/folder.png"), "--png cannot be written: no/such/folder.png: No such file"),
        (("3", "--png", "picture.txt"), "the name must end in .png, .pdf or .svg"),
        (("3", "--png"), "requires an argument"),
    ],
)
def test_explain_says_what_is_wrong(arguments, message):
    assert message in one_line(run("explain", *arguments), 2)


def test_explain_names_the_line_of_a_bad_entry():
    assert "entry 4 (line 3) is 'x9'" in one_line(run("explain", "--file", "-", stdin="3 2\n\n4,x9\n1"), 2)
    assert "no lengths in standard input" in one_line(run("explain", "--file", "-", stdin="\n"), 2)


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_explain_draws_a_picture(tmp_path, suffix, start):
    path = tmp_path / f"layout.{suffix}"
    result = run("explain", 3, 2, 4, "--png", path)
    assert result.exit_code == 0
    assert f"drawn in {path}" in result.stdout
    assert path.read_bytes().startswith(start)


def test_a_failing_command_leaves_what_was_there(tmp_path):
    path = tmp_path / "kept.png"
    path.write_bytes(b"mine")
    one_line(run("explain", "x", "--png", path), 2)
    assert path.read_bytes() == b"mine"
    one_line(run("explain", "x", "--png", tmp_path / "other.png"), 2)
    assert [item.name for item in tmp_path.iterdir()] == ["kept.png"]


# --- info


def test_info(child):
    text = child(
        "import sys; from fastpack.cli import app\n"
        "try: app(['info'])\n"
        "except SystemExit as end: print(end.code, sorted({'numba', 'llvmlite', 'torch'} & set(sys.modules)))",
        COLUMNS="200",
    )
    library = machine.library()
    for part in (fastpack.__version__, np.__version__, library.level, library.reason, library.origin, "cache folder", "vector width"):
        assert part in text
    assert text.endswith("0 []\n")  # nothing heavy was imported


def test_info_without_kernels_fails_but_tells(child):
    text = child("from fastpack.cli import app; app(['info'])", status=1, FASTPACK_CPU="pdp-11", COLUMNS="200")
    assert "none: FASTPACK_CPU is 'pdp-11'" in text
    assert "numpy" in text
    assert "fastpack explain: FASTPACK_CPU is 'pdp-11'" in child(
        "from fastpack.cli import app; app(['explain', '3'])", status=2, FASTPACK_CPU="pdp-11"
    )


# --- compile


def test_compile_keeps_the_kernels_of_each_level(tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr(compiler, "object_code", lambda level: compiled.append(level) or b"code")
    cache = {"FASTPACK_CACHE_DIR": str(tmp_path / "cache")}
    levels = machine.cpu_levels()
    result = run("compile", *levels, **cache)
    assert result.exit_code == 0, result.output
    assert compiled == levels
    files = list((tmp_path / "cache").glob("kernels-*.o"))
    assert len(files) == len(levels)
    for path in files:
        assert str(path) in result.stdout
    again = run("compile", levels[0], **cache)
    assert compiled == levels
    assert "was there already" in again.stdout
    run("compile", **cache)
    assert compiled == levels  # this machine's level was among them


def test_compile_says_what_is_wrong(tmp_path, monkeypatch):
    assert "'vax' is no CPU level: the levels here are " in one_line(run("compile", "vax"), 2)
    monkeypatch.setattr(compiler, "object_code", lambda level: b"code")
    level = machine.cpu_levels()[0]
    (tmp_path / "file").write_text("")
    failed = run("compile", level, FASTPACK_CACHE_DIR=str(tmp_path / "file" / "cache"))
    assert failed.exit_code == 1
    assert "does not keep it" in failed.stderr
    monkeypatch.setattr(compiler, "object_code", lambda level: (_ for _ in ()).throw(RuntimeError("no luck")))
    failed = run("compile", level, FASTPACK_CACHE_DIR=str(tmp_path / "other"))
    assert (failed.exit_code, failed.stderr) == (1, "fastpack compile: no luck\n")


# --- what is missing, what is mistyped


@pytest.mark.parametrize(
    ("hidden", "arguments", "install"),
    [
        ("typer", ["info"], "fastpack[cli]"),
        ("rich", ["info"], "fastpack[cli]"),
        ("torch", ["demo"], "fastpack[torch]"),
        ("matplotlib", ["demo"], "fastpack[plot]"),
        ("matplotlib", ["explain", "3", "--png", "layout.png"], "fastpack[plot]"),
        ("llvmlite", ["compile"], "fastpack[jit]"),
    ],
)
def test_a_missing_extra_is_one_line(child, hidden, arguments, install):
    code = f"import sys; sys.modules[{hidden!r}] = None; sys.argv[1:] = {arguments}\nfrom fastpack.__main__ import main; main()"
    (line,) = child(code, status=1).splitlines()
    assert hidden in line
    assert f"pip install '{install}'" in line


def test_explain_needs_no_extra_but_the_command_lines(child):
    code = "import sys; sys.modules.update(torch=None, matplotlib=None, numba=None)\nfrom fastpack.cli import app; app(['explain', '3'])"
    assert "batch_sizes" in child(code)


@pytest.mark.parametrize(
    "arguments",
    [["bogus"], ["demo", "--bogus"], ["demo", "--workers", "-1"], ["demo", "--seeds", "0"], ["demo", "--seed", "x"], ["info", "3"]],
)
def test_a_usage_error_is_one_line(arguments):
    assert one_line(run(*arguments), 2).startswith("fastpack")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a full disk")
def test_a_full_disk_is_one_line(tmp_path):
    (tmp_path / "full.png").symlink_to("/dev/full")
    result = run("explain", 3, "--png", tmp_path / "full.png")
    assert (result.exit_code, len(result.stderr.splitlines())) == (1, 1)
    assert "No space left" in result.stderr


def test_help_and_version():
    assert {"demo", "explain", "plan", "info", "compile"} <= set(re.findall(r"\w+", run().stdout))
    assert run("--version").stdout == f"fastpack {fastpack.__version__}\n"
