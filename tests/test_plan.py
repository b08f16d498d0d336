"""`fastpack plan`: what it prints and draws, the files that it reads, how it fails."""

from io import StringIO

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet
from rich.console import Console

from fastpack import BinPackingBatchSampler, LengthGroupedBatchSampler, TokenBudgetBatchSampler, lengths_file, show
from tests.test_cli import one_line, run

LENGTHS = np.clip(np.random.default_rng(0).gamma(2, 120, 500), 11, 2494).astype(np.int64)


@pytest.fixture
def npy(tmp_path):
    np.save(tmp_path / "lengths.npy", LENGTHS)
    return tmp_path / "lengths.npy"


def lines_of(result):
    assert result.exit_code == 0, result.output
    return result.stdout.splitlines()


def row(lines, name):
    (line,) = [line for line in lines if line.startswith(name)]
    return line[len(name) :].split()


# --- what it prints


@pytest.mark.parametrize(
    ("options", "sampler"),
    [
        (("--max-tokens", 4096), lambda: TokenBudgetBatchSampler(LENGTHS, 4096)),
        (("--max-tokens", 4096, "--seed", 3), lambda: TokenBudgetBatchSampler(LENGTHS, 4096, seed=3)),
        (("--max-tokens", 4096, "--max-sequences", 7), lambda: TokenBudgetBatchSampler(LENGTHS, 4096, max_sequences=7)),
        (("--max-tokens", 4096, "--bins"), lambda: BinPackingBatchSampler(LENGTHS, 4096)),
        (("--batch-size", 16), lambda: LengthGroupedBatchSampler(LENGTHS, 16)),
    ],
)
def test_plan(npy, options, sampler):
    lines = lines_of(run("plan", npy, *options))
    report = sampler().report()
    K = len(report.batch_steps)
    assert lines[0] == f"500 sequences, {LENGTHS.sum():,} real steps, in {K} batches"
    sizes = report.batch_sequences
    assert row(lines, "sequences a batch") == [f"{sizes.min():,}", f"{sizes.mean():,.1f}", f"{sizes.max():,}"]
    steps = report.batch_steps
    assert row(lines, "real steps a batch") == [f"{steps.min():,}", f"{steps.mean():,.1f}", f"{steps.max():,}"]
    assert row(lines, "padding, if padded")[0] == f"{report.padding:.1%}"
    assert row(lines, "padding, if shuffled")[0] == f"{report.shuffled_padding:.1%}"
    budgets = [line for line in lines if line.startswith("budget filled")]
    assert len(budgets) == ("--max-tokens" in options)
    assert all(f"{report.filled:.1%}" in line for line in budgets)
    assert not [line for line in lines if line.startswith(("ranks", "left out", "taken twice"))]


def test_plan_for_ranks(npy):
    lines = lines_of(run("plan", npy, "--max-tokens", 4096, "--ranks", 4))
    report = TokenBudgetBatchSampler(LENGTHS, 4096, rank=2, world_size=4).report()
    assert lines[0].endswith("batches on each of 4 ranks")
    assert row(lines, "real steps a rank")[0] == f"{report.rank_steps.min():,}"
    assert row(lines, "ranks differ")[0] == f"{report.imbalance:.2%}"
    assert row(lines, "ranks wait")[0] == f"{report.waiting:.2%}"


@pytest.mark.parametrize(
    ("lengths", "options", "first"),
    [
        ("1", (), "1 sequence, 1 real step, in 1 batch"),
        ("0 2", (), "2 sequences, 2 real steps, in 1 batch"),
        ("9 9", (), "2 sequences, 18 real steps, in 2 batches"),
        ("1", ("--ranks", 2, "--remainder", "repeat"), "2 sequences, 2 real steps, in 1 batch on each of 2 ranks"),
        ("1 1 1", ("--ranks", 2, "--remainder", "drop"), "2 sequences, 2 real steps, in 1 batch on each of 2 ranks"),
    ],
)
def test_one_of_something_is_not_several(tmp_path, lengths, options, first):
    (tmp_path / "a.txt").write_text(lengths)
    lines = lines_of(run("plan", tmp_path / "a.txt", "--max-tokens", 9, *options))
    assert lines[0] == first
    if options:
        assert row(lines, {"repeat": "taken twice", "drop": "left out"}[options[-1]]) == ["1", "sequence"]


