"""Numba's IR to object code for a CPU level, and object code to one small library: the build's tool, and the fallback's.

Each level is compiled in a process of its own, with NUMBA_CPU_NAME set to it, so that no instruction of the host slips in;
this module run as a program is that process:

    python -m fastpack.compiler x86-64-v3 > x86-64-v3.o
"""

import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fastpack.machine import LIBRARIES, library_name, sources_digest

IR_TYPES = {"int64": "i64", "int64*": "ptr", "uint8*": "ptr", "uint8**": "ptr"}


class NoLinker(RuntimeError):
    """There is no working `cc` here, so object code cannot become a library."""


def object_code(level: str) -> bytes:
    """Compile all kernels for `level`, in a process of its own.

    Raises
    ------
    RuntimeError
        The compiling process failed; its last lines are in the message.
    """
    if not sys.executable:
        raise RuntimeError("fastpack compiles its kernels in a child process, but sys.executable is not set here")
    # No NUMBA_* of the user's reaches the compiler, whether it would change the code or break it. Numba's own passes are
    # off: ours come later and see all kernels (with both, the code is a third larger and no faster).
    environment = {name: value for name, value in os.environ.items() if not name.startswith("NUMBA_")}
    environment |= {"NUMBA_CPU_NAME": llvm_cpu(level), "NUMBA_OPT": "0", "NUMBA_LOOP_VECTORIZE": "0", "PYTHONHASHSEED": "0"}
    root = str(Path(__file__).resolve().parent.parent)
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "fastpack.compiler", level]
    done = subprocess.run(command, env=environment, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit status {done.returncode}"]
        raise RuntimeError(f"compiling fastpack's kernels for {level} failed: " + " | ".join(lines[-3:]))
    return done.stdout


def llvm_cpu(level: str) -> str:
    """Return LLVM's name of the CPU that `level` stands for; `host-...` is the CPU we are on."""
    if level.startswith("host-"):
        import llvmlite.binding as llvm

        name: str = llvm.get_host_cpu_name()
        return name
    return level


def link(code: bytes, library: Path) -> None:
    """Make a shared library of object code. It links with nothing: the process that opens it has a C library."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernels.o"
        source.write_bytes(code)
        made = Path(folder) / "kernels.so"
        # -nostdlib, no build id, no symbol table: nothing of the building machine is in the file, so builds are reproducible
        flags = ["-dynamiclib"] if sys.platform == "darwin" else ["-shared", "-nostdlib", "-Wl,--build-id=none", "-Wl,-z,noexecstack", "-s"]
        command = [os.environ.get("CC", "cc"), *flags, "-o", str(made), str(source)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", b"") or b""
            raise NoLinker(f"{' '.join(command[:2])}: {said.decode(errors='replace').strip() or error}") from error
        library.parent.mkdir(parents=True, exist_ok=True)
        fresh = library.with_suffix(f".{os.getpid()}.new")
        fresh.write_bytes(made.read_bytes())
        fresh.replace(library)


def build(levels: Iterable[str], say: Callable[[str], None] = print) -> list[Path]:
    """Build one library a level into the package, in place of older ones; without a linker, say so and leave them out."""
    levels = list(levels)

    def one(level: str) -> Path:
        library = LIBRARIES / library_name(level)
        if not library.exists():
            link(object_code(level), library)
        say(f"fastpack: kernels for {level}: {library.name}, {library.stat().st_size // 1024} KB")
        return library

    try:
        with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
            built = list(pool.map(one, levels))
    except NoLinker as error:
        say(f"fastpack: no library is built, for want of a linker; kernels will be compiled at first use ({error})")
        return []
    for old in set(LIBRARIES.glob("*.so")) - set(built):
        if not old.stem.endswith(sources_digest()):
            old.unlink(missing_ok=True)
    return built


def main(level: str) -> None:
    """Compile for `level` in this process, whose environment `object_code` made, and write the object to standard output."""
    from fastpack.kernels.kernel import KERNELS, OPTIONS, TYPES, Kernel  # isort: skip  numba's import, in the child alone
    import llvmlite.binding as llvm
    import numba

    import fastpack.kernels  # noqa: F401  registers the kernels

    def entry(kernel: Kernel, inner: str) -> str:
        """`void fastpack_NAME(begin, end, block)`: unpacks the block, makes pointers of addresses, calls `inner`."""
        lines, values = [], []
        for k, kind in enumerate(kernel.kinds):
            lines += [f"%s{k} = getelementptr i64, ptr %block, i64 {k}", f"%a{k} = load {IR_TYPES[kind]}, ptr %s{k}, align 1"]
            values.append(f"{IR_TYPES[kind]} %a{k}")
        types = ", ".join(["ptr", "ptr", "i64", "i64", *(IR_TYPES[kind] for kind in kernel.kinds)])
        arguments = ", ".join(["ptr %result", "ptr %error", "i64 %begin", "i64 %end", *values])
        return "\n".join(
            [
                f'declare i32 @"{inner}"({types})',
                f"define void @fastpack_{kernel.name}(i64 %begin, i64 %end, ptr %block) {{",
                "%result = alloca ptr",  # Numba's two hidden pointers: nothing is returned, nothing raised
                "%error = alloca ptr",
                *lines,
                f'%status = call i32 @"{inner}"({arguments})',
                "ret void",
                "}",
            ]
        )

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
    target = llvm.Target.from_default_triple().create_target_machine(cpu=llvm_cpu(level), opt=3, reloc="pic", codemodel="default")
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = tuning.loop_interleaving = False  # the kernels choose their vectors themselves
    builder = llvm.create_pass_builder(target, tuning)
    builder.getModulePassManager().run(whole, builder)
    sys.stdout.buffer.write(target.emit_object(whole))


if __name__ == "__main__":
    main(sys.argv[1])
