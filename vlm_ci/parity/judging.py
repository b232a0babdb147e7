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

if TYPE_CHECKING:
    from vlm_ci.targets.protocol import Output, Target
    from vlm_ci.traffic.spec import Batch


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
            oracle.ReferenceError: the two do not compute the same thing.
        """
        if not self.refers:
            return
        eager = self._target.run_eager(batch)
        try:
            reference = self._ask(batch)
        except Exception as error:  # the model's code was not written for the wider type
            self._give_up(error)
            return
        name = str(reference.logits.dtype).removeprefix("torch.")
        self.reference = name
        if name == self._dtype:
            self.reference, self.weaker = "none", f"its reference answers in {name}, no wider type"
            return
        check_alike(reference, eager, same_dtype=False)
        if bool(eager.logits[eager.token_kinds != PADDING].isfinite().all()):
            self._check(oracle.measure(eager, eager, reference).eager, name)

    def judge(self, compiled: Output, eager: Output, batch: Batch) -> Comparison:
        """Compare two answers to a batch.

        Raises:
            ValueError: they cannot be compared: different shapes or types.
            oracle.ReferenceError: eager and the reference do not compute the same thing.
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
            reference = self._ask(batch)
        except Exception:  # too large a batch for the memory, say
            self.missing += 1
            return compare(compiled, eager, self.tolerance)
        measured = oracle.measure(compiled, eager, reference)
        self._check(measured.eager, self.reference)
        return oracle.decide(measured, compiled, eager)

    def _ask(self, batch: Batch) -> Output:
        reference: Output = self._target.run_reference(batch)  # type: ignore[attr-defined]
        return reference

    def _check(self, error: float, name: str) -> None:
        self.eager_error = max(self.eager_error, error)
        limit = oracle.EAGER_ERROR_LIMIT[self._dtype]
        if not error <= limit:
            raise oracle.ReferenceError(
                f"eager logits differ from the {name} reference by {error:.3g} of their size "
                f"(root mean square over a batch), where {self._dtype} explains at most {limit:.3g}"
            )

    def _give_up(self, error: Exception) -> None:
        text = str(error).strip().split("\n")[0][:200]
        name = type(error).__name__
        self.weaker = text if isinstance(error, UsageError) else f"its reference: {name}: {text}"
        self.reference = "none"