def test_plan_tells_what_is_left_out_and_taken_twice(npy):
    long = int((LENGTHS > 500).sum())
    lines = lines_of(run("plan", npy, "--max-tokens", 500, "--too-long", "drop"))
    assert row(lines, "left out") == [str(long), "sequences"]
    console = Console(width=80, record=True, file=StringIO())
    show.plan(TokenBudgetBatchSampler([3, 4, 5], 9, rank=0, world_size=2, remainder="repeat").report(), console)
    assert row(console.export_text().splitlines(), "taken twice") == ["1", "sequence"]


@pytest.mark.parametrize(
    "options", [{"world_size": 1}, {"world_size": 3, "remainder": "repeat"}, {"world_size": 2, "too_long": "drop"}], ids=str
)
def test_a_report_is_printed_as_the_command_prints_it(options):
    report = TokenBudgetBatchSampler(range(1, 1000), 998 if "too_long" in options else 4000, rank=0, **options).report()
    console = Console(file=StringIO(), width=200, color_system=None)
    show.plan(report, console)
    assert str(report) == "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
    assert "real steps a batch" in str(report)


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_plan_draws_a_picture(npy, tmp_path, suffix, start):
    path = tmp_path / f"plan.{suffix}"
    assert f"drawn in {path}" in run("plan", npy, "--max-tokens", 4096, "--ranks", 2, "--png", path).stdout.replace("\n", "")
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("lengths", [[0, 0], [5], [3, 0, 4]])
def test_figure_of_small_data_sets(lengths):
    drawn = show.plan_figure(TokenBudgetBatchSampler(lengths, 9).report())
    drawn.canvas.draw()
    padding = drawn.axes[2]
    numbered = [axis for axes in drawn.axes for axis in (axes.xaxis, axes.yaxis) if axis is not padding.yaxis]
    assert all(value == round(value) for axis in numbered for value in axis.get_majorticklocs().tolist())
    assert drawn.axes[3].get_title() == "one rank"
    assert [round(bar.get_width(), 6) for bar in padding.patches[3:]] == [sum(lengths)] * 3


# --- the files it reads


def test_every_kind_of_file_holds_the_same_lengths(tmp_path, npy):
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    np.save(tmp_path / "offsets.npy", offsets.astype(">i4"))
    np.savez(tmp_path / "lengths.npz", values=np.ones(3), lengths=LENGTHS)
    np.savez(tmp_path / "offsets.npz", values=np.ones(3), offsets=offsets)
    np.savez_compressed(tmp_path / "one.NPZ.npz", LENGTHS)
    (tmp_path / "lengths.txt").write_text("\n".join(map(str, LENGTHS)))
    (tmp_path / "offsets").write_text(" ".join(map(str, offsets)))
    for file, as_offsets in [
        (npy, False),
        (tmp_path / "offsets.npy", True),
        (tmp_path / "lengths.npz", False),
        (tmp_path / "offsets.npz", False),
        (tmp_path / "one.NPZ.npz", False),
        (tmp_path / "lengths.txt", False),
        (tmp_path / "offsets", True),
    ]:
        found = lengths_file.read(str(file), as_offsets)
        assert found.dtype == np.int64
        assert np.array_equal(found, LENGTHS)


