"""``vlm-ci doctor``: its report, the packages, and all of it on this machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import msgspec
import pytest
from doctor_checks import ON_A_GPU, ON_THE_CPU, by_name

from vlm_ci import doctor, environment
from vlm_ci.doctor import launch, machine, observers, packages
from vlm_ci.doctor.outcomes import Outcome
from vlm_ci.doctor.probes import OBSERVERS, attempt
from vlm_ci.doctor.records import Check, Report, render, summary

# -- the report --------------------------------------------------------------------------------


def check(status: str = "ok", name: str = "a", group: str = "One", **more: str) -> Check:
    return Check(**{"group": group, "name": name, "status": status, "found": "there", **more})


@pytest.mark.parametrize(
    ("statuses", "ok", "line"),
    [
        ("ok absent", True, "ready"),
        ("ok warning", True, "ready: 1 warning"),
        ("warning warning", True, "ready: 2 warnings"),
        ("ok broken", False, "not ready: 1 thing is broken (see above)"),
        ("broken broken", False, "not ready: 2 things are broken (see above)"),
        ("broken warning", False, "not ready: 1 thing is broken (see above), 1 warning"),
    ],
)
def test_only_what_is_broken_makes_a_machine_not_ready(statuses: str, ok: bool, line: str):
    report = Report.of(check(status) for status in statuses.split())
    assert report.ok is ok
    assert summary(report) == line
    assert render(report).splitlines()[-1] == line


def test_the_text_is_aligned_under_headings():
    report = Report.of(
        [
            check(name="short"),
            check("warning", name="a longer name", advice="do `this and that`"),
            check("broken", group="Two", found="word " * 30),
        ]
    )
    assert render(report) == (
        "One\n"
        "  ok       short          there\n"
        "  warning  a longer name  there\n"
        "                          to do: do `this and that`\n"
        "\n"
        "Two\n"
        f"  broken   a              {('word ' * 15).strip()}\n"
        f"                          {('word ' * 15).strip()}\n"
        "\n"
        "not ready: 1 thing is broken (see above), 1 warning\n"
    )


def test_a_command_is_never_broken_over_lines():
    command = f"`{'python -m pip install ' * 5}x`"
    assert command in render(Report.of([check(advice=f"{'words ' * 12}{command}")]))


def test_json_decodes_back_to_the_report():
    report = Report.of([check(), check("broken", advice="mend it")])
    text = msgspec.json.encode(report)
    assert msgspec.json.decode(text, type=Report) == report
    assert json.loads(text)["schema"] == "vlm-ci/doctor/1"
    assert json.loads(text)["ok"] is False


# -- packages ----------------------------------------------------------------------------------


def test_minimum_versions_are_those_of_the_project(repository: Path):
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    asked = dict(re.match(r"([\w-]+)>=(.+)", line).groups() for line in project["dependencies"])
    ranges = {name: packages.constraint(name).removeprefix(f"{name}>=") for name in asked}
    assert ranges == asked
    assert project["requires-python"] == f">={'.'.join(map(str, packages.OLDEST_PYTHON))}"


def test_the_packages_that_the_tests_run_with_are_ok():
    shown = by_name(packages.checks())
    assert shown.keys() == {"python", "vlm-ci", *environment.TESTED, *packages.MINIMUM}
    assert {shown[name].status for name in packages.MINIMUM} == {"ok"}
    assert "tested with 2.11 to 2.13" in shown["torch"].found
    assert sys.executable in shown["python"].found


@pytest.mark.parametrize("version", ["2.10.1", "2.14.0.dev20270101+cu130", "3.0", "unreadable"])
def test_a_version_outside_the_tested_range_is_a_warning_with_the_constraint(versions, version):
    versions(torch=version)
    torch = by_name(packages.checks())["torch"]
    assert torch.status == "warning"
    assert f"{version} is outside what vlm_ci was tested with (2.11 to 2.13)" in torch.found
    assert torch.advice == f"`{sys.executable} -m pip install 'torch>=2.11,<2.14'`"


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1+cu128", "2.13.9"])
def test_versions_within_the_range_are_ok(versions, version):
    versions(torch=version)
    assert by_name(packages.checks())["torch"].status == "ok"


@pytest.mark.parametrize(
    ("package", "wanted"),
    [
        ("torch", "torch>=2.11,<2.14"),
        ("transformers", "transformers>=5.17,<5.24"),
        *((name, f"{name}>={minimum}") for name, minimum in packages.MINIMUM.items()),
    ],
)
def test_a_missing_package_is_broken_with_the_command_to_install_it(versions, package, wanted):
    versions(**{package.replace("-", "_"): None})
    found = by_name(packages.checks())[package]
    assert (found.status, found.found) == ("broken", "not installed; every run needs it")
    assert found.advice == f"`{sys.executable} -m pip install '{wanted}'`"


def test_a_package_older_than_asked_for_is_a_warning(versions):
    versions(hypothesis="6.129.4")
    found = by_name(packages.checks())["hypothesis"]
    assert found.status == "warning"
    assert found.found == "6.129.4 is older than 6.130, which vlm_ci asks for"
    assert "'hypothesis>=6.130'" in found.advice


def test_an_old_python_is_broken():
    found = packages._python((3, 10))
    assert found.status == "broken"
    assert "needs 3.11 or newer" in found.found


def test_running_from_the_sources_is_a_warning(versions):
    versions(vlm_ci=None)
    assert by_name(packages.checks())["vlm-ci"].status == "warning"


def test_optional_packages(versions):
    versions(torch="2.13.0+cpu", torchvision=None, triton=None)
    shown = by_name(packages.optional(gpu=False))
    assert {name: found.status for name, found in shown.items()} == {
        "torchvision": "absent",
        "triton": "absent",
        "vlm-ci[redis]": "ok",
        "vlm-ci[bot]": "ok",
    }
    assert "pip install torchvision torch==2.13.0`" in shown["torchvision"].advice
    assert by_name(packages.optional(gpu=True))["triton"].status == "warning"
    versions(torchvision="0.28.0", triton="3.6.0")
    assert {found.status for found in packages.optional(gpu=True)} == {"ok"}


def test_an_extra_that_is_not_whole_is_absent_with_the_command_to_install_it(versions):
    versions(redis=None, httpx=None, hishel=None)
    shown = by_name(packages.optional(gpu=False))
    assert shown["vlm-ci[redis]"].status == shown["vlm-ci[bot]"].status == "absent"
    assert shown["vlm-ci[bot]"].found == "only vlm-ci bot needs it; not installed: hishel, httpx"
    assert shown["vlm-ci[bot]"].advice == f"`{sys.executable} -m pip install 'vlm-ci[bot]'`"


def test_the_extras_are_those_of_the_project():
    root = Path(__file__).resolve().parents[2]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    for name, (wanted, _) in packages.EXTRAS.items():
        listed = project["optional-dependencies"][name]
        assert tuple(re.match(r"[\w.-]+", one)[0] for one in listed) == wanted


def test_a_package_that_does_not_load_is_broken(versions):
    versions(transformers="5.20.0")
    installed = by_name(packages.checks())["transformers"]
    fails = Outcome(probe="transformers", state="fails", found="ImportError: tokenizers is old")
    found = observers.loading(installed, fails)
    assert found.status == "broken"
    assert found.found == ("5.20.0 is installed and does not load: ImportError: tokenizers is old")
    assert "pip install --force-reinstall transformers==5.20.0`" in found.advice
    works = Outcome(probe="transformers", state="works")
    assert observers.loading(installed, works) == installed


# -- all of it ---------------------------------------------------------------------------------

WHOLE = """
import sys
from pathlib import Path
from vlm_ci import doctor
from vlm_ci.traffic.files import pretty
heavy = ("torch", "transformers", "hypothesis", "numpy")
assert not [name for name in heavy if name in sys.modules], "the import is not light"
report = doctor.report(Path(sys.argv[1]))
assert "torch" not in sys.modules, "the report loaded torch into this process"
sys.stdout.buffer.write(pretty(report))
"""


@pytest.mark.usefixtures("no_variables")
def test_this_machine_is_ready_and_nothing_is_left_behind(tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-c", WHOLE, str(tmp_path / "out")],
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    report = msgspec.json.decode(done.stdout, type=Report)
    broken = [found for found in report.checks if found.status == "broken"]
    assert report.ok, broken
    groups = list(dict.fromkeys(found.group for found in report.checks))
    assert groups == [
        "Packages",
        "Machine",
        "Inductor",
        "Observers",
        "pytest",
        "Environment variables",
    ]
    shown = by_name(report.checks)
    assert {shown[name].status for name in ON_THE_CPU} == {"ok"}
    assert {shown[name].status for name in ON_A_GPU} <= {"ok", "absent"}
    assert "not tried" in shown[observers.REST].found
    assert shown.keys() >= {"CPU", "memory", "results folder", "compile cache", "C++ compiler"}
    assert "torch uses" in shown["CPU"].found
    assert any(name.startswith("GPU") for name in shown)
    assert list(tmp_path.iterdir()) == []
    assert all(found.advice for found in report.checks if found.status in ("warning", "broken"))


@pytest.mark.nightly
def test_a_hook_that_broke_is_found_in_the_probing_process(monkeypatch, tmp_path: Path):
    breaking = (
        "import contextlib; from vlm_ci.watch import logs; "
        "logs.reporting_limits = lambda report: contextlib.nullcontext(); "
    )
    monkeypatch.setattr(launch, "PROBING", (sys.executable, "-c", breaking + launch._MAIN))
    monkeypatch.setattr(doctor, "LOADS", {})  # the observers are what matters here
    report = doctor.report(tmp_path)
    assert not report.ok
    observed = {found.name: found for found in report.checks if found.group == "Observers"}
    broken = {name for name, found in observed.items() if found.status == "broken"}
    assert broken == {"recompile limit"}
    found = observed["recompile limit"]
    assert found.found == "the limit was reached once, and recorded 0 times"
    assert found.advice


def test_a_report_without_torch_names_what_is_missing(monkeypatch, versions, tmp_path: Path):
    versions(torch=None)
    monkeypatch.setattr(launch, "PROBING", (sys.executable, "-c", "import os; os.abort()"))
    report = doctor.report(tmp_path)
    assert not report.ok
    shown = by_name(report.checks)
    assert shown["torch"].status == "broken"
    assert {shown[name].status for name in OBSERVERS} == {"broken"}
    assert "was ended by SIGABRT" in shown["compilations"].found
    assert "torch uses" not in shown["CPU"].found
    assert summary(report).startswith("not ready: ")


def test_an_error_of_our_own_costs_a_section_and_not_the_report(monkeypatch, tmp_path: Path):
    def fail() -> None:
        raise ZeroDivisionError("no\nsecond line")

    monkeypatch.setattr(launch, "PROBING", (sys.executable, "-c", "raise SystemExit(1)"))
    monkeypatch.setattr(machine, "memory", fail)
    report = doctor.report(tmp_path)
    (found,) = [found for found in report.checks if found.group == "Machine"]
    assert (found.name, found.status) == ("doctor", "warning")
    assert found.found == "this could not be looked at: ZeroDivisionError: no"
    assert "pytest" in {found.group for found in report.checks}


def test_thorough_asks_for_inductor_with_an_empty_cache(monkeypatch, tmp_path: Path):
    asked = []

    def pretend(names, **options):
        asked.append((tuple(names), options.get("fresh_cache", False)))
        return {name: Outcome(probe=name, state="works", found="seen") for name in names}

    monkeypatch.setattr(launch, "probe", pretend)
    shown = by_name(doctor.report(tmp_path, thorough=True).checks)
    assert [fresh for _names, fresh in asked] == [False, True]
    assert shown["Inductor on the CPU"].status == "ok"
    assert "not tried" not in shown["C++ compiler"].found
    assert shown["compile caches"].status == "ok"
    asked.clear()
    assert "Inductor on the CPU" not in by_name(doctor.report(tmp_path).checks)
    assert len(asked) == 1


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
def test_inductor_compiles_on_the_cpu(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    outcome = attempt("Inductor on the CPU")
    assert outcome.state == "works", outcome.found
    assert any(tmp_path.rglob("*.so")), "nothing was compiled"
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "other"))
    from torch._inductor import config

    with config.patch({"cpp.cxx": (None, str(tmp_path / "no-such-compiler"))}):
        outcome = attempt("Inductor on the CPU")
    assert outcome.state == "fails"
    assert "InvalidCxxCompiler" in outcome.found
