"""The door of the Target protocol: what a target says is checked where it is handed over.

A target that breaks the protocol gets one message that names the target, the method, what came and
what is right. Faults that a deployment can have are let through, because they are findings: an
exception, NaN, compiled logits of another shape than eager's.
"""

from __future__ import annotations

import traceback
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vlm_ci.errors import UsageError
from vlm_ci.families.base import KIND_NAMES, PADDING
from vlm_ci.targets.protocol import (
    DTYPES,
    LOGITS,
    Capabilities,
    Output,
    Stats,
    Target,
    TargetInfo,
)
from vlm_ci.traffic.envelope import Envelope
from vlm_ci.traffic.spec import CONTEXTS

if TYPE_CHECKING:
    import torch

    from vlm_ci.traffic.spec import Batch

METHODS = ("run_eager", "run_compiled", "warm_up", "stats", "reset", "close")
MEMBERS = ("name", "envelope", "capabilities", *METHODS)

# What rounding may put above log(1); raw logits stand far higher.
LOG_PROBABILITY_SLACK = 1e-2


class ProtocolError(UsageError):
    """A target does not keep the protocol; the user's target has to change, not the model."""


def broken(target: Any, said: str, right: str) -> ProtocolError:
    """Build the error of a target: what it did, and what is right."""
    name = getattr(target, "name", None)
    name = name if isinstance(name, str) and name else type(target).__name__
    return ProtocolError(
        f"target {name!r} breaks the protocol: {said}; {right} (vlm_ci.targets.protocol.Target)"
    )


def describe(value: Any) -> str:
    """Name a value in a few words: its type, and what is in it where that helps."""
    import torch

    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor {list(value.shape)}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)}"
    return f"something of type {type(value).__name__}"


