"""Baseline files: written by several processes, chosen by options, brought by the wheel."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import msgspec
import processes
import pytest
from projects import WORKERS_BY_NIGHT

from vlm_ci import locations
from vlm_ci.baselines import files
from vlm_ci.baselines.records import Entry, Setup
from vlm_ci.baselines.use import open_baseline
from vlm_ci.errors import UsageError
from vlm_ci.options import DEFAULT_BASELINES
from vlm_ci.settings import Layer, Settings
from vlm_ci.watch.places import place_of

pytest_plugins = ["pytester"]


def entry(recipe: str, *, torch: str = "2.13.0", graphs: int = 5) -> Entry:
    return Entry(
        setup=Setup(
            target="toy",
            recipe=recipe,
            backend="eager",
            device="cpu",
            dtype="float32",
            options={"dynamic": True},
            plan="default",
            envelope="",
        ),
        made_with={"torch": torch, "transformers": "5.23.0", "python": "3.11"},
        batches=9,
        rounds=2,
        compiles=5,
        graphs=graphs,
        frames={},
        breaks={},
        captures=None,
        logits=None,
    )


def write(path: str, recipes: list[str]) -> None:
    for recipe in recipes:
        files.update(Path(path), entry(recipe))


def test_processes_that_update_one_file_lose_nothing(tmp_path: Path):
    path = tmp_path / "new/toy.json"
    names = [[f"{worker}-{index}" for index in range(8)] for worker in range(2)]
    with ProcessPoolExecutor(2, mp_context=processes.context()) as pool:
        for done in [pool.submit(write, str(path), part) for part in names]:
            done.result(timeout=300)
    assert [one.setup.recipe for one in files.read(path)] == sorted(
        name for part in names for name in part
    )
    assert [one.name for one in path.parent.iterdir()] == ["toy.json"]  # no lock, no half file


def test_an_update_replaces_the_entry_of_its_setup_and_versions_alone(tmp_path: Path):
    path = tmp_path / "toy.json"
    for one in (entry("a"), entry("b"), entry("a", torch="2.9.1")):
        files.update(path, one)
    files.update(path, entry("a", graphs=7))
    assert files.read(path) == (entry("a", torch="2.9.1"), entry("a", graphs=7), entry("b"))
    found = files.find(files.read(path), entry("a", torch="2.12.0"))
    assert found == entry("a", graphs=7)  # 2.13.0 is newer than 2.9.1
    older = entry("a", torch="2.9.1")
    other = {**older.made_with, "transformers": "5.17.0", "python": "3.12"}
    close = msgspec.structs.replace(older, made_with=other)
    assert files.find(files.read(path), close) == older  # the same torch comes first
    assert files.find(files.read(path), entry("c")) is None


def test_a_folder_that_cannot_be_written_is_bad_input(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"cannot write the baseline file .*toy.json: "):
        files.update(tmp_path / "file/toy.json", entry("a"))


def test_a_target_s_name_makes_a_file_s_name():
    folder = Path("b")
    assert files.path_of(folder, "qwen3-vl-tiny") == folder / "qwen3-vl-tiny.json"
    assert files.path_of(folder, "package.module:factory") == folder / "package.module-factory.json"
    assert files.path_of(folder, "qwen3-vl:../x") == folder / "qwen3-vl-..-x.json"
    assert files.path_of(folder, "//") == folder / "target.json"


# -- what we bring -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["qwen3-vl-tiny", "qwen2.5-vl-tiny", "llava-tiny"])
def test_the_baselines_that_we_bring_are_whole_and_as_we_write_them(name: str, tmp_path: Path):
    path = locations.fixtures() / "baselines" / f"{name}.json"
    entries = files.read(path)
    assert path.read_bytes() == files.content_of(entries)
    assert ("decoder-layers", "eager") in [(e.setup.recipe, e.setup.backend) for e in entries]
    for one in entries:
        assert one.setup.target == name
        assert one.graphs
        assert sum(one.frames.values()) == one.compiles > 0
        assert one.logits is not None
        assert one.logits.tokens > 10_000
        assert not any(place.startswith("/") for place in one.frames)
    brought = open_baseline(tmp_path, name, shipped=True)
    assert (brought.path, brought.entries) == (path, entries)
    assert brought.own == tmp_path / f"{name}.json"
    assert open_baseline(tmp_path, name, shipped=False).entries == ()
    files.update(tmp_path / f"{name}.json", entry("own"))
    assert open_baseline(tmp_path, name, shipped=True).entries == (entry("own"),)


def test_every_file_that_we_bring_is_named_after_a_target():
    for path in (locations.fixtures() / "baselines").glob("*.json"):
        assert isinstance(files.read(path), tuple)
        assert {files.path_of(path.parent, e.setup.target) for e in files.read(path)} == {path}


# -- options -------------------------------------------------------------------------------------


def layered(*layers: dict[str, object]) -> Settings:
    return Settings.from_layers([Layer(values=values) for values in layers])


def test_a_planted_bug_is_compared_only_where_that_is_asked(tmp_path: Path):
    given = {"baselines": str(tmp_path)}
    assert layered({}).baselines == Path(DEFAULT_BASELINES)
    assert layered({"baselines": "none"}).baselines is None
    assert layered(given, {"bug": "deepstack-kwarg"}).baselines is None
    assert layered({"bug": "deepstack-kwarg", **given}).baselines == tmp_path
    assert layered({"bug": "deepstack-kwarg"}, given).baselines == tmp_path


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"baselines": "nowhere"}, "--baselines nowhere is not there: name a folder of baselines"),
        ({"baselines": __file__}, "is a file: name a folder"),
        ({"update_baselines": True, "bug": "deepstack-kwarg"}, "--update-baselines with a planted"),
        ({"update_baselines": True, "baselines": "none"}, "--update-baselines needs a folder"),
    ],
)
def test_options_that_make_no_sense_are_refused(given: dict[str, object], message: str):
    with pytest.raises(UsageError) as caught:
        layered(given)
    assert message in str(caught.value)


def test_a_folder_that_is_to_be_written_need_not_be_there():
    found = layered({"baselines": "nowhere", "update_baselines": True})
    assert (found.baselines, found.update_baselines) == (Path("nowhere"), True)


# -- places --------------------------------------------------------------------------------------

SOURCE = """\
class Outer:
    class Inner:
        @staticmethod
        def decorated(): pass

        def forward(self):
            def nested(): pass
            return nested

