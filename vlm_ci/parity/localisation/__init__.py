"""Where a mismatch begins: the module, and the stage between model code and Inductor.

Serves the session that shows it again, strictly; what is compiled stays as it is. It needs a
target that shows its modules. Nothing here decides whether there is a mismatch.
"""

from __future__ import annotations

import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch

from vlm_ci.errors import UsageError
from vlm_ci.families.base import PADDING
from vlm_ci.parity.localisation.judging import FACTOR, Rows, ratios
from vlm_ci.parity.localisation.modules import Divergence, Traces, first_divergence
from vlm_ci.parity.localisation.regions import Bench, first_wrong, module_of, owners
from vlm_ci.parity.localisation.traces import Trace, tracing
from vlm_ci.targets.answers import raised_at
from vlm_ci.targets.protocol import WatchedTarget
from vlm_ci.watch import internals, stages, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from vlm_ci.targets.executions import Captured, Execution
    from vlm_ci.targets.protocol import Output, Target
    from vlm_ci.targets.reference import Reference
    from vlm_ci.traffic.spec import Batch, Session
    from vlm_ci.watch.watcher import Watcher

# A token that is this close to eager, in multiples of eager's own error, shows no mismatch.
SHOWS = 2.0

MODEL_CODE = "model code"
DYNAMO = "Dynamo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Localised:
    """Where a mismatch begins; "" stands for what is not known, and ``note`` then says why.

    ``module`` is named as ``named_modules()`` does, the model itself by its class. ``stage`` is
    "model code" where the compiled twin's Python code differs from eager uncompiled too, "Dynamo"
    where the captured graphs compute something else than that code, "AOTAutograd" or "Inductor"
    where compiled code computes something else than its graph. ``region`` is the place in the
    source where the guilty region's graph begins.
    """

    module: str = ""
    stage: str = ""
    region: str = ""
    note: str = ""


