"""A target under synthesis: warm it cold, warm more, ask whether a batch would compile.

Looks at compilation only; logits are not compared, and the eager twin is not run.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_ci import causes, interrupts
from vlm_ci.errors import UsageError
from vlm_ci.failures import finding
from vlm_ci.targets.answers import checked
from vlm_ci.warmup import MAX_ROUNDS, increase
from vlm_ci.watch import internals, state
from vlm_ci.watch.events import region_class
from vlm_ci.watch.explain import explain
from vlm_ci.watch.watcher import Watcher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from vlm_ci.targets.protocol import Stats, Target
    from vlm_ci.traffic.spec import Batch

# Events after warm-up that a plan has to keep away.
LATE = set(causes.LATE) - {"graph-skip", "limit-hit"}
NO_LIMIT = 256  # variants of a frame, where the deployment's own limit is lifted to look further


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What a warmed target did with a batch that it should have been warm for.

    ``kind`` is a failure kind; ``key`` names the cause whatever the sizes.
    """

    batch: Batch
    kind: str
    key: str
    cause: str
    advice: str
    frame: str = ""
    guards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Warmed:
    """What rounds over a plan did; ``compiles`` and ``graphs`` are those of each batch in the
    first round. ``converged`` says that a whole round compiled nothing."""

    compiles: tuple[int, ...]
    graphs: tuple[int, ...]
    rounds: int
    converged: bool
    last_round: tuple[int, ...]


