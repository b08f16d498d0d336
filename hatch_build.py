"""The build hook: compiles the kernels into one library a CPU level, which the wheel carries. Needs numba and `cc`."""

import platform
import sys
import sysconfig
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class KernelsHook(BuildHookInterface[Any]):
    """Builds `fastpack/_machine_code/` before files are collected, for wheels and for editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile for every level of this kind of machine, and name the platform in the wheel's tag."""
        sys.path.insert(0, self.root)
        try:
            from fastpack import compiler, machine

            built = compiler.build(machine.cpu_levels(), self.app.display_info)
        finally:
            sys.path.remove(self.root)
        if built:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{platform_tag()}"


def platform_tag() -> str:
    """Return the platform that the libraries need: their only outside symbols are memcpy, memmove and memset, of any version."""
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        return f"manylinux_2_17_{platform.machine()}"
    tag = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    return tag.replace("universal2", platform.machine())  # the libraries are for the one kind of CPU that built them
