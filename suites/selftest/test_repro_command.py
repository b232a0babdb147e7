"""``vlm-ci replay --repro``: what the command says of the script that it writes."""

from __future__ import annotations

from pathlib import Path

import pytest
from repros import ONE, refusal
from repros import recorded as recorded
from repros import without_vlm_ci as without_vlm_ci

from vlm_ci import repro, session
from vlm_ci.cli import main
from vlm_ci.repro import causes
from vlm_ci.traffic.files import pretty


def test_replay_says_what_came_of_it(recorded: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    copied = tmp_path / "one"
    copied.mkdir()
    (copied / "failure.json").write_bytes((recorded / "failure.json").read_bytes())
    monkeypatch.setattr(
        repro,
        "_run",
        lambda lines, timeout: (1, refusal("forward", "x.py")),
    )
    assert main(["replay", str(copied), "--repro"]) == 1
    shown = capsys.readouterr().out
    assert f"repro          {copied}/repro.py does not reproduce: torch refused forward" in shown
    monkeypatch.setattr(causes, "difference", lambda failure, returncode, output: "")
    assert main(["replay", str(copied), "--repro"]) == 1
    shown = capsys.readouterr().out
    assert f"repro          {copied}/repro.py reproduces in a fresh process\n" in shown


def test_traffic_alone_has_no_repro(tmp_path: Path, capsys):
    path = tmp_path / "mine.json"
    path.write_bytes(pretty(session(ONE)))
    assert main(["replay", str(path), "--target", "toy:factory", "--repro"]) == 0
    assert "repro          none: this is traffic alone" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.nightly
def test_the_command_writes_a_script_that_reproduces(recorded: Path, capsys, without_vlm_ci):
    assert main(["replay", str(recorded), "--repro"]) == 1
    shown = capsys.readouterr().out
    assert f"repro          {recorded}/repro.py reproduces in a fresh process\n" in shown
