"""Which packages are installed, and whether in a version that was tested. Imports no torch."""

from __future__ import annotations

import platform
import re
import shlex
import sys
from typing import TYPE_CHECKING

from vlm_ci import environment
from vlm_ci.doctor.records import Check
from vlm_ci.environment import TESTED

if TYPE_CHECKING:
    from vlm_ci.doctor.records import Status

GROUP = "Packages"
OLDEST_PYTHON = (3, 11)
# What pyproject.toml asks for; a test compares the two. torch and transformers stand in TESTED.
MINIMUM = {
    "hypothesis": "6.130",
    "jinja2": "3.1",
    "pytest": "8.4",
    "pytest-xdist": "3.6",
    "msgspec": "0.20",
    "click": "8.1",
    "filelock": "3.13",
    "junitparser": "5",
    "rich": "13.7",
}
# Extras of ours: what they install, and what needs it. A test compares them with pyproject.toml.
EXTRAS = {
    "redis": (("redis",), "--database redis://HOST:PORT/N"),
    "bot": (("githubkit", "hishel", "httpx", "markdown-it-py"), "vlm-ci bot"),
}


def checks() -> list[Check]:
    """Check Python, vlm_ci itself, and every package that it needs."""
    found = [_python(tuple(sys.version_info[:2])), _vlm_ci()]
    found += [_tested(package) for package in TESTED]
    found += [_required(package, minimum) for package, minimum in MINIMUM.items()]
    return found


def optional(*, gpu: bool) -> list[Check]:
    """Check what some runs need. ``gpu`` says whether torch sees a GPU."""
    return [_torchvision(), _triton(gpu), *map(_extra, EXTRAS)]


def installed(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    version = environment.version_of(package)
    return None if version == "not installed" else version


def outside(package: str) -> bool:
    """Say whether a package's installed version is outside the tested range; False if absent."""
    version = installed(package)
    oldest, newest = TESTED[package]
    return version is not None and not _release(oldest) <= _release(version)[:2] <= _release(newest)


def constraint(package: str) -> str:
    """Return what to ask pip for: the tested range, or at least the oldest version that works."""
    if package not in TESTED:
        return f"{package}>={MINIMUM[package]}"
    oldest, newest = TESTED[package]
    major, minor = _release(newest)[:2]
    return f"{package}>={oldest},<{major}.{minor + 1}"


def install(*requirements: str) -> str:
    """Return the command that installs something into the Python that runs this."""
    return f"`{shlex.join([sys.executable, '-m', 'pip', 'install', *requirements])}`"


def _release(version: str) -> tuple[int, ...]:
    """Return the leading numbers of a version: ``2.13.0+cpu`` gives (2, 13, 0)."""
    match = re.match(r"\d+(?:\.\d+)*", version)
    return tuple(map(int, match[0].split("."))) if match else ()


def _check(name: str, status: Status, found: str, advice: str = "") -> Check:
    return Check(group=GROUP, name=name, status=status, found=found, advice=advice)


def _python(version: tuple[int, ...]) -> Check:
    found = f"{platform.python_version()}, {sys.executable}"
    if version >= OLDEST_PYTHON:
        return _check("python", "ok", found)
    needed = ".".join(map(str, OLDEST_PYTHON))
    return _check(
        "python",
        "broken",
        f"{found}; vlm_ci needs {needed} or newer",
        f"make a virtual environment with Python {needed} or newer",
    )


def _vlm_ci() -> Check:
    version = installed("vlm-ci")
    if version is not None:
        return _check("vlm-ci", "ok", version)
    return _check(
        "vlm-ci",
        "warning",
        "runs from its sources and is not installed: there is no command vlm-ci, and pytest does "
        "not find the plugin by itself",
        f"{install('-e', '.')} in the checkout",
    )


def _tested(package: str) -> Check:
    version, (oldest, newest) = installed(package), TESTED[package]
    if version is None:
        return _missing(package)
    if outside(package):
        return _check(
            package,
            "warning",
            f"{version} is outside what vlm_ci was tested with ({oldest} to {newest})",
            install(constraint(package)),
        )
    return _check(package, "ok", f"{version}, tested with {oldest} to {newest}")


def _required(package: str, minimum: str) -> Check:
    version = installed(package)
    if version is None:
        return _missing(package)
    if _release(version) < _release(minimum):
        return _check(
            package,
            "warning",
            f"{version} is older than {minimum}, which vlm_ci asks for",
            install(constraint(package)),
        )
    return _check(package, "ok", version)


def _missing(package: str) -> Check:
    return _check(
        package, "broken", "not installed; every run needs it", install(constraint(package))
    )


def _torchvision() -> Check:
    version, torch = installed("torchvision"), installed("torch")
    if version is not None:
        return _check("torchvision", "ok", version)
    # torchvision and torch go in pairs; without a pin, pip would exchange torch.
    pin = [f"torch=={torch.split('+')[0]}"] if torch else []
    return _check(
        "torchvision",
        "absent",
        "only the video processors of real checkpoints need it; the tiny models do not",
        f"for a real checkpoint: {install('torchvision', *pin)}",
    )


def _extra(name: str) -> Check:
    packages, user = EXTRAS[name]
    known = {package: installed(package) for package in packages}
    missing = [package for package, version in known.items() if version is None]
    if not missing:
        listed = ", ".join(f"{package} {version}" for package, version in known.items())
        return _check(f"vlm-ci[{name}]", "ok", listed)
    found = f"only {user} needs it; not installed: {', '.join(missing)}"
    return _check(f"vlm-ci[{name}]", "absent", found, install(f"vlm-ci[{name}]"))


def _triton(gpu: bool) -> Check:
    version = installed("triton")
    if version is not None:
        return _check("triton", "ok", version)
    if gpu:
        return _check(
            "triton",
            "warning",
            "not installed: --backend inductor on a GPU needs it",
            install("triton"),
        )
    return _check(
        "triton",
        "absent",
        "only --backend inductor on a GPU needs it; it comes with torch's CUDA build",
    )