@runtime_checkable
class ShowsModules(Protocol):
    """What localisation needs of a target besides the protocol's own methods."""

    compiled_modules: dict[str, torch.nn.Module]
    graphs: Mapping[int, Captured]

    def twins(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Return the eager and the compiled twin."""
        ...

    def recording(self, where: Callable[[], str]) -> AbstractContextManager[list[Execution]]:
        """Keep what each compiled region takes and gives."""
        ...

    def reference(self) -> Reference | None:
        """Return the instance of higher precision."""
        ...

    def run_reference(self, batch: Batch) -> Output:
        """Answer a batch with it."""
        ...


SHOWN = ("compiled_modules", "graphs", "twins", "recording", "reference", "run_reference")


class _Shown(ShowsModules, WatchedTarget, Protocol):
    """A target of this process that shows its modules."""


def localise(target: Target, session: Session, request: int, token: int) -> Localised:
    """Serve a session again and say where its last batch's mismatch at a token begins.

    ``token`` is an index in the padded row. What the model raises meanwhile becomes a note. The
    values of all modules for this request are kept meanwhile, in three precisions: meant for a
    session that has been made small.

    Raises:
        UsageError: the last batch has no such request or token.
    """
    # Asked one by one: from Python 3.12 on isinstance does not see what a wrapper passes on.
    if not all(hasattr(target, name) for name in SHOWN):
        return Localised(
            note="the target shows no modules: only a model that vlm_ci itself has built is "
            "looked into"
        )
    shown: Any = target
    try:
        with _aside(shown.watcher), state.preserving_state():
            return _Search(shown, session, request, token).run()
    except UsageError:
        raise
    except Exception as error:
        again = "was refused" if internals.is_refusal(error) else f"raised {raised_at(error)}"
        return Localised(note=f"served again it {again}")


@contextmanager
def _aside(watcher: Watcher) -> Iterator[None]:
    """Serve beside the step that goes on; what is refused here is none of its refusals."""
    step = watcher.step
    with watcher.aside():
        watcher.begin_step()
        try:
            yield
        finally:
            watcher.step = step


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reference:
    """The reference's answer to the batch, or why there is none."""

    model: Reference | None
    logits: torch.Tensor | None = None
    trace: Trace | None = None
    why: str = ""


class _Search:
    """One localisation: the batch served again in several ways, and what follows from it."""

    def __init__(self, target: _Shown, session: Session, request: int, token: int) -> None:
        self.target = target
        self.batch = session.batches[-1]
        self.earlier = session.batches[:-1]
        self.eager_twin, self.twin = target.twins()
        self._serve_earlier()
        plain = target.run_eager(self.batch)
        kinds = plain.token_kinds
        if not (0 <= request < kinds.shape[0] and 0 <= token < kinds.shape[1]):
            raise UsageError(
                f"the batch has {kinds.shape[0]} requests of {kinds.shape[1]} places: it has no "
                f"token {token} of request {request}"
            )
        if kinds[request, token] == PADDING:
            raise UsageError(f"token {token} of request {request} is padding")
        self.kinds = kinds
        self.rows = Rows(kinds, request)
        self.at = int((kinds[request, :token] != PADDING).sum())
        self.request = request

    def run(self) -> Localised:
        """Compare stage by stage; the first one that explains the mismatch is told."""
        with tracing(dict(self.eager_twin.named_modules()), self.rows) as eager_trace:
            eager = self._logits(self.target.run_eager(self.batch))
        reference = self._refer()
        compiled, boundary, executions = self._compiled()
        shown = self._ratio(compiled, eager, reference)
        if shown <= SHOWS:
            return Localised(note=_not_again(shown))
        self._serve_earlier()
        with (
            stages.uncompiled(),
            tracing(dict(self.twin.named_modules()), self.rows) as python_trace,
        ):
            python = self._logits(self.target.run_compiled(self.batch))
        uncompiled = self._ratio(python, eager, reference)
        # Rounding is far below the fault, which values between two modules may show more clearly.
        factor = max(FACTOR, math.sqrt(shown)) if math.isfinite(shown) else FACTOR
        if uncompiled > SHOWS and (uncompiled >= shown / 2 or math.isinf(uncompiled)):
            traces = Traces(
                actual=python_trace, expected=eager_trace, reference=reference.trace, factor=factor
            )
            return self._of_modules(traces, MODEL_CODE, shown, reference)
        wrong = self._wrong_region(executions, reference, factor)
        if wrong.stage:
            return wrong
        traces = Traces(
            actual=boundary, expected=python_trace, reference=reference.trace, factor=factor
        )
        found = self._of_modules(traces, DYNAMO, shown, reference)
        return replace(found, note="; ".join(filter(None, (found.note, wrong.note))))

    # -- serving -----------------------------------------------------------------------------

    def _serve_earlier(self) -> None:
        """Serve what came before in the session: a model may keep something of it."""
        for batch in self.earlier:
            with internals.strict():
                self.target.run_compiled(batch)
            self.target.run_eager(batch)

    def _compiled(self) -> tuple[torch.Tensor, Trace, list[Execution]]:
        """Serve the batch compiled, traced where nothing is compiled and where that is entered."""
        compiled = {id(each): name for name, each in self.target.compiled_modules.items()}
        inside = {
            id(part) for each in self.target.compiled_modules.values() for part in each.modules()
        }
        named = dict(self.twin.named_modules())
        outside = {name: each for name, each in named.items() if id(each) not in inside}
        entered = {name: each for name, each in named.items() if id(each) in compiled}
        with ExitStack() as stack:
            trace = stack.enter_context(tracing(outside, self.rows, entered))
            executions = stack.enter_context(self.target.recording(lambda: trace.current))
            stack.enter_context(internals.strict())
            output = self.target.run_compiled(self.batch)
        return self._logits(output), trace, executions

    def _refer(self) -> _Reference:
        model = self.target.reference()
        if model is None:
            return _Reference(model=None, why="there is no wider type to judge by")
        try:
            with tracing(dict(model.model.named_modules()), self.rows) as trace:
                logits = self._logits(self.target.run_reference(self.batch))
        except Exception as error:  # some code cannot be lifted
            why = f"there is no reference to judge by ({raised_at(error)})"
            return _Reference(model=None, why=why)
        return _Reference(model=model, logits=logits, trace=trace)

    def _logits(self, output: Output) -> torch.Tensor:
        return self.rows.of(output.logits)

    def _ratio(self, actual: torch.Tensor, expected: torch.Tensor, reference: _Reference) -> float:
        return float(ratios(actual, expected, reference.logits)[self.at])

    # -- judging -----------------------------------------------------------------------------

    def _of_modules(
        self, traces: Traces, stage: str, shown: float, reference: _Reference
    ) -> Localised:
        model = self.twin
        found: Divergence | None = first_divergence(traces, model)
        if found is None and traces.factor > FACTOR:
            found = first_divergence(replace(traces, factor=FACTOR), model)
        if found is None:
            note = (
                f"the logits are off by {shown:.3g} times eager's own error, and no module's "
                f"output by more than {FACTOR:g} times"
            )
            return Localised(
                stage=stage if stage == MODEL_CODE else "",
                note="; ".join(filter(None, (note, reference.why))),
            )
        return Localised(
            module=found.module or type(model).__name__,
            stage=stage,
            note="; ".join(filter(None, (found.note, reference.why))),
        )

    def _wrong_region(
        self, executions: list[Execution], reference: _Reference, factor: float
    ) -> Localised:
        bench = Bench(
            context=self.batch.context,
            device=torch.device(self.target.info.device),
            rows=Rows(self.kinds),
            reference=reference.model,
            factor=factor,
        )
        graphs, backend = self.target.graphs, self.target.info.backend
        try:
            wrong = first_wrong(executions, graphs, bench, backend)
        except Exception as error:  # a graph that cannot be run by itself
            return Localised(
                note=f"whether the compiler is at fault is not known: a graph that was captured, "
                f"run again, raised {raised_at(error)}"
            )
        if wrong is None:
            return Localised()
        captured = graphs[wrong.execution.graph]
        module = module_of(wrong.execution, owners(self.twin))
        return Localised(
            module=module or type(self.twin).__name__,
            stage=wrong.stage,
            region=f"graph {wrong.execution.graph}, {captured.place}".rstrip(", "),
            note=f"its compiled code is off by {wrong.ratio:.3g} times the error of its own graph "
            f"run eagerly; {wrong.note}",
        )


def _not_again(ratio: float) -> str:
    return f"served again it does not show: the token is off by {ratio:.3g} times eager's own error"
