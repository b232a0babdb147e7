"""The C++ compiler, which Inductor needs on the CPU: tried on a file that needs what Inductor's
code needs. Imports no torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING

from vlm_ci.doctor.records import Check

if TYPE_CHECKING:
    from vlm_ci.doctor.records import Status

GROUP = "Inductor"
NAME = "C++ compiler"
NOT_TRIED = "compiling with Inductor was not tried (only --thorough does)"
_TIMEOUT = 30.0
_INSTALL = (
    "install a C++ compiler with OpenMP, and Python's headers: "
    "`apt-get install g++ python3-dev` on Debian and Ubuntu"
)


def check(*, thorough: bool) -> Check:
    """Check the compiler that torch would take: CXX, or else g++ (clang++ on macOS)."""
    named = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    path = shutil.which(named)
    if path is None:
        return _check(
            "broken" if os.environ.get("CXX") else "absent",
            f"{named} is not on the PATH; --backend inductor on the CPU needs one",
            "set CXX to a C++ compiler, or unset it" if os.environ.get("CXX") else _INSTALL,
        )
    error = _try(path)
    if error:
        return _check("broken", f"{path} does not compile what Inductor needs: {error}", _INSTALL)
    found = f"{path} compiles C++17 with OpenMP and Python's headers"
    return _check("ok", found if thorough else f"{found}; {NOT_TRIED}")


def _try(compiler: str) -> str:
    """Compile a few lines without keeping the result; return the first error, or nothing."""
    source = "#include <Python.h>\n#include <vector>\n"
    flags = ["-std=c++17", f"-I{sysconfig.get_path('include')}"]
    if sys.platform == "linux":
        source += "#include <omp.h>\n"
        flags.append("-fopenmp")
    source += "int main() { return std::vector<int>(3).empty(); }\n"
    try:
        done = subprocess.run(
            [compiler, *flags, "-fsyntax-only", "-x", "c++", "-"],
            input=source,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"it did not end within {_TIMEOUT:g} s"
    except OSError as error:
        return error.strerror or str(error)
    if done.returncode == 0:
        return ""
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return next(
        (line for line in lines if "error" in line),
        lines[0] if lines else f"exit code {done.returncode}",
    )


def _check(status: Status, found: str, advice: str = "") -> Check:
    return Check(group=GROUP, name=NAME, status=status, found=found, advice=advice)
