"""The command line: `fastpack demo`, `explain`, `plan`, `score`, `info` and `compile`.

A command reads its arguments, says what is wrong with them in one line, and hands over: exit code 2 for a mistake of the
user's, 1 where something is missing or fails, 130 after Ctrl-C.
"""

import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

import fastpack

if TYPE_CHECKING:
    from fastpack import Layout

LONGEST_DRAWN = 2**27  # steps; batch_sizes alone is then 1 GiB


class OneLineErrors(TyperGroup):
    """A group of commands whose usage errors are one line, too."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command; in standalone mode, exit."""
        if not standalone_mode:
            return super().main(args, "fastpack", complete_var, False, windows_expand_args, **extra)
        try:
            code = super().main(args, "fastpack", complete_var, False, windows_expand_args, **extra)
        except typer.Abort:
            code = 130
        except Exception as error:
            # typer carries its own copy of click or uses the installed one, by version: known by what it offers
            say, code = getattr(error, "format_message", None), getattr(error, "exit_code", None)
            if say is None or code is None:
                raise
            context = getattr(error, "ctx", None)
            typer.echo(f"{context.command_path if context else 'fastpack'}: {say()}", err=True)
        sys.exit(code if isinstance(code, int) else 0)


app = typer.Typer(
    cls=OneLineErrors,
    help="Sequences of unequal length on the CPU, packed.",
    no_args_is_help=False,
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def fail(command: str, message: str, code: int = 2) -> NoReturn:
    """Say in one line what is wrong, and exit."""
    typer.echo(f"fastpack {command}: {' '.join(message.split())}", err=True)
    raise typer.Exit(code)


def as_options(message: str) -> str:
    """Return what the library says of its arguments in terms of the command's options."""
    options = {"world_size": "--ranks", "results": "--result"}
    names = "max_tokens|max_sequences|batch_size|too_long|remainder|seed|world_size|results|keep"
    return re.sub(
        rf'(?<![\'"])\b({names})\b(?:="(\w+)")?',
        lambda found: options.get(found[1], f"--{found[1].replace('_', '-')}") + (f" {found[2]}" if found[2] else ""),
        message,
    )


def need(command: str, module: str, extra: str) -> None:
    """Exit with what to install where `module` is missing."""
    try:
        __import__(module)
    except ImportError as error:
        broken = "" if isinstance(error, ModuleNotFoundError) and (error.name or module).startswith(module) else f" ({error})"
        fail(command, f"this needs {module}{broken}: pip install 'fastpack[{extra}]'", 1)


def need_kernels(command: str) -> None:
    """Exit where fastpack has no kernels to run, or FASTPACK_CPU or FASTPACK_KERNELS is wrong."""
    from fastpack import machine

    try:
        machine.library()
    except ValueError as error:
        fail(command, str(error))
    except (OSError, RuntimeError) as error:
        fail(command, str(error), 1)


def new_console() -> Console:
    """Return where the commands print: colours on a terminal alone, and never an error over a character."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")
    return Console(highlight=False)


@app.callback()
def main(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    """Sequences of unequal length on the CPU, packed."""
    if version:
        typer.echo(f"fastpack {fastpack.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the picture goes: png, pdf or svg.")] = Path("fastpack-demo.png"),
    seeds: Annotated[int, typer.Option(min=1, max=100, help="Trainings by each layer; the first has --seed, the next the next.")] = 5,
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Of the weights, the order of the utterances and the noise.")] = 0,
    workers: Annotated[int, typer.Option(min=0, max=64, help="Processes that load and pack; 0 packs in this one.")] = 2,
    start_method: Annotated[str, typer.Option(help="How they start: fork, spawn or forkserver; the platform's own otherwise.")] = "",
) -> None:
    """See what packing does: three sequences step by step, then a model of nine real speakers trained, timed and drawn."""
    import multiprocessing

    methods = multiprocessing.get_all_start_methods()
    if start_method and start_method not in methods:
        fail("demo", f"--start-method is {start_method!r}, but can be {', '.join(methods)} here")
    check_writable("demo", "--output", output)
    need("demo", "torch", "torch")
    need("demo", "matplotlib", "plot")
    need_kernels("demo")
    from fastpack.demo import run

    try:
        run(new_console(), output, list(range(seed, seed + seeds)), workers, start_method or None)
    except OSError as error:  # the disk is full by now, or no process can be started
        fail("demo", str(error), 1)


@app.command(context_settings={"ignore_unknown_options": True})  # so that -3 is a bad length, not a bad option
def explain(
    lengths: Annotated[list[str] | None, typer.Argument(help="The sequences' lengths, as in: 3 2 4", show_default=False)] = None,
    file: Annotated[
        str, typer.Option("--file", "-f", help="Read the lengths from this file; - is standard input.", show_default=False)
    ] = "",
    png: Annotated[Path | None, typer.Option(help="Draw the layout into this file, too: png, pdf or svg.", show_default=False)] = None,
) -> None:
    """Draw the packed layout of some lengths: which row goes where, the index arrays, what padding would cost."""
    if bool(lengths) == bool(file):
        fail("explain", "give the lengths either as arguments, as in `fastpack explain 3 2 4`, or by --file")
    if png is not None:
        check_writable("explain", "--png", png)
        need("explain", "matplotlib", "plot")
    need_kernels("explain")
    layout = layout_of(read(file) if file else " ".join(lengths or ()), file)
    console = new_console()
    from fastpack import show

    show.terminal(layout, console)
    if png is not None:
        try:
            show.figure(layout).savefig(png, format=png.suffix[1:].lower())
        except OSError as error:  # the disk is full by now
            fail("explain", str(error), 1)
        console.print(f"drawn in {escape(str(png))}", soft_wrap=True)


@app.command()
def plan(
    file: Annotated[str, typer.Argument(help="Lengths: .npy, .npz (lengths or offsets), .parquet, or text.", show_default=False)],
    max_tokens: Annotated[int | None, typer.Option(help="The most real steps of a batch.", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Sequences of a batch, in place of --max-tokens.", show_default=False)] = None,
    max_sequences: Annotated[int | None, typer.Option(help="The most sequences of a batch.", show_default=False)] = None,
    bins: Annotated[bool, typer.Option("--bins", help="Fill batches to the last step: first fit decreasing.")] = False,
    too_long: Annotated[str, typer.Option(help="A sequence beyond --max-tokens: error, alone (a batch of its own) or drop.")] = "error",
    ranks: Annotated[int, typer.Option(help="Processes that share the data.")] = 1,
    remainder: Annotated[str, typer.Option(help="Sequences beyond a multiple of --ranks: keep, drop or repeat.")] = "keep",
    seed: Annotated[int, typer.Option(help="Of the shuffling.")] = 0,
    offsets: Annotated[bool, typer.Option("--offsets", help="The file holds offsets, 0 and where each sequence ends.")] = False,
    column: Annotated[str, typer.Option(help="Of a .parquet: its column of lists, or of lengths.", show_default=False)] = "",
    png: Annotated[Path | None, typer.Option(help="Draw it into this file, too: png, pdf or svg.", show_default=False)] = None,
) -> None:
    """Tell what a batch sampler makes of a data set: padding spared, sizes of batches, balance of ranks."""
    if (max_tokens is None) == (batch_size is None) or (batch_size is not None and (bins or max_sequences is not None)):
        fail("plan", "give either --max-tokens, with or without --max-sequences and --bins, or --batch-size alone")
    if png is not None:
        check_writable("plan", "--png", png)
        need("plan", "matplotlib", "plot")
    if Path(file).suffix.lower() == ".parquet":
        need("plan", "pyarrow", "arrow")
    need_kernels("plan")
    from fastpack import lengths_file, show
    from fastpack.sampling import BatchSampler, BinPackingBatchSampler, LengthGroupedBatchSampler, TokenBudgetBatchSampler

    try:
        lengths = lengths_file.read(file, offsets, column)
    except (OSError, TypeError, ValueError, OverflowError) as error:
        said, full = getattr(error, "strerror", None) or str(error), str(Path(file).absolute())
        fail("plan", said.replace(full, file) if full in said else f"{file or 'FILE'}: {said}")
    try:
        sampler: BatchSampler
        shared: dict[str, Any] = {"seed": seed, "rank": 0, "world_size": ranks, "remainder": remainder}
        if max_tokens is None:
            sampler = LengthGroupedBatchSampler(lengths, batch_size or 0, **shared)
        else:
            kind = BinPackingBatchSampler if bins else TokenBudgetBatchSampler
            sampler = kind(lengths, max_tokens, max_sequences=max_sequences, too_long=too_long, **shared)
        report = sampler.report()
    except (ValueError, OverflowError) as error:
        fail("plan", as_options(str(error)))
    console = new_console()
    show.plan(report, console)
    if png is not None:
        try:
            show.plan_figure(report).savefig(png, format=png.suffix[1:].lower())
        except OSError as error:  # the disk is full by now
            fail("plan", str(error), 1)
        console.print(f"drawn in {escape(str(png))}", soft_wrap=True)


@app.command()
def score(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="A state dict: .npz, .safetensors; or .pt, which needs torch.", show_default=False)
    ],
    inputs: Annotated[list[Path], typer.Argument(metavar="INPUT", help="Parquet files, or folders of them.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The folder that gets the Parquet files.", show_default=False)],
    column: Annotated[
        str, typer.Option(help="The column of sequences; the only one of lists, where there is one.", show_default=False)
    ] = "",
    result: Annotated[list[str] | None, typer.Option(help="last (states; the default), rows (of each step); repeatable.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="A column to keep; repeatable.", show_default=False)] = None,
    keep_all: Annotated[bool, typer.Option("--keep-all", help="Keep all columns.")] = False,
    prefix: Annotated[str, typer.Option(help="What stands before the weights' names, as encoder.rnn.", show_default=False)] = "",
    nonlinearity: Annotated[str, typer.Option(help="Of an RNN: tanh or relu.", show_default=False)] = "",
    threads: Annotated[int, typer.Option(min=1, help="Threads, of each worker.")] = 1,
    ray: Annotated[str, typer.Option(help="Run on this Ray cluster: host:port, auto, or local.", show_default=False)] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove another model's or input's parts from the folder.")] = False,
) -> None:
    """Run a layer along the sequences in Parquet files. Interrupted, it goes on where it was when run again."""
    if keep and keep_all:
        fail("score", "give either --keep or --keep-all")
    need("score", "pyarrow", "arrow")
    extra = {".safetensors": "safetensors", ".pt": "torch", ".pth": "torch", ".bin": "torch"}.get(model.suffix.lower())
    if extra:
        need("score", extra, extra)
    if ray:
        need("score", "ray", "ray")
    need_kernels("score")
    from fastpack import model_file, parts, score_files
    from fastpack.scoring import Scorer

    try:
        found = model_file.read(model, prefix, nonlinearity)
    except (OSError, TypeError, ValueError) as error:
        fail("score", f"MODEL {model}: {getattr(error, 'strerror', None) or error}")
    try:
        files = parts.inputs(inputs)
        names = parts.columns(files[0]) if keep_all else keep or []
        column = column or parts.only_lists(files[0])
    except (ValueError, OSError) as error:
        fail("score", parts.said(error))
    try:
        scorer = Scorer(found.layer, column, tuple(result or ["last"]), tuple(names), threads)
    except ValueError as error:
        fail("score", as_options(str(error)))
    try:
        score_files.run(new_console(), parts.plan(files, scorer, found.digest, output), overwrite, ray)
    except (TypeError, ValueError, OSError) as error:
        fail("score", parts.said(error))
    except score_files.UnfinishedError as error:
        fail("score", str(error), 130 if isinstance(error.__cause__, KeyboardInterrupt) else 1)


@app.command()
def info() -> None:
    """Tell what fastpack runs on: versions, CPU, kernels, threads, caches."""
    from fastpack import about

    if not about.show(new_console()):
        raise typer.Exit(1)


@app.command(name="compile")
def compile_(
    levels: Annotated[
        list[str] | None, typer.Argument(help="CPU levels, as `fastpack info` names them; this CPU's otherwise.", show_default=False)
    ] = None,
) -> None:
    """Compile the kernels into the per-user cache folder, for where no ahead-built library fits."""
    from fastpack import about, machine

    known = machine.cpu_levels()
    for level in levels or ():
        if level not in known:
            fail("compile", f"{level!r} is no CPU level: the levels here are {', '.join(known)}")
    need("compile", "llvmlite", "jit")
    try:
        chosen = list(dict.fromkeys(levels or [machine.chosen_level()[0]]))
        about.compile_into_cache(new_console(), chosen)
    except ValueError as error:  # FASTPACK_CPU
        fail("compile", str(error))
    except (ImportError, OSError, RuntimeError) as error:
        fail("compile", f"{error}", 1)


def check_writable(command: str, option: str, path: Path) -> None:
    """Exit where a picture cannot be written to `path`, before any work is done; what is there stays untouched."""
    if path.suffix.lower() not in (".png", ".pdf", ".svg"):
        fail(command, f"{option} is {str(path)!r}: the name must end in .png, .pdf or .svg")
    existed = os.path.lexists(path)
    try:
        with open(path, "ab"):
            pass
        if not existed:
            path.unlink()
    except (OSError, ValueError) as error:
        fail(command, f"{option} cannot be written: {path}: {getattr(error, 'strerror', None) or error}")


def read(file: str) -> str:
    """Return the text of a file, or of standard input."""
    try:
        content = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except (OSError, ValueError) as error:
        fail("explain", f"--file cannot be read: {file}: {getattr(error, 'strerror', None) or error}")
    return content.decode("utf-8-sig", errors="replace")


def layout_of(text: str, file: str) -> "Layout":
    """Return the layout of the lengths in `text`; exit with the entry that is none."""
    from fastpack import lengths_file

    if not text.replace(",", " ").strip():
        fail("explain", f"no lengths in {'standard input' if file == '-' else file or 'the arguments'}")
    try:
        return fastpack.Layout(lengths_file.parse(text, bool(file), LONGEST_DRAWN, f"but explain draws at most {LONGEST_DRAWN:,} steps"))
    except ValueError as error:
        fail("explain", str(error))