KINDS = [pa.list_(pa.int32()), pa.large_list(pa.string()), pa.list_(pa.list_(pa.float32(), 2))]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_lists_of_a_parquet_file_have_lengths(tmp_path, kind):
    value = {pa.int32(): 7, pa.string(): "a"}.get(kind.value_type, [1.0, 2.0])
    counts = [*LENGTHS[:40].tolist(), 0]
    table = pa.table({"name": ["x"] * 41, "tokens": pa.array([[value] * count for count in counts], kind), "frames": counts})
    parquet.write_table(table, tmp_path / "a.parquet", row_group_size=9)
    for column, wanted in (("", counts), ("tokens", counts), ("frames", counts)):
        found = lengths_file.read(str(tmp_path / "a.parquet"), column=column)
        assert (found.dtype, found.tolist()) == (np.int64, wanted)
    assert lines_of(run("plan", tmp_path / "a.parquet", "--max-tokens", 4096))[0].startswith("41 sequences, ")


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"a": [[1]], "b": [[2]]}, (), "has the columns of lists 'a', 'b': choose one of them, by --column"),
        ({"a": [1]}, (), "has no column of lists: choose one of lengths, by --column"),
        ({"a": [[1]]}, ("--column", "b"), "column 'b' is missing"),
        ({"a": ["x"]}, ("--column", "a"), "column 'a' is of Arrow type string, but lengths are those of lists, or integers"),
        ({"a": [[1], None]}, (), "column 'a' is null in row 1"),
        ({"a": [3, -1]}, ("--column", "a"), "lengths[1] is -1"),
        ({"a": pa.nulls(2)}, (), "has no column of lists: choose one of lengths, by --column"),
        ({"a": pa.nulls(2)}, ("--column", "a"), "column 'a' is of Arrow type null (no values but nulls), but lengths are those of lists"),
        ({"a": pa.array([2**63 + 5], pa.uint64())}, ("--column", "a"), "lengths[0] is 9223372036854775813, beyond the range of int64"),
        ({"a": pa.array([], pa.list_(pa.int8()))}, (), "has no row"),
        (None, (), "is no Parquet file, or is truncated"),
    ],
)
def test_parquet_files_that_hold_no_lengths(tmp_path, columns, options, message):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1") if columns is None else parquet.write_table(pa.table(columns), path)
    line = one_line(run("plan", path, "--max-tokens", 9, *options), 2)
    assert message in line
    assert line.count("a.parquet") == 1