class Bench:
    """One target. ``called`` says whether anything compiled was ever called."""

    def __init__(self, target: Target) -> None:
        """Take a target.

        Raises:
            UsageError: it compiles in another process, where calls cannot be refused.
        """
        self.target: Target = checked(target)
        if not target.capabilities.in_process:
            raise UsageError(
                f"warmup needs a target that compiles in this process; {target.name} says "
                "Capabilities(in_process=False), and a call there cannot be refused"
            )
        self.envelope = target.envelope
        self.called = False
        self.limit = internals.recompile_limit()  # the deployment's
        self._limit_before = self.limit
        self._lifted = False
        info = getattr(target, "info", None)
        self._device = info.device if info is not None else "cpu"
        self._own: Watcher | None = None
        if not isinstance(getattr(target, "watcher", None), Watcher):
            self._own = Watcher(self._device)
            self._own.start()

    def close(self) -> None:
        """Put back what was changed; the target stays open."""
        if self._own is not None:
            self._own.stop()
        internals.set_recompile_limit(self._limit_before)

    @property
    def watcher(self) -> Watcher:
        """What records the target's events since the last reset."""
        return self._own or self.target.watcher  # type: ignore[attr-defined]

    @property
    def tells_graphs(self) -> bool:
        """Whether executions are known by graph."""
        return self._own is None

    def lift_limit(self, *, lifted: bool = True) -> None:
        """Set the recompile limit so high that it hides nothing, or put the deployment's back.

        Holds from the next reset on.
        """
        self._lifted = lifted

    def reset(self) -> None:
        """Empty the cache."""
        if self._own is not None:
            self._own.stop()
        self.target.reset()
        if self._own is not None:
            self._own = Watcher(self._device)
            self._own.start()
        internals.set_recompile_limit(NO_LIMIT if self._lifted else self.limit)

    # -- warming -----------------------------------------------------------------------------

    def cold(self, plan: Sequence[Batch]) -> Warmed:
        """Empty the cache and warm a plan up in its order, until a whole round compiles nothing."""
        self.reset()
        return self.warm(plan)

    def warm(
        self,
        plan: Sequence[Batch],
        *,
        on_batch: Callable[[int, int], None] = lambda round_number, index: None,
    ) -> Warmed:
        """Run a plan round after round until a whole round compiles nothing."""
        first: list[tuple[int, int]] = []
        compiles: list[int] = []
        rounds, converged = 0, False
        while rounds < MAX_ROUNDS and not converged:
            rounds += 1
            ran = []
            for index, batch in enumerate(plan):
                on_batch(rounds, index)
                ran.append(self.run(batch))
            first = first or ran
            compiles = [count for count, _ in ran]
            converged = not any(compiles)
        return Warmed(
            compiles=tuple(count for count, _ in first),
            graphs=tuple(count for _, count in first),
            rounds=rounds,
            converged=converged,
            last_round=tuple(compiles),
        )

    def run(self, batch: Batch) -> tuple[int, int]:
        """Run a batch where compiling is allowed; returns its compilations and graphs.

        Raises:
            Finding: the batch raised.
        """
        interrupts.check()
        watcher = self._enter("warmup")
        before, seen = self.target.stats(), watcher.count("compile")
        try:
            self.target.warm_up(batch)
        except Exception as error:
            raise finding(causes.crash("warm-up", error, (batch,))) from error
        watcher.keep_warm()
        after = self.target.stats()
        self._notice(before, after)
        compiled = max(
            watcher.count("compile") - seen, increase(before.compiles, after.compiles) or 0
        )
        return compiled, increase(before.graphs, after.graphs) or 0

    # -- asking ------------------------------------------------------------------------------

    def problem(self, batch: Batch) -> Problem | None:
        """Serve a batch where compiling is refused; None where it was warm.

        Nothing is compiled, so that the cache stays as warm-up left it.

        Raises:
            Finding: the batch raised something that is no refusal.
        """
        watcher = self._enter("strict")
        before, first = self.target.stats(), len(watcher.events)
        crash: Exception | None = None
        with state.preserving_state():
            try:
                with internals.strict():
                    self.target.run_compiled(batch)
            except Exception as error:
                crash = error
        if watcher.refusals:
            self.called = True
            return self._refused(batch)
        if crash is not None:
            raise finding(causes.crash("the compiled twin", crash, (batch,))) from crash
        after = self.target.stats()
        self._notice(before, after)
        return self._late(batch, first, before, after) or self._eager(batch, before, after)

    def _enter(self, phase: str) -> Watcher:
        watcher = self.watcher
        if watcher.phase != phase:
            watcher.begin(phase)
        watcher.begin_step()
        return watcher

    def _notice(self, before: Stats, after: Stats) -> None:
        executed = increase(before.regions, after.regions)
        self.called |= bool(self.watcher.calls) or executed is None or executed > 0

    def _refused(self, batch: Batch) -> Problem:
        refusal, signature, region = self.watcher.refusals[0]
        found = explain(refusal.guards, signature, self.watcher.warm.get(region_class(region), []))
        return Problem(
            batch=batch,
            kind="recompile" if refusal.guards else "new-frame",
            key=f"{region_class(region)} {refusal.frame}: {found.key}",
            cause=found.cause,
            advice=found.advice,
            frame=refusal.frame,
            guards=refusal.guards,
        )

    def _late(self, batch: Batch, first: int, before: Stats, after: Stats) -> Problem | None:
        kinds = {event.kind for event in self.watcher.events[first:]}
        if kinds & LATE or increase(before.compiles, after.compiles):
            return Problem(
                batch=batch,
                kind="recompile",
                key="compiled",
                cause="something was compiled that Dynamo's refusal does not cover",
                advice="add this batch to the warm-up",
            )
        return None

    def _eager(self, batch: Batch, before: Stats, after: Stats) -> Problem | None:
        executed = increase(before.regions, after.regions)
        calls = self.watcher.calls
        skipped = sorted({region_class(call.region) for call in calls if not call.regions})
        nothing = executed == 0 and not self.tells_graphs
        if executed is None or not (skipped or nothing):
            return None
        return Problem(
            batch=batch,
            kind="eager-fallback",
            key=f"eager: {', '.join(skipped)}",
            cause="calls of compiled code executed no compiled region: they ran eagerly"
            + (f" ({', '.join(skipped[:3])})" if skipped else ""),
            advice=causes.LIMIT_ADVICE,
        )

    # -- reading -----------------------------------------------------------------------------

    @property
    def graphs(self) -> int:
        """Graphs compiled since the last reset."""
        return self.watcher.count("graph") if self.tells_graphs else self.target.stats().graphs or 0

    @property
    def limit_hits(self) -> list[str]:
        """The frames that reached the recompile limit since the last reset."""
        self.watcher.end_step()
        hits = (event.frame for event in self.watcher.events if event.kind == "limit-hit")
        return list(dict.fromkeys(hits))

    def most_variants(self) -> tuple[str, int]:
        """Return the frame that was compiled most often since the last reset, and how often."""
        self.watcher.end_step()
        counts = Counter(event.frame for event in self.watcher.events if event.kind == "compiled")
        return counts.most_common(1)[0] if counts else ("", 0)
