"""What is shipped: the source distribution, the wheels made from it and from the tree, and the wheel in an environment with numpy alone."""

import platform
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fastpack import compiler, machine
from hatch_build import KernelsHook
from tests.conftest import clean_environment

ROOT = Path(machine.PACKAGE).parent
LIBRARIES = [f"fastpack/_machine_code/{machine.library_name(level)}" for level in machine.cpu_levels()]
COMPILED = LIBRARIES[0]  # from the source distribution; for the highest level tests/test_fallback.py compiles
# Nothing is isolated: an environment for each build would install numba anew, for half a minute. That the isolated builds
# work, too, is seen whenever someone runs `pip install .`.
WHEEL = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir"]


def run(*command: str | Path, cwd: Path, **environment: str | Path) -> str:
    changes = {name: str(value) for name, value in environment.items()}
    whole = [str(part) for part in command]
    done = subprocess.run(whole, env=clean_environment(**changes), cwd=cwd, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-m", "build", "--no-isolation", "--sdist", "--outdir", folder, ROOT, cwd=folder)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.fixture(scope="module")
def wheel_of_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(*WHEEL, folder, ROOT, cwd=folder)
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel_of_sdist(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a wheel made in another folder, where the environment tries to change the code: one level compiled, the others as built."""
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = folder.iterdir()
    (unpacked / COMPILED).parent.mkdir()
    for library in LIBRARIES:
        if library != COMPILED:  # each takes most of a minute
            shutil.copy(ROOT / library, unpacked / library)
    (unpacked / ".numba_config.yaml").write_text("disable_jit: 1\n")
    hostile = {"NUMBA_DISABLE_JIT": "1", "NUMBA_BOUNDSCHECK": "1", "NUMBA_CPU_FEATURES": "+avx512f", "NUMBA_OPT": "1"}
    # a linker with options, which records where it was told to look for libraries
    run(*WHEEL, folder, unpacked, cwd=folder, PYTHONHASHSEED="7", LD_RUN_PATH=folder, CC="cc -O1", **hostile)
    assert (unpacked / COMPILED).exists()
    (wheel,) = folder.glob("*.whl")
    return wheel


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_source_distribution_has_all_that_it_takes_to_build_and_test(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "hatch_build.py", "Makefile", "constraints.txt", "README.md", "LICENSE", "PKG-INFO"} <= names
    assert {"fastpack/compiler.py", "fastpack/kernels/rows.py", "fastpack/py.typed", "fastpack/data/LICENSE"} <= names
    assert {"tests/conftest.py", f"tests/{Path(__file__).name}", "bench/cases.py"} <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".o"))]


@pytest.mark.parametrize("which", ["wheel_of_tree", "wheel_of_sdist"])
def test_a_wheel_has_the_libraries_and_says_so_in_its_name(which: str, request: pytest.FixtureRequest) -> None:
    wheel: Path = request.getfixturevalue(which)
    tag = f"py3-none-manylinux_2_17_{platform.machine()}"
    assert wheel.name.endswith(f"-{tag}.whl")
    files = contents(wheel)
    assert sorted(name for name in files if name.endswith(".so")) == sorted(LIBRARIES)
    assert {"fastpack/py.typed", "fastpack/blocks/rows.py", "fastpack/kernels/rows.py", "fastpack/data/LICENSE"} <= set(files)
    assert {name.partition("/")[0].partition("-")[0] for name in files} == {"fastpack"}, "nothing beside the package"
    (described,) = [content.decode() for name, content in files.items() if name.endswith(".dist-info/WHEEL")]
    assert f"Tag: {tag}\n" in described
    assert "Root-Is-Purelib: false\n" in described


def test_every_level_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    for built in ([Path("a library")], []):
        monkeypatch.setattr(compiler, "build", lambda levels, say, built=built: asked.append(levels) or built)
        data: dict[str, object] = {}
        KernelsHook(str(ROOT), {}, None, None, "", "wheel").initialize("standard", data)
        assert data == ({"pure_python": False, "tag": f"py3-none-manylinux_2_17_{platform.machine()}"} if built else {})
    assert asked == [machine.cpu_levels()] * 2


def test_a_second_build_is_the_same_to_the_byte(wheel_of_tree: Path, wheel_of_sdist: Path) -> None:
    # whatever the folder, the time and the environment
    first, second = contents(wheel_of_tree), contents(wheel_of_sdist)
    assert set(first) == set(second)
    assert [name for name in first if first[name] != second[name]] == []


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the Python of a new environment that has numpy alone, this one's, and its folder of packages."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    here = Path(np.__file__).parent.parent
    for part in [here / "numpy", *here.glob("numpy.libs"), *here.glob("numpy-*.dist-info")]:
        (packages / part.name).symlink_to(part)
    return folder / "bin" / "python", packages


USE = """
import sys
import numpy as np, fastpack
from fastpack import machine
packed = fastpack.pack([np.array(list("abc")), np.array(["x"])])
print("".join(packed.data), fastpack.unpack(packed)[0].tolist(), machine.library().reason, fastpack.__file__, sep="; ")
"""


def test_the_wheel_works_where_there_is_numpy_alone(wheel_of_sdist: Path, bare: tuple[Path, Path], tmp_path: Path) -> None:
    python, packages = bare
    # without --no-deps: pip would refuse if anything but numpy were required
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", wheel_of_sdist, cwd=tmp_path)
    assert {path.name.partition("-")[0] for path in packages.iterdir()} == {"numpy", "numpy.libs", "fastpack"}
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    printed = run(python, "-W", "error", "-c", USE, cwd=tmp_path / "elsewhere", HOME=tmp_path / "home", XDG_CACHE_HOME="")
    where = packages / "fastpack" / "__init__.py"
    assert printed == f"axbc; ['a', 'b', 'c']; the highest level of this CPU; built ahead; {where}\n"
    assert not list((tmp_path / "home").iterdir()), "nothing is written"
    assert not list((tmp_path / "elsewhere").iterdir())