@pytest.mark.parametrize("content", [b"no Parquet", b"", "empty", "columns"], ids=str)
def test_messages_name_a_parquet_file_as_it_was_given(tmp_path, monkeypatch, content):
    monkeypatch.chdir(tmp_path)
    table = pa.table({"a": pa.array([[1]] * (content == "columns"), pa.list_(pa.int8()))})
    (tmp_path / "a.parquet").write_bytes(content) if isinstance(content, bytes) else parquet.write_table(table, "a.parquet")
    line = one_line(run("plan", "a.parquet", "--max-tokens", 9, *(("--column", "b") if content == "columns" else ())), 2)
    assert line.count("a.parquet") == 1
    assert str(tmp_path) not in line


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.txt", "1 2", ("--column", "a"), "a.txt: no Parquet file, so there is no column 'a' in it"),
        ("a.txt", "3\n4\nx\n", (), "a.txt: entry 3 (line 3) is 'x', not a whole number"),
        ("a.txt", "3\n-4\n", (), "entry 2 (line 2) is '-4', but a length is 0 or more"),
        ("a.txt", "9" * 30, (), "but there can be at most 2,305,843,009,213,693,952 steps"),
        ("a.txt", f"{2**61} " * 4, (), "a.txt: lengths add up to more rows than int64 can count"),
        ("a.txt", f"{2**61} 1", (), "lengths add up to 2305843009213693953 steps, but"),
        ("a.txt", "9" * 5000, (), f"a.txt: entry 1 (line 1) is '{'9' * 39}…', but there can be at most 2,305,843,009,213,693,952 steps"),
        ("a.txt", "nan", (), "a.txt: entry 1 (line 1) is 'nan', not a whole number"),
        ("a.txt", "", (), "a.txt: no lengths"),
        ("a.bin", b"\x93\xff", (), "a.bin: no text in UTF-8; files that are none have names in .npy, .npz, .parquet"),
        ("a.txt", "1 2", ("--offsets",), "offsets[0] is 1, but offsets start at 0"),
        ("a.npy", "no array", (), "a.npy: not an array of numbers in NumPy's format"),
        ("a.npy", "", (), "a.npy: not an array of numbers in NumPy's format"),
        ("a.npz", "no array", (), "a.npz: not arrays of numbers in NumPy's format"),
        ("a.npy", np.ones(3), (), "a.npy: lengths is of dtype float64"),
        ("a.npy", np.ones((3, 2), int), (), "a.npy: lengths has the shape (3, 2), but needs one dimension"),
        ("a.npy", np.array([None]), (), "a.npy: not an array of numbers in NumPy's format"),
        ("a.npz", {"a": np.ones(3), "b": np.ones(2)}, (), "a.npz: has the arrays a, b, but none called lengths or offsets"),
        ("a.npz", {}, (), "a.npz: has the arrays none, but none called lengths or offsets"),
        ("a.npz", {"offsets": np.array([0, 3, 2])}, (), "offsets[2] is 2, but offsets never decrease"),
        ("a.npz", {"offsets": np.array([], int)}, (), "offsets has 0 entries, but needs B + 1"),
        ("a.npz", {"lengths": np.array([None])}, (), "a.npz: not arrays of numbers in NumPy's format"),
    ],
)
def test_files_that_hold_no_lengths(tmp_path, monkeypatch, name, content, options, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, (str, bytes)):
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    elif isinstance(content, dict):
        np.savez(name, **content)
    else:
        np.save(name, content)
    assert message in one_line(run("plan", name, "--max-tokens", 9, *options), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give either --max-tokens, with or without --max-sequences and --bins, or --batch-size alone"),
        (("--max-tokens", 9, "--batch-size", 9), "give either --max-tokens"),
        (("--batch-size", 9, "--bins"), "give either --max-tokens"),
        (("--batch-size", 9, "--max-sequences", 2), "give either --max-tokens"),
        (("--batch-size", 0), "plan: --batch-size is 0, but needs at least 1"),
        (("--max-tokens", 0), "plan: --max-tokens is 0, but needs at least 1"),
        (
            ("--max-tokens", 9),
            "but --max-tokens is 9: raise it, or pass --too-long alone to make a batch",
        ),
        (("--max-tokens", 9, "--too-long", "cut"), "plan: --too-long is 'cut', but can only be 'error' or 'alone' or 'drop'"),
        (("--max-tokens", 4096, "--ranks", 0), "plan: --ranks is 0, but needs at least 1"),
        (
            ("--max-tokens", 4096, "--ranks", 501),
            "500 sequences for 501 ranks, less than one each: pass --remainder repeat, or",
        ),
        (("--max-tokens", 4096, "--seed", -1), "plan: --seed is -1, but needs at least 0"),
        (("--batch-size", 9, "--remainder", "pad"), "plan: --remainder is 'pad', but can only be 'keep' or 'drop' or 'repeat'"),
        (("--max-tokens", "many"), "Invalid value for '--max-tokens'"),
        (("--max-tokens", 4096, "--png", "picture.txt"), "the name must end in .png, .pdf or .svg"),
    ],
)
def test_plan_says_what_is_wrong(npy, options, message):
    assert message in one_line(run("plan", npy, *options), 2)


def test_a_file_that_cannot_be_read(tmp_path):
    assert "no/such/file: No such file" in one_line(run("plan", "no/such/file", "--max-tokens", 9), 2)
    assert "Is a directory" in one_line(run("plan", tmp_path, "--max-tokens", 9), 2)
    assert "plan: FILE: Is a directory" in one_line(run("plan", "", "--max-tokens", 9), 2)
    (tmp_path / "a.parquet").mkdir()
    assert "a.parquet: Is a directory" in one_line(run("plan", tmp_path / "a.parquet", "--max-tokens", 9), 2)
    assert "Missing argument" in one_line(run("plan", "--max-tokens", 9), 2)


def test_a_file_that_may_not_be_read(npy, tmp_path, monkeypatch):
    """As of another user's: the superuser may read any."""
    parquet.write_table(pa.table({"a": [[1]]}), tmp_path / "a.parquet")
    (tmp_path / "a.txt").write_text("1")

    def refused(file, *_args, **_options):
        raise PermissionError(13, "Permission denied", str(file))

    monkeypatch.setattr("builtins.open", refused)
    monkeypatch.setattr("io.open", refused)
    for name in ("a.parquet", "a.txt", npy.name):
        assert one_line(run("plan", tmp_path / name, "--max-tokens", 9), 2).endswith(f"{name}: Permission denied")
