"""Numba's IR to object code for a CPU level, and object code to one small library: the build's tool, and the fallback's.

Each level is compiled in a process of its own, with NUMBA_CPU_NAME set to it, so that no instruction of the host slips in.
"""

import ctypes
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastpack.machine import LIBRARIES, PACKAGE, kernel_blocks, library_name, sources_digest, symbol

# The compiling process. The package is the very one that asks, whatever else is called fastpack there; our other folders of
# modules come last, so that no file beside a user's script takes the place of a standard module that numba imports.
CHILD = """
import importlib.util, sys
level, digest, package, *paths = sys.argv[1:]
sys.path += [path for path in paths if path not in sys.path]
found = importlib.util.spec_from_file_location("fastpack", package + "/__init__.py")
sys.modules["fastpack"] = importlib.util.module_from_spec(found)
found.loader.exec_module(sys.modules["fastpack"])
from fastpack.compiler import main
main(level, digest)
"""
OUTSIDE = {"memcpy", "memmove", "memset", "sched_yield", "SwitchToThread"}  # the symbols that a library may want
IR_TYPES = {"int64": "i64", "int64*": "ptr", "uint8*": "ptr", "uint8**": "ptr"}


class NoLinkerError(RuntimeError):
    """There is no working `cc` here, so object code cannot become a library."""


def object_code(level: str) -> bytes:
    """Compile all kernels for `level`, in a process of its own.

    Raises
    ------
    RuntimeError
        The compiling process failed, its last lines are in the message; or there is no Python to run as one.
    """
    if not sys.executable or getattr(sys, "frozen", False) or "FASTPACK_COMPILING" in os.environ:
        # the last: sys.executable is no Python but a program that embeds one, and has just started itself
        raise RuntimeError("fastpack compiles its kernels in a child process, but sys.executable is no Python here")
    # No NUMBA_* of the user's reaches the compiler, whether it would change the code or break it; nor does a .numba_config.yaml
    # in the current folder. Numba's own passes are off: ours come later and see all kernels (with both, the code is a third
    # larger and no faster).
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment |= {"NUMBA_CPU_NAME": llvm_cpu(level), "NUMBA_CPU_FEATURES": "", "NUMBA_OPT": "0", "NUMBA_LOOP_VECTORIZE": "0"}
    environment |= {"PYTHONHASHSEED": "0", "FASTPACK_COMPILING": level}
    digest = sources_digest()
    paths = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100  as they are, links and all
    command = [sys.executable, "-P", "-W", "ignore", "-c", CHILD, level, digest, PACKAGE, *paths]
    done = subprocess.run(command, env=environment, cwd=PACKAGE, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    before, _, code = done.stdout.partition(digest.encode())  # before it, what anything else in that process printed
    if done.returncode != 0 or not code:
        said = (before + done.stderr).decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"compiling fastpack's kernels for {level} failed: " + " | ".join(said[-3:]))
    return code


def llvm_cpu(level: str) -> str:
    """Return LLVM's name of the CPU that `level` stands for; `host-...` is the CPU we are on."""
    if level.startswith("host-"):
        import llvmlite.binding as llvm

        name: str = llvm.get_host_cpu_name()
        return name
    return level


def link(code: bytes, library: Path) -> None:
    """Make a shared library of object code. It links with nothing: the process that opens it has a C library.

    Raises
    ------
    NoLinkerError
        `cc`, or what CC names, is missing, fails, or makes nothing that can be opened.
    """
    # -nostdlib, no build id, no symbol table, no LD_RUN_PATH: nothing of the building machine is in it, so builds are reproducible
    flags = ["-dynamiclib"] if sys.platform == "darwin" else ["-shared", "-nostdlib", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-s"]
    environment = {name: value for name, value in os.environ.items() if name != "LD_RUN_PATH"}
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder) / "kernels.o", Path(folder) / "kernels.so"
        source.write_bytes(code)
        command = [*shlex.split(os.environ.get("CC") or "cc"), *flags, "-o", str(made), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True, env=environment)
            ctypes.CDLL(str(made))  # that it opens: a symbol that the C library lacks shows here
            linked = made.read_bytes()
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or b""
            raise NoLinkerError(f"{command[0]}: {said.decode(errors='replace').strip() or error}") from error
    library.parent.mkdir(parents=True, exist_ok=True)
    fresh = library.with_suffix(f".{os.getpid()}.new")
    fresh.write_bytes(linked)
    fresh.replace(library)  # whole or not at all, however many builds there are at once


