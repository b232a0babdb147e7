"""The command line: listings, bad input, interrupts, exit codes."""

from __future__ import annotations

import json
import os
from pathlib import Path

import processes
import pytest

from vlm_ci.cli import main

TOY_PATH = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


def vlm_ci(*args: str, cwd: Path, **env: str) -> processes.Done:
    """Run the command in a process of its own."""
    return processes.run("vlm-ci", *args, cwd=cwd, **env)


def test_help_names_the_commands(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert "run" in shown
    assert "targets" in shown


def test_targets_as_text_and_json(capsys):
    assert main(["targets"]) == 0
    text = capsys.readouterr().out
    for name in ("qwen3-vl-tiny", "llava-tiny", "qwen3-vl:CHECKPOINT", "language-model"):
        assert name in text
    assert main(["targets", "--json"]) == 0
    listing = json.loads(capsys.readouterr().out)
    assert {entry["name"] for entry in listing["targets"]} >= {"qwen3-vl-tiny", "llava-tiny"}
    assert listing["recipes"].keys() >= {"decoder-layers", "language-model", "vision", "whole"}


def test_bugs_as_text_and_json(capsys):
    assert main(["targets", "--bugs"]) == 0
    assert "deepstack-kwarg" in capsys.readouterr().out
    assert main(["targets", "--bugs", "--json"]) == 0
    for bug in json.loads(capsys.readouterr().out):
        assert bug.keys() >= {"name", "class", "origin", "target", "recipe", "expects", "gpu"}


def test_help_takes_less_than_200_ms():
    script = "import sys; from vlm_ci.cli import main; sys.exit(main(['--help']))"
    assert min(processes.cpu_seconds(script) for _ in range(9)) < 0.200


def test_doctor_says_whether_this_machine_is_ready(tmp_path: Path):
    done = vlm_ci("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ok       refused calls" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("ready")


@pytest.mark.nightly
def test_doctor_says_what_is_broken(tmp_path: Path):
    broken = vlm_ci("doctor", "--json", cwd=tmp_path, TORCHDYNAMO_DISABLE="1")
    assert broken.returncode == 1
    report = json.loads(broken.stdout)
    assert not report["ok"]
    assert any(check["status"] == "broken" for check in report["checks"])


def test_several_targets_in_one_run(tmp_path: Path):
    (tmp_path / "engine.py").write_text("from toy import *\n")
    targets = ("--target", "toy:factory,engine:factory", "--examples", "3", "--out", "out")
    done = vlm_ci("run", *targets, cwd=tmp_path, PYTHONPATH=TOY_PATH)
    assert done.returncode == 0, done.stdout + done.stderr
    verdicts = [json.loads(path.read_text())["verdict"] for path in tmp_path.rglob("result.json")]
    assert verdicts == ["clean", "clean"]


PLAN = '{"batches": [{"requests": [{"items": [{"kind": "text", "tokens": 0}]}]}]}'
SEED = PLAN.replace('"tokens": 0}]}]', f'"tokens": 1}}]}}], "seed": {10**14}')
OUTSIDE = '{"batches": [{"requests": [{"items": [{"kind": "text", "tokens": 5000}]}]}]}'

BAD = {
    "unknown command": (["rnu"], "unknown command 'rnu': did you mean 'run'?"),
    "unknown option": (["run", "--targt", "x"], "--targt"),
    "unknown target": (["run", "--target", "qwen3-vl-tyni"], "did you mean 'qwen3-vl-tiny'"),
    "unknown recipe": (["run", "--recipe", "decoder-layer"], "did you mean 'decoder-layers'"),
    "recipe module": (["run", "--recipe", "no_module:f"], "cannot import 'no_module'"),
    "unknown backend": (["run", "--backend", "inducter"], "did you mean 'inductor'"),
    "unknown device": (["run", "--device", "gpu"], "unknown device 'gpu': write cpu, cuda"),
    "other device": (["run", "--device", "meta"], "device 'meta' is not supported"),
    "device not there": (["run", "--device", "cuda:99"], "device 'cuda:99' is not there"),
    "unknown dtype": (["run", "--dtype", "bf16"], "unknown dtype 'bf16'"),
    "unknown bug": (["run", "--bug", "deepstack-kwargs"], "did you mean 'deepstack-kwarg'"),
    "unknown profile": (["run", "--profile", "nigthly"], "did you mean 'nightly'"),
    "unknown plan": (["run", "--warmup", "text-onyl"], "did you mean 'text-only'"),
    "missing plan": (["run", "--warmup", "absent.json"], "cannot read the plan file absent.json"),
    "broken plan": (["run", "--warmup", "plan.json"], "$.batches[0].requests[0].items[0].tokens"),
    "plan outside": (
        ["run", "--warmup", "outside.json"],
        "Text(tokens=5000): tokens must be from 1 to 40",
    ),
    "missing envelope": (["run", "--envelope", "absent.json"], "cannot read the envelope file"),
    "broken envelope": (["run", "--envelope", "broken.json"], "broken.json"),
    "empty envelope": (["run", "--envelope", "backwards.json"], "must be [smallest, largest]"),
    "video for llava": (
        ["run", "--target", "llava-tiny", "--envelope", "video.json"],
        "asks for video, which llava does not take",
    ),
    "size for llava": (
        ["run", "--target", "llava-tiny", "--envelope", "size.json"],
        "images of exactly 16×16 pixels",
    ),
    "odd sides": (["run", "--envelope", "odd.json"], "takes multiples of 8"),
    "too long": (["run", "--envelope", "long.json"], "the model has at most 4096 positions"),
    "negative examples": (["run", "--examples", "-3"], "--examples must be at least 1, not -3"),
    "no examples": (["run", "--examples", "0"], "--examples must be at least 1, not 0"),
    "examples word": (["run", "--examples", "many"], "'many' is not a valid integer"),
    "negative seed": (["run", "--seed", "-1"], "--seed must be at least 0, not -1"),
    "negative limit": (["run", "--recompile-limit", "0"], "--recompile-limit must be at least 1"),
    "repaired alone": (["run", "--repaired"], "--repaired needs --bug: it takes"),
    "unknown mode": (
        ["run", "--backend", "inductor", "--mode", "max-autotun"],
        "did you mean 'max-autotune'",
    ),
    "mode without inductor": (["run", "--mode", "reduce-overhead"], "needs --backend inductor"),
    "unknown dynamic": (["run", "--dynamic", "yes"], "known: auto, false, true"),
    "out is a file": (["run", "--out", "plan.json"], "--out plan.json is a file"),
    "out below a file": (["run", "--out", "plan.json/x"], "cannot write results to plan.json/x"),
    "no checkpoint": (["run", "--target", "llava:absent"], "cannot read the configuration"),
    "no factory": (["run", "--target", "toy:nothing"], "attribute of toy for target 'nothing'"),
    "bug in a factory": (
        ["run", "--target", "toy:factory", "--bug", "static-size"],
        "--bug does not apply to",
    ),
    "envelope of a factory": (
        ["run", "--target", "toy:factory", "--envelope", "odd.json"],
        "--envelope does not apply to",
    ),
    "bug of another family": (
        ["run", "--bug", "deepstack-kwarg", "--target", "llava-tiny"],
        "planted in a model of family qwen3-vl; target llava-tiny is of family llava",
    ),
    "relative recipe": (["run", "--recipe", ".x:y"], "cannot import '.x': TypeError"),
    "failing recipe": (
        ["run", "--target", "llava-tiny", "--recipe", "toy:failing_recipe"],
        "recipe 'toy:failing_recipe' raised ZeroDivisionError",
    ),
    "huge seed": (["run", "--warmup", "seed.json"], "<= 4294967295"),
    "no target": (
        ["run", "--target", "toy:broken_factory"],
        "of type object without name",
    ),
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A folder of broken files, and the current one."""
    files = {
        "plan.json": PLAN,
        "outside.json": OUTSIDE,
        "broken.json": "{",
        "backwards.json": '{"requests": [4, 1]}',
        "seed.json": SEED,
        "video.json": '{"modalities": ["text", "video"]}',
        "size.json": '{"image_side": [32, 32]}',
        "odd.json": '{"side_multiple": 12, "image_side": [12, 24], "video_side": [12, 24]}',
        "long.json": '{"max_tokens": 100000}',
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_message_and_exit_code_4(case: str, folder: Path, capfd):
    args, message = BAD[case]
    assert main(args) == 4
    captured = capfd.readouterr()
    shown = captured.out + captured.err
    assert message in shown
    assert "Traceback" not in shown
    assert "INTERNALERROR" not in shown
    assert not (folder / "vlm-ci-out/result.json").exists()


def test_a_clean_run_of_a_factory_target(tmp_path: Path):
    done = vlm_ci(
        "run",
        "--target",
        "toy:factory",
        "--examples",
        "20",
        "--out",
        "out",
        "--dtype",
        "bfloat16",
        cwd=tmp_path,
        PYTHONPATH=TOY_PATH,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "verdict        clean, results in out" in done.stdout
    assert "warning        --dtype does not apply to toy:factory" in done.stdout
    assert "loading torch and transformers" in done.stderr
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["verdict"] == "clean"
    assert result["traffic"]["examples"] == 20


def test_a_folder_that_is_not_ours_is_left_alone(tmp_path: Path, capfd):
    (tmp_path / "failures").mkdir()
    (tmp_path / "failures/mine.txt").write_text("mine")
    assert main(["run", "--target", "toy:factory", "--out", str(tmp_path)]) == 4
    assert "was not left by an earlier run" in capfd.readouterr().err
    assert (tmp_path / "failures/mine.txt").read_text() == "mine"


def test_bad_input_leaves_earlier_results_alone(tmp_path: Path):
    (tmp_path / "engine.py").write_text(
        "from toy import ToyTarget\n"
        "def factory():\n"
        "    return ToyTarget(lambda call, ids, batch: call(ids) + 1)\n"
        "def broken():\n"
        "    return 3\n"
    )
    common = ("--examples", "3", "--out", "out")
    red = vlm_ci("run", "--target", "engine:factory", *common, cwd=tmp_path, PYTHONPATH=TOY_PATH)
    assert red.returncode == 1, red.stdout + red.stderr
    before = (tmp_path / "out/result.json").read_bytes()
    bad = vlm_ci("run", "--target", "engine:broken", *common, cwd=tmp_path, PYTHONPATH=TOY_PATH)
    assert bad.returncode == 4, bad.stdout + bad.stderr
    assert (tmp_path / "out/result.json").read_bytes() == before
    assert list((tmp_path / "out/failures").iterdir())


def test_a_timeout_without_a_finding_is_exit_code_2(tmp_path: Path):
    (tmp_path / "engine.py").write_text(
        "import json, pathlib, pytest\n"
        "from toy import ToyTarget\n"
        "def factory():\n"
        "    def serve(call, ids, batch):\n"
        "        if json.loads(pathlib.Path('out/result.json').read_text())['strict']['batches']:\n"
        "            pytest.fail('Timeout')\n"
        "        return call(ids)\n"
        "    return ToyTarget(serve)\n"
    )
    target = ("--target", "engine:factory", "--out", "out", "--examples", "500")
    done = vlm_ci("run", *target, cwd=tmp_path, PYTHONPATH=TOY_PATH)
    assert done.returncode == 2, done.stdout + done.stderr
    assert json.loads((tmp_path / "out/result.json").read_text())["verdict"] == "incomplete"


def test_collecting_only_is_exit_code_5(tmp_path: Path):
    done = vlm_ci(
        "run",
        "--target",
        "toy:factory",
        "--",
        "--collect-only",
        cwd=tmp_path,
        PYTHONPATH=TOY_PATH,
    )
    assert done.returncode == 5, done.stdout + done.stderr


@pytest.mark.nightly
def test_found_is_exit_code_1_in_a_worker_too(tmp_path: Path):
    (tmp_path / "engine.py").write_text(
        "from toy import ToyTarget\n"
        "def factory():\n"
        "    return ToyTarget(lambda call, ids, batch: call(ids) + 1)\n"
    )
    done = vlm_ci(
        "run",
        "--target",
        "engine:factory",
        "--examples",
        "5",
        "--",
        "-n",
        "1",
        cwd=tmp_path,
        PYTHONPATH=TOY_PATH,
        PYTEST_ADDOPTS="--collect-only",
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert json.loads((tmp_path / "vlm-ci-out/result.json").read_text())["verdict"] == "failed"


def test_nothing_selected_is_exit_code_5(tmp_path: Path):
    done = vlm_ci(
        "run",
        "--target",
        "toy:factory",
        "--",
        "-k",
        "nothing_of_that_name",
        cwd=tmp_path,
        PYTHONPATH=TOY_PATH,
    )
    assert done.returncode == 5, done.stdout + done.stderr
