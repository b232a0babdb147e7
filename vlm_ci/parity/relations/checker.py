"""Serves the variants of a batch beside the step that served it, and compares the answers.

Decides nothing about what becomes of a violation.
"""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from hashlib import blake2b
from typing import TYPE_CHECKING

import msgspec
import torch

from vlm_ci.errors import UsageError
from vlm_ci.parity.relations.comparing import Comparer, LeftOut, Served
from vlm_ci.parity.relations.distance import distances
from vlm_ci.parity.relations.records import Books, Relation, Variant, Violation
from vlm_ci.parity.relations.variants import RELATIONS, other_content
from vlm_ci.targets.answers import check_output
from vlm_ci.traffic.spec import MAX_SEED, Batch, pinned
from vlm_ci.watch import internals, state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from contextlib import AbstractContextManager

    from vlm_ci.targets.protocol import Output, Target
    from vlm_ci.watch.watcher import Watcher

PHASE = "relations"
# In multiples of the root mean square of the embeddings.
POISON = 1e4

TRIES = 3  # at other content, because one token may be drawn as the same again

IGNORES_SEEDS = "the target does not honour the seeds of items (item_seed): "


class RelationChecker:
    """Judges batches that the compiled twin has served by the relations.

    ``books`` says of each relation how often it was judged, left out and off, and why. What is
    served runs where compiling is refused, in a phase of the watch of its own, and leaves calls,
    regions and steps as they were.
    """

    def __init__(self, target: Target, watcher: Watcher) -> None:
        self._target = target
        self._watcher = watcher
        self._comparer = Comparer(target)
        self._seeds: dict[object, str] = {}  # why seeds are ignored, by modalities
        self.books = {name: Books() for name in RELATIONS}

    @property
    def worst(self) -> dict[str, float]:
        """The largest difference so far relative to what is allowed, by relation."""
        return self._comparer.worst

    def choose(self, batch: Batch, names: Iterable[str]) -> str:
        """Choose the relation for a batch; "" where all are off for it.

        Each name is ranked by a hash of itself and of what shrinking leaves alone (seed, padding,
        context, modalities): a smaller batch with the same seed is judged by the same relation,
        unless that is off for it, and then by the next.
        """
        if self._seeds.get(batch.modalities):
            return ""
        own = f"{batch.seed} {batch.padding} {batch.context} {sorted(batch.modalities)}"

        def rank(name: str) -> bytes:
            return blake2b(f"{name} {own}".encode(), digest_size=8).digest()

        chosen = ""
        for name in sorted(names, key=rank):
            if reason := RELATIONS[name].off(self._target, batch):
                self.books[name].off[reason] += 1
            elif not chosen:
                chosen = name
        return chosen

    def check(self, batch: Batch, output: Output, names: Iterable[str]) -> Violation | None:
        """Judge a batch that was served, with ``output``, by the named relations.

        Returns the first violation. Its variants are served here and nowhere else.
        """
        base = Served.of(batch, output)
        with self._beside():
            for name in names:
                relation, books = RELATIONS[name], self.books[name]
                reason = relation.off(self._target, batch) or self._ignores_seeds(base)
                if reason:
                    books.off[reason] += 1
                    continue
                if violation := self._judge(relation, base):
                    return violation
        return None

    def _judge(self, relation: Relation, base: Served) -> Violation | None:
        books, judged = self.books[relation.name], False
        try:
            for variant in relation.variants(pinned(base.batch), self._target.envelope):
                try:
                    violation = self._judge_variant(relation, base, variant)
                except LeftOut as reason:
                    books.left_out[str(reason)] += 1
                    continue
                judged = True
                if violation is not None:
                    return violation
        finally:
            books.judged += judged
        return None

    def _judge_variant(
        self, relation: Relation, base: Served, variant: Variant
    ) -> Violation | None:
        if variant.mixed is not None:
            batch, other = variant.batches
            served = [self._serve_mixed(batch, other, *variant.mixed)]
        else:
            served = [self._serve(one, poisoned=variant.poisoned) for one in variant.batches]
        if variant.elsewhere and any(torch.equal(base.kinds, one.kinds) for one in served):
            raise LeftOut("the target's rows stand where they stood")
        worst: Violation | None = None
        left_out: list[LeftOut] = []
        for match in variant.matches:
            try:
                found = self._comparer.compare(relation, base, served, match)
            except LeftOut as reason:
                left_out.append(reason)
                continue
            if found is not None and (worst is None or found.ratio > worst.ratio):
                worst = found
        if left_out and len(left_out) == len(variant.matches):
            raise left_out[0]
        return worst

    # -- serving -----------------------------------------------------------------------------

    def _serve_mixed(self, batch: Batch, other: Batch, part: int, parts: int) -> Served:
        run = getattr(self._target, "run_mixed", None)
        if run is None:
            raise LeftOut("the target has no run_mixed, which changes one group of frames")
        return self._serve(batch, run=lambda: run(batch, other, part, parts))

    def _serve(
        self,
        batch: Batch,
        *,
        poisoned: bool = False,
        run: Callable[[], Output] | None = None,
    ) -> Served:
        """Serve a batch where compiling is refused, by ``run`` if there is one.

        Raises:
            LeftOut: the envelope does not allow it, it would compile, or it crashed.
            UsageError: the target broke its protocol.
        """
        envelope = self._target.envelope
        if reason := envelope.violation(batch):
            raise LeftOut(f"outside the envelope: {reason}")
        if envelope.padded_length(batch) > envelope.max_tokens:
            raise LeftOut(f"outside the envelope: rows of more than {envelope.max_tokens}")
        guard: Callable[[], AbstractContextManager[None]] = (
            internals.strict if self._target.capabilities.in_process else nullcontext
        )
        output: Output
        self._watcher.begin_step()
        try:
            with state.preserving_state(), guard():
                if run is not None:
                    output = run()
                elif poisoned:
                    output = self._target.run_poisoned(batch, POISON)  # type: ignore[attr-defined]
                else:
                    output = self._target.run_compiled(batch)
        except UsageError:
            raise
        except Exception as error:  # the search finds it when it serves such a batch
            if internals.is_refusal(error):
                raise LeftOut("it would compile") from error
            text = str(error).strip().split("\n")[0][:100]
            raise LeftOut(f"it raised {type(error).__name__}: {text}") from error
        finally:
            self._watcher.end_step()
        if self._watcher.refusals:  # swallowed: what ran in its place is not the compiled code
            raise LeftOut("it would compile")
        if poisoned:  # the others are checked where they come from
            check_output(self._target, "run_poisoned", output, batch)
        shape = output.token_kinds.shape
        if shape[0] != len(batch.requests) or output.logits.shape[:2] != shape:
            raise LeftOut("its answer has another shape than the batch")
        return Served.of(batch, output)

    @contextmanager
    def _beside(self) -> Iterator[None]:
        watcher = self._watcher
        phase, step = watcher.phase, watcher.step
        with watcher.aside():
            watcher.phase = PHASE
            try:
                yield
            finally:
                watcher.end_step()
                watcher.phase, watcher.step = phase, step

    # -- seeds -------------------------------------------------------------------------------

    def _ignores_seeds(self, base: Served) -> str:
        """Say why items cannot be moved about in batches of these modalities; "" where they can.

        Looks once for each set of modalities: with items' seeds written out, the batch's own must
        move nothing, and with other items' seeds something must move.
        """
        kind = base.batch.modalities
        if kind not in self._seeds:
            try:
                self._seeds[kind] = self._look_at_seeds(base)
            except LeftOut as reason:
                return f"whether the target honours the seeds of items is not known: {reason}"
        return self._seeds[kind]

    def _look_at_seeds(self, base: Served) -> str:
        batch = pinned(base.batch)
        same_inputs = getattr(self._target, "same_inputs", None)
        if same_inputs is not None:  # what the model answers may itself be at fault
            if not same_inputs(base.batch, batch):
                return IGNORES_SEEDS + "items that have the seed of their place are others"
            changed = any(not same_inputs(batch, other) for other in _others(batch))
            return "" if changed else IGNORES_SEEDS + "no input changes with them"
        fixed = msgspec.structs.replace(batch, seed=(batch.seed + 1) % (MAX_SEED + 1))
        if self._differs(base, self._serve(fixed)) and self._is_steady(base, fixed):
            return IGNORES_SEEDS + "the seed of the batch changes items that have their own"
        for other in _others(batch):
            if self._differs(base, self._serve(other), least=0.0):
                return ""
        return IGNORES_SEEDS + "nothing moves when they change"

    def _is_steady(self, base: Served, fixed: Batch) -> bool:
        """Whether each of the two batches is answered as itself each time, so that the difference
        between them is their content's and not the target's state."""
        first = self._serve(fixed)
        again = [self._serve(base.batch), self._serve(base.batch)]
        second = self._serve(fixed)
        return not any(self._differs(base, one) for one in again) and not self._differs(
            first, second
        )

    def _differs(self, one: Served, other: Served, *, least: float | None = None) -> bool:
        """Whether any token differs by more than ``least``, by default what is allowed."""
        if not torch.equal(one.kinds, other.kinds):
            return True
        limit = self._comparer.allowed(one.batch) if least is None else least
        return any(
            bool((distances(left, right) > limit).any())
            for left, right in zip(one.rows, other.rows, strict=True)
            if len(left.places)
        )


def _others(batch: Batch) -> Iterator[Batch]:
    """Yield the batch with other content, a few times."""
    for _ in range(TRIES):
        batch = other_content(batch)
        yield batch
