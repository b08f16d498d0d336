"""Who may import whom, read from the sources; and what is loaded in fresh and in bare processes."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from fastpack import fallback, machine
from tests.conftest import Child

ROOT = Path(machine.PACKAGE)
# modules of the NumPy level, present and planned, lowest first
NUMPY_LEVEL = [
    *("layout", "headers", "checks", "moves", "packed", "packing", "sequences"),
    *("cells", "weights", "threads", "recurrent", "sampling", "storage", "npz", "arrow", "parquet", "scoring", "parts", "ray"),
]
REFERENCE = ["reference", "reference_layers"]
PROGRAM = [
    "cli",
    "about",
    "lengths_file",
    "model_file",
    "score_files",
    "demo",
    "__main__",
]  # what runs as a program: it may import anything


class Rule(NamedTuple):
    """No module outside `exempt` (within `who`, if given) imports any of `what`, unless in `but`; all by the first names."""

    text: str
    what: list[str]
    exempt: list[str]
    who: list[str] | None = None
    but: list[str] = []  # noqa: RUF012  a named tuple's default, never changed


def ours(*names: str) -> list[str]:
    return [f"fastpack.{name}" for name in names]


RULES = [
    Rule("numba is for kernels and the compiler", ["numba"], ours("kernels", "compiler")),
    Rule("llvmlite is for kernels, the compiler and the fallback", ["llvmlite"], ours("kernels", "compiler", "fallback")),
    Rule("torch is for fastpack.torch", ["torch", "fastpack.torch"], ours("torch", *PROGRAM)),
    Rule("kernels know nothing but their blocks", ["fastpack"], [], ours("kernels"), ours("kernels", "blocks")),
    Rule("nobody imports kernels but the compiler", ["fastpack.kernels"], ours("kernels", "compiler")),
    Rule("nobody imports the reference", ours(*REFERENCE), []),
    Rule("nobody imports a program, a bench or a test", [*ours(*PROGRAM), "bench", "tests"], ours(*PROGRAM)),
    Rule("the compiler is for the fallback", ["fastpack.compiler"], ours("fallback", "compiler")),
    Rule("the fallback is for the machine", ["fastpack.fallback"], ours("machine", *PROGRAM)),
    Rule("typer, rich and matplotlib are for programs and drawings", ["typer", "rich", "matplotlib"], ours("show", *PROGRAM)),
    Rule("pyarrow is for tables and files of them", ["pyarrow"], ours("arrow", "hugging_face", "parquet", "scoring", "parts")),
    Rule("ray is for fastpack.ray", ["ray", "fastpack.ray"], ours("ray", *PROGRAM)),
    Rule("blocks are plain names", ["fastpack", "numpy"], [], ours("blocks"), ours("blocks")),
    Rule("the machine knows nothing of arrays' rules", ["fastpack"], [], ours("machine"), ours("blocks", "fallback")),
    Rule(
        "the NumPy level imports the machine and itself",
        ["fastpack"],
        [],
        ours(*NUMPY_LEVEL),
        ours(*NUMPY_LEVEL, "machine", "blocks", "show"),
    ),
    Rule("names of modules are not computed, or these rules could not see them", ["<computed>"], ours(*PROGRAM)),
    Rule("the reference stands alone", ["fastpack"], [], ours(*REFERENCE)),
]


def within(module: str, packages: list[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def broken(rule: Rule, module: str, imported: str) -> bool:
    concerned = rule.who is None or within(module, rule.who)
    return concerned and not within(module, rule.exempt) and within(imported, rule.what) and not within(imported, rule.but)


def imports(module: str, source: str, modules: set[str], *, is_package: bool = False) -> Iterator[str]:
    """Yield the full name of each module that `source` imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            here = module.split(".")[: None if is_package else -1]
            base = ".".join([*here[: len(here) + 1 - node.level], *filter(None, [node.module])]) if node.level else node.module
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                yield whole if whole in modules else str(base)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("__import__", "import_module", "importlib.import_module"):
            yield str(node.args[0].value) if isinstance(node.args[0], ast.Constant) else "<computed>"