def raised_at(error: BaseException) -> str:
    """Say what was raised and in which line, in one line of text."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" at {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}" if frames else ""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}{': ' if text else ''}{text}{where}"


def check_members(target: Any) -> None:
    """Refuse a target whose attributes are not those of the protocol.

    Raises:
        ProtocolError: one is missing, has the wrong type, or contradicts another.
    """
    if missing := [member for member in MEMBERS if not hasattr(target, member)]:
        raise broken(
            target,
            f"it is of type {type(target).__name__} without {', '.join(missing)}",
            "it needs all of " + ", ".join(MEMBERS),
        )
    if not isinstance(target.name, str) or not target.name.strip():
        raise broken(target, f"its name is {describe(target.name)}", "it must be a non-empty str")
    for attribute, kind in (("envelope", Envelope), ("capabilities", Capabilities)):
        value = getattr(target, attribute)
        if not isinstance(value, kind):
            raise broken(
                target,
                f"its {attribute} is {describe(value)}",
                f"it must be a vlm_ci.{kind.__name__}(…)",
            )
    for method in (*METHODS, "run_perturbed"):
        if not callable(getattr(target, method, print)):
            value = getattr(target, method)
            raise broken(target, f"its {method} is {describe(value)}", "it must be a method")
    _check_capabilities(target)
    info = getattr(target, "info", None)
    if info is None:
        return
    if not isinstance(info, TargetInfo):
        raise broken(target, f"its info is {describe(info)}", "it must be a vlm_ci.TargetInfo(…)")
    if info.dtype not in DTYPES:
        raise broken(
            target, f"its info.dtype is {info.dtype!r}", f"it must be one of {', '.join(DTYPES)}"
        )


def _check_capabilities(target: Any) -> None:
    can: Capabilities = target.capabilities
    if not isinstance(can.in_process, bool):
        raise broken(
            target,
            f"capabilities.in_process is {describe(can.in_process)}",
            "it must be True or False",
        )
    if can.logits not in LOGITS:
        raise broken(
            target, f"capabilities.logits is {can.logits!r}", 'it must be "full" or "top-k"'
        )
    contexts: Any = can.contexts
    if not isinstance(contexts, tuple | list) or not all(name in CONTEXTS for name in contexts):
        raise broken(
            target,
            f"capabilities.contexts is {contexts!r:.80}",
            f"it must be a tuple of some of {', '.join(CONTEXTS)}",
        )
    if unable := [name for name in target.envelope.contexts if name not in contexts]:
        raise broken(
            target,
            f"its envelope asks for the context {', '.join(unable)}, and capabilities.contexts has "
            f"only {', '.join(contexts) or 'none'}",
            "take it out of Envelope.contexts, or add it to Capabilities.contexts",
        )


def check_output(target: Any, method: str, output: Any, batch: Batch) -> None:
    """Refuse an answer that is none.

    The shapes of ``run_compiled`` are left to the comparison with eager: a compiled twin that
    drops a row is a finding, and eager's shapes are checked here. Looks at tensors on the CPU
    only, so that it never waits for a device.

    Raises:
        ProtocolError: it is no ``Output``, or its tensors are not what ``Output`` promises.
    """

    def wrong(what: str, right: str) -> ProtocolError:
        return broken(target, f"{method} returned {what}", right)

    import torch

    if not isinstance(output, Output):
        raise wrong(describe(output), "it must be a vlm_ci.Output(logits=…, token_kinds=…)")
    logits: Any = output.logits
    if not isinstance(logits, torch.Tensor):
        raise wrong(f"logits that are {describe(logits)}", "they must be a torch.Tensor")
    if not logits.is_floating_point():
        raise wrong(f"logits that are {describe(logits)}", "they must be floating point")
    if logits.ndim != 3 or not logits.numel():
        raise wrong(
            f"logits that are {describe(logits)}",
            "they must be [requests, padded length, vocabulary], none of them 0",
        )
    kinds: Any = output.token_kinds
    if (
        not isinstance(kinds, torch.Tensor)
        or kinds.dtype != torch.int8
        or kinds.ndim != 2
        or kinds.device.type != "cpu"
    ):
        device = f" on {kinds.device}" if isinstance(kinds, torch.Tensor) else ""
        raise wrong(
            f"token_kinds that are {describe(kinds)}{device}",
            "they must be an int8 tensor [requests, padded length] on the CPU",
        )
    _check_ids(target, output, wrong)
    if method != "run_compiled":
        _check_shapes(target, output, batch, wrong)


def _check_ids(target: Any, output: Output, wrong: Any) -> None:
    import torch

    logits: torch.Tensor = output.logits
    ids: Any = output.token_ids
    if target.capabilities.logits == "full":
        if ids is not None:
            raise wrong(
                "token_ids, though capabilities.logits is 'full'",
                "leave them out, or say Capabilities(logits='top-k')",
            )
        return
    if ids is None:
        raise wrong(
            f"no token_ids (logits are {describe(logits)}), though capabilities.logits is 'top-k'",
            "give the token of each log-probability, or say Capabilities(logits='full')",
        )
    if (
        not isinstance(ids, torch.Tensor)
        or ids.dtype != torch.int64
        or ids.shape != logits.shape
        or ids.device != logits.device
    ):
        raise wrong(
            f"token_ids that are {describe(ids)}",
            f"they must be int64, of the shape of the logits {list(logits.shape)} and on "
            f"{logits.device} like them",
        )


def _check_shapes(target: Any, output: Output, batch: Batch, wrong: Any) -> None:
    logits, kinds = output.logits, output.token_kinds
    rows, longest = len(batch.requests), target.envelope.padded_length(batch)
    if logits.shape[:2] != kinds.shape:
        raise wrong(
            f"logits that are {describe(logits)} and token_kinds that are {describe(kinds)}",
            "both must begin with [requests, padded length]",
        )
    if kinds.shape[0] != rows:
        raise wrong(
            f"{kinds.shape[0]} rows for a batch of {rows} requests",
            "it must be one row for each request, in their order",
        )
    if kinds.shape[1] < longest:
        raise wrong(
            f"rows of {kinds.shape[1]} positions for a batch whose longest request takes "
            f"{longest} by the envelope's geometry",
            "give logits for every position, or correct Envelope.geometry",
        )
    low, high = int(kinds.min()), int(kinds.max())
    if low < min(KIND_NAMES) or high > max(KIND_NAMES):
        known = ", ".join(f"{value} {name}" for value, name in KIND_NAMES.items())
        raise wrong(f"token_kinds from {low} to {high}", f"they must be among {known}")
    if high == PADDING:
        raise wrong(
            "token_kinds that are padding everywhere",
            "at least one position must be a token, or nothing is compared",
        )
    if output.token_ids is not None and logits.device.type == "cpu":
        _check_log_probabilities(output, wrong)


def _check_log_probabilities(output: Output, wrong: Any) -> None:
    assert output.token_ids is not None
    judged = output.token_kinds != PADDING
    largest = float(output.logits[judged].amax())
    if LOG_PROBABILITY_SLACK < largest < float("inf"):
        raise wrong(
            f"a log-probability of {largest:.3g}",
            "log-probabilities are at most 0: return log_softmax(logits), not logits",
        )
    ids = output.token_ids[judged]
    if int(ids.min()) < 0:
        raise wrong(f"the token id {int(ids.min())}", "token ids are at least 0")
    ordered = ids.sort(dim=-1).values
    if bool((ordered[:, 1:] == ordered[:, :-1]).any()):
        raise wrong("a token id twice among the top k of one position", "each may occur once")


COUNTS = tuple(field.name for field in fields(Stats) if field.name != "forward_seconds")


def check_stats(target: Any, stats: Any, last: Stats | None) -> None:
    """Refuse counts that are none, that fall below ``last``, or that leave nothing to judge by.

    Raises:
        ProtocolError: see above.
    """
    if not isinstance(stats, Stats):
        raise broken(
            target, f"stats returned {describe(stats)}", "it must be a vlm_ci.Stats(compiles=…, …)"
        )
    for name in (*COUNTS, "forward_seconds"):
        value = getattr(stats, name)
        kinds = (int,) if name in COUNTS else (int, float)
        if value is not None and (isinstance(value, bool) or not isinstance(value, kinds)):
            right = "a whole number" if name in COUNTS else "a number of seconds"
            raise broken(
                target, f"stats().{name} is {describe(value)}", f"it must be {right} or None"
            )
        if value is not None and not value >= 0:
            raise broken(target, f"stats().{name} is {value}", "it must be at least 0")
        before = getattr(last, name) if last is not None else None
        if before is not None and (value is None or value < before):
            raise broken(
                target,
                f"stats().{name} was {before} and is {value} now",
                "it counts since loading and never falls",
            )
    if stats.compiles is None and not target.capabilities.in_process:
        raise broken(
            target,
            "stats().compiles is None, though capabilities.in_process is False",
            "nothing here sees what another process compiles: count it there",
        )


class CheckedTarget:
    """A target whose answers are checked as they come; everything else is the target's own."""

    def __init__(self, target: Target) -> None:
        """Take a target in.

        Raises:
            ProtocolError: its attributes are not those of the protocol.
        """
        check_members(target)
        self.name = target.name
        self.envelope = target.envelope
        self.capabilities = target.capabilities
        self._target = target
        self._last: Stats | None = None

    def __getattr__(self, name: str) -> Any:
        """Whatever else the target offers: ``watcher``, ``info``, ``run_perturbed``."""
        return getattr(self._target, name)

    def run_eager(self, batch: Batch) -> Output:
        """Answer a batch without anything compiled."""
        output = self._target.run_eager(batch)
        check_output(self._target, "run_eager", output, batch)
        return output

    def run_compiled(self, batch: Batch) -> Output:
        """Answer a batch the way the deployment does."""
        output = self._target.run_compiled(batch)
        check_output(self._target, "run_compiled", output, batch)
        return output

    def warm_up(self, batch: Batch) -> None:
        """Run a batch of the warm-up plan."""
        self._implemented("warm_up", batch)

    def stats(self) -> Stats:
        """Return the counts since loading."""
        try:
            stats = self._target.stats()
        except Exception as error:
            raise broken(
                self._target,
                f"stats raised {raised_at(error)}",
                "it must return a vlm_ci.Stats, also after a batch that failed",
            ) from error
        check_stats(self._target, stats, self._last)
        self._last = stats
        return stats

    def reset(self) -> None:
        """Forget everything that was compiled; counts may begin anew."""
        self._implemented("reset")
        self._last = None

    def close(self) -> None:
        """Give the model's memory back."""
        self._implemented("close")

    def _implemented(self, method: str, *args: Any) -> None:
        call_implemented(self._target, method, getattr(self._target, method), *args)


def call_implemented(target: Any, method: str, call: Any, *args: Any) -> None:
    """Call a method that every target has to have.

    Raises:
        ProtocolError: the method itself raises NotImplementedError. From deeper down it is passed
            on: torch raises it too, where an operator lacks a kernel.
    """
    try:
        call(*args)
    except NotImplementedError as error:
        if len(traceback.extract_tb(error.__traceback__)) > 2:  # this frame and the method's
            raise
        right = {
            "warm_up": "where nothing is special about warm-up it calls run_compiled",
            "reset": "it must forget what was compiled (torch.compiler.reset() in process)",
            "close": "it must give the memory back; where there is nothing to do it does nothing",
        }[method]
        raise broken(target, f"{method} raised {raised_at(error)}", right) from error


def checked(target: Target) -> CheckedTarget:
    """Return the target behind its checks; one that is behind them already as it is."""
    return target if isinstance(target, CheckedTarget) else CheckedTarget(target)
