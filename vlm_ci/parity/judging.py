"""How the logits of one target are judged: by a reference where it has one, else by tolerances."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from vlm_ci.errors import UsageError, unknown_name
from vlm_ci.families.base import PADDING
from vlm_ci.options import REFERENCES
from vlm_ci.parity import oracle
from vlm_ci.parity.comparison import (
    TOLERANCES,
    Comparison,
    check_alike,
    compare,
    conclude,
    nonfinite,
)
from vlm_ci.targets.answers import ProtocolError, broken, check_output, describe, raised_at
from vlm_ci.targets.contexts import AUTOCAST_DTYPE

if TYPE_CHECKING:
    from vlm_ci.targets.protocol import Output, Target
    from vlm_ci.traffic.spec import Batch

# What a reference may raise where it is not to be had: no kernel for the type, no memory.
FALLS_BACK = (UsageError, RuntimeError, MemoryError)


class Judge:
    """Compares the compiled answers of a target with eager's.

    ``reference`` says what they are judged by: the type of the reference, or "none" where the
    documented tolerance of the type decides, which is weaker; ``weaker`` then says why.
    ``missing`` counts batches that the reference did not answer, ``eager_error`` is the largest
    error of eager against it over a batch (relative, root mean square).
    """

    def __init__(self, target: Target, *, dtype: str, wanted: str = "auto") -> None:
        """Choose how to judge.

        Raises:
            UsageError: ``wanted`` is none of ``REFERENCES``.
        """
        if wanted not in REFERENCES:
            raise unknown_name("reference", wanted, REFERENCES)
        self._target = target
        self._dtype = dtype
        self.tolerance = TOLERANCES[dtype]
        self.reference = "none"
        self.missing = 0
        self.eager_error = 0.0
        self.failed = ""  # what the reference said where it did not answer
        self._proven = 0.0  # the largest error of eager on the batches of the plan
        self.weaker = ""
        if wanted == "none":
            self.weaker = "--reference none"
        elif target.capabilities.logits != "full":
            self.weaker = "the target answers with the most likely tokens alone"
        elif not hasattr(target, "run_reference"):
            self.weaker = "the target has no run_reference"
        elif dtype not in oracle.EAGER_ERROR_LIMIT:
            self.weaker = f"there is no type wider than {dtype}"
        else:
            self.reference = "higher precision"

    @property
    def refers(self) -> bool:
        """Whether there is a reference."""
        return not self.weaker

    def prove(self, batch: Batch) -> None:
        """Compare eager with the reference on one batch, before anything is judged by it.

        A target whose reference fails, for want of memory or of a kernel, is judged by tolerances.

        Raises:
            oracle.ReferenceError: the two do not compute the same thing. From then on tolerances
                decide.
            UsageError: the target breaks the protocol.
        """
        if not self.refers:
            return
        try:
            eager = self._target.run_eager(batch)
        except UsageError:
            raise
        except Exception:  # a finding of the search, which sends such batches too
            return
        try:
            reference = self._ask(batch, eager)
        except FALLS_BACK as error:  # code that was not written for the wider type
            if isinstance(error, ProtocolError):
                raise
            self._give_up(error)
            return
        dtype = reference.logits.dtype
        self.reference = str(dtype).removeprefix("torch.")
        if dtype.itemsize <= getattr(torch, self._dtype).itemsize:
            self.weaker = f"its reference answers in {self.reference}, no wider type"
            self.reference = "none"
            return
        places = (eager.token_kinds != PADDING).nonzero()
        if nonfinite(eager, eager, places):
            return
        distance = oracle.measure(eager, eager, reference).eager
        if distance == 0.0:
            self.weaker = "its reference answers as eager does, to the bit: nothing is wider in it"
            self.reference = "none"
            return
        try:
            self._check(distance, batch)
            self._proven = max(self._proven, distance)
        except oracle.ReferenceError:
            self.weaker = "eager and its reference do not compute the same thing"
            self.reference = "none"
            raise

    def judge(self, compiled: Output, eager: Output, batch: Batch) -> Comparison:
        """Compare two answers to a batch.

        Raises:
            ValueError: they cannot be compared: different shapes or types.
            oracle.ReferenceError: eager and the reference do not compute the same thing.
            UsageError: the target breaks the protocol.
        """
        check_alike(compiled, eager)
        if not self.refers:
            return compare(compiled, eager, self.tolerance)
        places = (eager.token_kinds != PADDING).nonzero()
        if bad := nonfinite(compiled, eager, places):
            return bad
        index = places.to(eager.logits.device).unbind(1)
        if torch.equal(compiled.logits[index], eager.logits[index]):
            # As far from the reference as eager, whatever that is.
            nothing = torch.zeros(len(places), dtype=torch.float64)
            return conclude(eager.token_kinds, places, nothing, error=0.0, statistic="equal")
        try:
            reference = self._ask(batch, eager)
        except FALLS_BACK as error:  # too large a batch for the memory, say
            if isinstance(error, ProtocolError):
                raise
            self.missing += 1
            self.failed = _words(error)
            return compare(compiled, eager, self.tolerance)
        measured = oracle.measure(compiled, eager, reference)
        self._check(measured.eager, batch, proven=self._proven)
        return oracle.decide(measured, compiled, eager)

    def _ask(self, batch: Batch, eager: Output) -> Output:
        target, method = self._target, "run_reference"
        right = "it must answer like run_eager, in a wider type"
        try:
            reference: Output = target.run_reference(batch)  # type: ignore[attr-defined]
        except FALLS_BACK:
            raise
        except Exception as error:
            raise broken(target, f"{method} raised {raised_at(error)}", right) from error
        check_output(target, method, reference, batch)
        got, want = reference.logits, eager.logits
        if got.shape != want.shape:
            said = f"logits that are {describe(got)}, where run_eager's are {describe(want)}"
            raise broken(target, f"{method} returned {said}", right)
        if not torch.equal(reference.token_kinds, eager.token_kinds):
            raise broken(target, f"{method} returned other token_kinds than run_eager", right)
        return reference

    def _check(self, error: float, batch: Batch, *, proven: float = 0.0) -> None:
        self.eager_error = max(self.eager_error, error)
        dtype = self._dtype
        if batch.context == "autocast":  # eager computes in that type
            dtype = str(AUTOCAST_DTYPE).removeprefix("torch.")
        limit = oracle.EAGER_ERROR_LIMIT[dtype]
        if proven and batch.context != "autocast":
            limit = min(limit, oracle.EAGER_ERROR_RISE * proven)
        if not error <= limit:
            known = f" and by {proven:.3g} on the warm-up plan" if proven else ""
            raise oracle.ReferenceError(
                f"eager logits differ from the {self.reference} reference by {error:.3g} of their "
                f"size (root mean square over a batch), where at most {limit:.3g} is explained by "
                f"{dtype}{known}"
            )

    def _give_up(self, error: Exception) -> None:
        self.weaker = _words(error)
        self.reference = "none"


def _words(error: Exception) -> str:
    text = str(error).strip().split("\n")[0][:200]
    name = type(error).__name__
    return text if isinstance(error, UsageError) else f"its reference: {name}: {text}"