def sources() -> dict[str, Path]:
    """Return each module of the package and its file."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = ["fastpack", *path.relative_to(ROOT).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports_of(module: str) -> list[str]:
    files = sources()
    return list(imports(module, files[module].read_text(), set(files), is_package=files[module].name == "__init__.py"))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.text)
def test_rules_of_import(rule: Rule) -> None:
    found = [(module, imported) for module in sources() for imported in imports_of(module) if broken(rule, module, imported)]
    assert not found, rule.text


@pytest.mark.parametrize(
    ("text", "module", "source"),
    [
        ("numba is for kernels", "fastpack.packing", "import numba"),
        ("numba is for kernels", "fastpack.fallback", "def f():\n    from numba.core import types"),
        ("llvmlite is for", "fastpack.machine", "import llvmlite.binding as llvm"),
        ("torch is for", "fastpack.packed", "if True:\n    import torch.nn"),
        ("torch is for", "fastpack.checks", "from fastpack.torch import bridge"),
        ("torch is for", "fastpack.checks", "from fastpack import torch"),
        ("kernels know", "fastpack.kernels.rows", "from fastpack import machine"),
        ("kernels know", "fastpack.kernels.rows", "from .. import machine"),
        ("kernels know", "fastpack.kernels.rows", "import fastpack"),
        ("nobody imports kernels", "fastpack.machine", "def f():\n    import fastpack.kernels.rows"),
        ("nobody imports kernels", "fastpack.torch.moves", "import importlib\nimportlib.import_module('fastpack.kernels')"),
        ("nobody imports the reference", "fastpack.cli", "from fastpack import reference"),
        ("nobody imports the reference", "fastpack.packing", "from .reference import pack_padded"),
        ("nobody imports the reference", "fastpack.recurrent", "from fastpack import reference_layers"),
        ("nobody imports a program", "fastpack.show.text", "from fastpack.cli import app"),
        ("nobody imports a program", "fastpack.packing", "from bench import cases"),
        ("nobody imports a program", "fastpack", "from . import cli"),
        ("the compiler is for", "fastpack.machine", "from fastpack.compiler import object_code"),
        ("the fallback is for", "fastpack.packing", "from fastpack import fallback"),
        ("typer, rich", "fastpack.packed", "from rich.text import Text"),
        ("pyarrow is for", "fastpack.packing", "import pyarrow as pa"),
        ("ray is for", "fastpack.scoring", "import ray"),
        ("ray is for", "fastpack.parts", "from fastpack import ray"),
        ("pyarrow is for", "fastpack.torch.fields", "def f():\n    import pyarrow"),
        ("blocks are plain", "fastpack.blocks", "import numpy as np"),
        ("the machine knows", "fastpack.machine", "from fastpack.checks import address"),
        ("the NumPy level", "fastpack.packing", "from fastpack import fallback"),
        ("the NumPy level", "fastpack.layout", "from . import kernels"),
        ("the NumPy level", "fastpack.sampling.stream", "from fastpack.reference import pack"),
        ("torch is for", "fastpack.sampling.samplers", "from torch.utils.data import Sampler"),
        ("names of modules", "fastpack.packing", "__import__('fastpack.' + 'cli')"),
        ("the reference stands", "fastpack.reference", "from fastpack.packed import Packed"),
        ("the reference stands", "fastpack.reference_layers", "from fastpack import cells"),
    ],
)
def test_each_rule_can_be_broken(text: str, module: str, source: str) -> None:
    (rule,) = [rule for rule in RULES if rule.text.startswith(text)]
    found = imports(module, source, set(sources()), is_package=module == "fastpack")
    assert any(broken(rule, module, imported) for imported in found)


def test_every_rule_is_shown_to_break() -> None:
    (shown,) = [mark.args[1] for mark in test_each_rule_can_be_broken.pytestmark]  # type: ignore[attr-defined]
    assert all(any(rule.text.startswith(text) for text, *_ in shown) for rule in RULES)


def top_level(source: str) -> str:
    """Return the statements that run when a module is imported."""
    tree = ast.parse(source)
    return "\n".join(ast.unparse(node) for node in tree.body if not isinstance(node, ast.FunctionDef | ast.ClassDef))


def upwards(module: str, imported: list[str]) -> list[str]:
    """Return which of the imported modules of the NumPy level stand above `module`, those of one package being one."""
    rank = {name: k for k, name in enumerate(NUMPY_LEVEL)}
    here = part_of_the_numpy_level(module)
    parts = {name: part_of_the_numpy_level(name) for name in imported}
    return [name for name, part in parts.items() if part and (rank[part] > rank[here] or name == f"fastpack.{here}")]


def part_of_the_numpy_level(module: str) -> str:
    """Return the first name of a module of the NumPy level, empty for any other."""
    name = module.partition("fastpack.")[2].partition(".")[0]
    return name if name in NUMPY_LEVEL else ""


def test_the_numpy_level_imports_downwards() -> None:
    files = sources()
    modules = [module for module in files if part_of_the_numpy_level(module)]
    assert {"fastpack.packing", "fastpack.sampling", "fastpack.sampling.cut"} <= set(modules)
    for module in modules:
        source = top_level(files[module].read_text())
        assert not upwards(module, list(imports(module, source, set(files), is_package=files[module].name == "__init__.py")))
    assert upwards("fastpack.checks", ["fastpack.packed", "fastpack.layout", "numpy"]) == ["fastpack.packed"]
    assert upwards("fastpack.packing", ["fastpack.sampling.cut", "fastpack.torch"]) == ["fastpack.sampling.cut"]
    assert upwards("fastpack.sampling.cut", ["fastpack.sampling", "fastpack.sampling.order"]) == ["fastpack.sampling"]


FRESH = """
import sys
import numpy as np
if {sample}:
    np.random  # loaded when it is first asked for, with modules of Cython's and of the standard library