def build(levels: Iterable[str], say: Callable[[str], None] = print) -> list[Path]:
    """Build one library a level into the package, in place of older ones; without a linker, say so and leave them out.

    Raises
    ------
    RuntimeError
        The compiler failed, or the sources changed meanwhile.
    """

    def one(level: str) -> Path | None:
        library = Path(LIBRARIES) / library_name(level)
        if not library.exists():
            code = object_code(level)
            if library.name != library_name(level):
                raise RuntimeError("the kernels' sources changed while they were compiled: build again")
            try:
                link(code, library)
            except NoLinkerError as error:
                say(f"fastpack: no library for {level}, for want of a linker; kernels will be compiled at first use ({error})")
                return None
        say(f"fastpack: kernels for {level}: {library.name}, {library.stat().st_size // 1024} KB")
        return library

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        built = [library for library in pool.map(one, levels) if library]
    for old in Path(LIBRARIES).glob("*.so"):
        if not old.stem.endswith(sources_digest()):
            old.unlink(missing_ok=True)
    return built


def main(level: str, digest: str) -> None:
    """Compile for `level` in this process, whose environment `object_code` made; write `digest` and the object to standard output."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever else is printed here does not end up in the object
    from fastpack.kernels.kernel import KERNELS, OPTIONS, TYPES, Kernel  # isort: skip  numba's import, in the child alone
    import llvmlite.binding as llvm
    import numba

    import fastpack.kernels  # noqa: F401  registers the kernels

    def entry(kernel: Kernel, inner: str) -> str:
        """`void fastpack_NAME_HASH(begin, end, block)`: unpacks the block, makes pointers of addresses, calls `inner`."""
        lines, values = [], []
        for k, kind in enumerate(kernel.kinds):
            lines += [f"%s{k} = getelementptr i64, ptr %block, i64 {k}", f"%a{k} = load {IR_TYPES[kind]}, ptr %s{k}, align 1"]
            values.append(f"{IR_TYPES[kind]} %a{k}")
        types = ", ".join(["ptr", "ptr", "i64", "i64", *(IR_TYPES[kind] for kind in kernel.kinds)])
        arguments = ", ".join(["ptr %result", "ptr %error", "i64 %begin", "i64 %end", *values])
        return "\n".join(
            [
                f'declare i32 @"{inner}"({types})',
                f"define void @{symbols[kernel.name]}(i64 %begin, i64 %end, ptr %block) {{",
                "%result = alloca ptr",  # Numba's two hidden pointers: nothing is returned, nothing raised
                "%error = alloca ptr",
                *lines,
                f'%status = call i32 @"{inner}"({arguments})',
                "ret void",
                "}",
            ]
        )

    symbols = {name: symbol(block) for name, block in kernel_blocks().items()}
    whole = llvm.parse_assembly("")
    for name in sorted(KERNELS):
        kernel = KERNELS[name]
        signature = numba.types.void(numba.types.int64, numba.types.int64, *(TYPES[kind] for kind in kernel.kinds))
        (compiled,) = numba.njit(signature, **OPTIONS)(kernel.function).overloads.values()
        part = llvm.parse_assembly(compiled.library.get_llvm_str())
        part.link_in(llvm.parse_assembly(entry(kernel, compiled.fndesc.llvm_func_name)))
        whole.link_in(part)
    for item in [*whole.functions, *whole.global_variables]:
        if not item.is_declaration and not item.name.startswith("fastpack_"):
            item.linkage = "internal"
    whole.verify()
    features = llvm.get_host_cpu_features().flatten() if level.startswith("host-") else ""  # a hypervisor may mask some of the CPU's
    target = llvm.Target.from_default_triple().create_target_machine(
        cpu=llvm_cpu(level), features=features, opt=3, reloc="pic", codemodel="default"
    )
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = tuning.loop_interleaving = False  # the kernels choose their vectors themselves
    builder = llvm.create_pass_builder(target, tuning)
    builder.getModulePassManager().run(whole, builder)
    if foreign := {item.name for item in whole.functions if item.is_declaration and not item.name.startswith("llvm.")} - OUTSIDE:
        sys.exit(f"the kernels call {', '.join(sorted(foreign))}, so one of them can raise or allocate")
    if sources_digest() != digest:
        sys.exit("the kernels' sources changed while they were compiled")
    output.write(digest.encode() + target.emit_object(whole))
    output.close()