if True:
    async def conditional(): pass
"""


@pytest.mark.parametrize(
    ("function", "line", "name"),
    [
        ("decorated", 3, "Outer.Inner.decorated"),
        ("forward", 6, "Outer.Inner.forward"),
        ("nested", 7, "Outer.Inner.forward.nested"),
        ("conditional", 11, "conditional"),
        ("torch_dynamo_resume_in_forward_at_8", 8, "torch_dynamo_resume_in_forward"),
        ("torch_dynamo_resume_in_forward_at_6", 6, "torch_dynamo_resume_in_forward"),
        ("<lambda>", 8, "<lambda>"),
    ],
)
def test_a_place_has_no_line_and_no_folder_of_this_machine(
    tmp_path: Path, function: str, line: int, name: str
):
    package = tmp_path / "somewhere/package/inner"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    for path, shown in ((package / "m.py", "package/inner/m.py"), (tmp_path / "m.py", "m.py")):
        path.write_text(SOURCE)
        assert place_of(str(path), function, line) == f"{shown}: {name}"


def test_a_place_without_a_file_is_named_too():
    assert place_of("<string>", "__init__", 2) == "<string>: __init__"
    assert place_of("<eval_with_key>.17", "forward", 4) == "<eval_with_key>: forward"
    assert place_of("", "forward", 0) == "forward"


# -- pytest --------------------------------------------------------------------------------------

ENGINE = """
    import os
    import worsened
    from toy import ToyTarget

    def engine():
        return worsened.more_graphs() if os.environ.get("WORSE") else ToyTarget()
"""


@WORKERS_BY_NIGHT
def test_a_rise_fails_the_test_and_is_shown_line_by_line(
    project, monkeypatch, workers: tuple[str, ...]
):
    project.makepyfile(engine=ENGINE)
    options = ("--vlm-target=engine:engine", "--vlm-warmup=text-only", "--vlm-examples=5", *workers)
    written = project.run(*options, "--vlm-update-baselines")
    assert written.ret == 0
    file = f"{DEFAULT_BASELINES}/engine-engine.json"
    written.stdout.fnmatch_lines([f"baseline       {file}: written"])
    content = (project.path / file).read_bytes()
    (entry,) = json.loads(content)["entries"]
    monkeypatch.setenv("WORSE", "1")
    red = project.run(*options)
    assert red.ret == 1
    red.assert_outcomes(failed=1)
    now = json.loads((project.path / "vlm-ci-out/result.json").read_text())
    assert now["warmup"]["graphs"] > entry["graphs"]
    red.stdout.fnmatch_lines(
        [
            "baseline: compiling is worse than in the baseline: *",
            f"baseline       {file}: 3 worse",
            f"               - graphs {entry['graphs']}",
            f"               + graphs {now['warmup']['graphs']}",
            "failure        baseline: *",
            "verdict        failed, 1 cause, results in vlm-ci-out",
        ]
    )
    assert (project.path / file).read_bytes() == content
    again = project.run(*options, "--vlm-update-baselines")
    assert again.ret == 0
    again.stdout.fnmatch_lines([f"baseline       {file}: written, 3 worse than before"])