before = set(sys.modules)
import fastpack
if {pack}:
    fastpack.unpack(fastpack.pack([np.arange(3.0), np.arange(2.0)]))
if {run}:
    one = np.ones((1, 1))
    layer = fastpack.RNN.from_state_dict({{"weight_ih_l0": one, "weight_hh_l0": one}}, nonlinearity="relu")
    layer(fastpack.pack([np.ones((3, 1)), np.ones((2, 1))]), num_threads=2)
if {sample}:
    sampler = fastpack.TokenBudgetBatchSampler([3, 5, 4], 8)
    assert sorted(i for batch in sampler for i in batch) == [0, 1, 2]
    sampler.load_state_dict(sampler.state_dict())
new = set(sys.modules) - before
print(*sorted(name for name in new if name.partition(".")[0] != "fastpack"))
print(*sorted(name for name in new if name.partition(".")[0] == "fastpack"))
"""
# of the standard library, what takes milliseconds to import and has no part in packing
SLOW = {"asyncio", "concurrent", "email", "importlib.metadata", "inspect", "logging", "multiprocessing", "pathlib", "shutil", "subprocess"}


@pytest.mark.parametrize(
    ("pack", "run", "sample"), [(False, False, False), (True, False, False), (True, True, False), (False, False, True)]
)
def test_a_fresh_process_loads_numpy_and_nothing_heavy(pack: bool, run: bool, sample: bool, child: Child) -> None:
    foreign, own = (line.split() for line in child(FRESH.format(pack=pack, run=run, sample=sample)).splitlines())
    assert not {name.partition(".")[0] for name in foreign} - sys.stdlib_module_names - {"numpy"}
    assert not SLOW & set(foreign)
    unwanted = ours("kernels", "compiler", "fallback", "torch", "show", *REFERENCE, *PROGRAM)
    assert not [name for name in own if within(name, unwanted)]
    assert {"fastpack", "fastpack.packing"} <= set(own)
    assert ("fastpack.recurrent" in own) == run
    assert ("fastpack.sampling" in own) == sample


def test_what_is_loaded_is_seen(child: Child) -> None:
    foreign, own = (
        line.split()
        for line in child(
            "import rich, logging, fastpack.reference\n"
            + FRESH.format(pack=False, run=False, sample=False).replace("before = set(sys.modules)", "before = set()")
        ).splitlines()
    )
    assert "rich" in {name.partition(".")[0] for name in foreign} - sys.stdlib_module_names
    assert SLOW & set(foreign)
    assert "fastpack.reference" in own


HEAVY_OF_TORCH = ("torch._dynamo", "torch._inductor")  # what torch.compile imports, as long again as torch itself
FRESH_TORCH = "import sys, torch, fastpack.torch; {more}\nprint([name for name in {heavy} if name in sys.modules])"


def test_the_torch_level_does_not_load_the_compiler_of_torch(child: Child) -> None:
    assert child(FRESH_TORCH.format(more="", heavy=HEAVY_OF_TORCH)).strip() == "[]"
    assert "torch._dynamo" in child(FRESH_TORCH.format(more="torch.compiler.disable(print)", heavy=HEAVY_OF_TORCH))


def test_kernels_from_the_cache_are_loaded_without_numba(child: Child, good_code: bytes, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o700)
    fallback._write(tmp_path / "cache" / fallback.cache_name(machine.supported_levels()[-1]), good_code)
    code = FRESH.format(pack=True, run=False, sample=False)
    code += "print('numba' in sys.modules, 'llvmlite' in sys.modules, machine.library().reason)"
    code = code.replace("import fastpack\n", "import fastpack\nfrom fastpack import machine\n")
    last = child(code, FASTPACK_KERNELS="jit", FASTPACK_CACHE_DIR=tmp_path / "cache").splitlines()[-1]
    assert last == "False True the highest level of this CPU; FASTPACK_KERNELS=jit; compiled here"


HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
"""
EVERY_WAY = """
import pickle
import numpy as np, fastpack
from fastpack import machine
sequences = [np.array(list("abc")), np.array(["x"])]
packed = fastpack.pack(sequences)
padded, lengths = fastpack.pad(packed, padding_value="-", multiple_of=4)
values, offsets = fastpack.unpack_ragged(packed)
for again in (fastpack.pack_padded(padded, lengths), fastpack.pack_ragged(values, offsets), pickle.loads(pickle.dumps(packed))):
    assert "".join(again.data) == "axbc" and again.batch_sizes.tolist() == [2, 1, 1]
assert [item.tolist() for item in fastpack.unpack(packed)] == [["a", "b", "c"], ["x"]]
assert ["".join(row) for row in padded] == ["abc-", "x---"]
one = np.ones((1, 1))
running_sum = fastpack.RNN.from_state_dict({"weight_ih_l0": one, "weight_hh_l0": one}, nonlinearity="relu")
for num_threads in (1, 2):
    output, h_n = running_sum(fastpack.pack([np.ones((3, 1)), np.full((1, 1), 9.0)]), num_threads=num_threads)
    assert output.data.ravel().tolist() == [1, 9, 2, 3] and h_n.ravel().tolist() == [3, 9]
assert list(fastpack.BinPackingBatchSampler([3, 5, 4, 9, 1, 2], 12, shuffle=False)) == [[3, 0], [1, 2, 5, 4]]
assert sorted(fastpack.TokenBudgetStream(["abc", "x"], 3)) == [["abc"], ["x"]]
assert "<" in packed._repr_html_() and "2 sequences" in repr(packed)
print(machine.library().reason)
"""


@pytest.mark.parametrize(
    "hidden",
    [["torch"], ["numba", "llvmlite"], ["torch", "numba", "llvmlite", "scipy", "matplotlib", "typer", "rich", "pytest", "pyarrow"]],
)
def test_the_numpy_level_works_in_a_bare_environment(hidden: list[str], child: Child) -> None:
    assert child(HIDE.format(hidden=hidden) + EVERY_WAY) == "the highest level of this CPU; built ahead\n"


def test_what_is_hidden_cannot_be_imported(child: Child) -> None:
    said = child(HIDE.format(hidden=["torch"]) + "import fastpack.torch", status=1)
    assert said.splitlines()[-1] == "ImportError: fastpack.torch needs torch 2.10 or later: pip install 'fastpack[torch]'"
