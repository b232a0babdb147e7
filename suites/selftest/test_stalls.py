"""First uses that stall, on a target and a clock of our own: which ones count, and who pays."""

from __future__ import annotations

import pytest
import torch
from toy import ToyTarget

from vlm_ci import stalls
from vlm_ci.checker import Checker, CheckSettings
from vlm_ci.listeners import Silent
from vlm_ci.policies import Policies
from vlm_ci.stalls import StallWatch, unwatched
from vlm_ci.targets.protocol import Stats
from vlm_ci.traffic.spec import Image, Text, batch
from vlm_ci.warmup import named_plan
from vlm_ci.watch.watcher import Watcher


class Slow(ToyTarget):
    """Takes ``first`` seconds for a new shape and ``repeat`` for one that it has served, says so
    itself, and spends the difference in an operator."""

    def __init__(self, *, first: float = 0.2, repeat: float = 0.02, pauses: bool = False) -> None:
        super().__init__()
        self.first, self.repeat, self.pauses = first, repeat, pauses
        self.served: list[object] = []
        self.seconds = 0.0

    def run_compiled(self, part):
        new = part.requests not in self.served and not (self.pauses and self.served)
        self.served.append(part.requests)
        self.seconds += self.first if new else self.repeat
        if new:
            size = torch.ones(400, 400)
            for _ in range(20):
                torch.mm(size, size)
        return super().run_compiled(part)

    def stats(self) -> Stats:
        return Stats(regions=self._regions, compiles=self._graphs, forward_seconds=self.seconds)


def look(target: Slow, part, **given):
    watch = StallWatch(target, Watcher(), **given)
    before = target.seconds
    target.run_compiled(part)
    return watch, watch.look(part, target.seconds - before)


def test_a_slow_first_use_is_confirmed_on_a_fresh_shape_and_names_who_pays():
    target = Slow()
    watch, stall = look(target, batch([Text(3), Image(8, 8)]))
    assert stall is not None
    assert (stall.first, stall.repeat) == (pytest.approx(0.2), pytest.approx(0.02))
    assert stall.note.startswith("profiled on a fresh shape of the same kind: 200 ms, repeated 20")
    assert "aten::mm" in dict(stall.operators)
    assert watch.look(batch([Text(3), Image(8, 8)]), 9.0) is None  # no new shape
    target.close()


def test_each_kind_is_profiled_once(monkeypatch):
    profiled = []
    profile = StallWatch._profile
    monkeypatch.setattr(
        StallWatch, "_profile", lambda self, part: profiled.append(part) or profile(self, part)
    )
    target = Slow(first=0.04, repeat=0.004)
    watch = StallWatch(target, Watcher())
    found = []
    for part in (batch(Text(3)), batch(Text(12)), batch([Text(3), Image(8, 8)]), batch(Text(7))):
        target.run_compiled(part)
        found.append(watch.look(part, 0.04))
    assert None not in found
    assert [part.modalities for part in profiled] == [
        *[frozenset({"text"})] * 2,
        *[frozenset({"text", "image"})] * 2,
    ]
    assert {one.operators[0][0] for one in found} == {"aten::mm"}
    assert found[1].operators == found[0].operators == found[3].operators
    assert found[1].note.startswith("served a fresh shape of the same kind: 40 ms, repeated 4 ms")
    assert found[1].note.endswith("an earlier one was profiled")
    target.close()


@pytest.mark.parametrize(
    "timing",
    [{"first": 0.03, "repeat": 0.02}, {"first": 0.009, "repeat": 0.001}, {"pauses": True}],
    ids=["too small a factor", "too few seconds", "a pause that a fresh shape does not show"],
)
def test_what_is_no_stall(timing):
    target = Slow(**timing)
    _, stall = look(target, batch(Text(3)))
    assert stall is None
    target.close()


def test_cheap_shapes_are_measured_by_their_own_kind():
    target = Slow(first=0.2, repeat=0.2)
    watch = StallWatch(target, Watcher())
    for tokens in range(1, 13):
        watch.look(batch([Text(tokens), Image(8, 8)]), 0.2)
    target.first, target.repeat = 0.1, 0.005
    target.run_compiled(batch(Text(4)))
    assert watch.look(batch(Text(4)), 0.1) is not None
    target.close()


def test_after_enough_stalls_of_a_kind_no_more_are_looked_for(monkeypatch):
    monkeypatch.setattr(stalls, "MOST", 1)
    target = Slow()
    watch, stall = look(target, batch(Text(3)))
    assert stall is not None
    served = len(target.served)
    assert watch.look(batch(Text(9)), 5.0) is None
    assert len(target.served) == served
    target.close()


def run(target: Slow, policy: str):
    settings = CheckSettings(
        plan=named_plan("text-only", target.envelope),
        examples=3,
        policies=Policies({"stall": policy}),
    )
    checker = Checker(target, settings, Silent())
    try:
        checker.run()
    finally:
        target.close()
    return checker.result


@pytest.mark.parametrize("policy", ["warn", "fail", "off"])
def test_the_policy_decides_and_the_step_is_not_disturbed(policy: str):
    target = Slow()
    result = run(target, policy)
    failed = [failure.kind for failure in result.failures]
    assert failed == (["stall"] if policy == "fail" else [])
    assert bool(result.tolerated) == (policy == "warn")
    assert result.strict.regions_per_step.most == 1
    (layer,) = [one for one in result.watch if one.layer == "stalls"]
    assert bool(layer.blind) == (policy == "off")


def test_what_compiles_while_a_shape_is_served_again_is_late_all_the_same():
    class Late(Slow):
        late = False

        def run_compiled(self, part):
            warmed = len(self.served) > 15  # the plan has five batches, and takes two rounds
            if warmed and part.requests in self.served and not self.late:
                self.late = True
                with torch.compiler.set_stance("default"):
                    torch.compile(lambda x: x * 3, backend="eager")(torch.ones(3))
            return super().run_compiled(part)

    result = run(Late(), "warn")
    assert {failure.kind for failure in result.failures} & {"recompile", "new-frame"}


def test_why_stalls_are_not_watched():
    none, named = Policies(), Policies({"stall": "warn"})
    assert unwatched("cuda:1", none, in_process=True) == ""
    assert "noisy" in unwatched("cpu", none, in_process=True)
    assert unwatched("cpu", named, in_process=True) == ""
    assert "off" in unwatched("cuda", Policies({"stall": "off"}), in_process=True)
    assert "out of process" in unwatched("cuda", none, in_process=False)
