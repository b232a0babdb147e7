"""Provokes the refusals of all cases of refused_*.py; it judges no explanation."""

from __future__ import annotations

import pytest
import refused
import torch
from refused_arguments import ARGUMENTS
from refused_modules import MODULES
from refused_sizes import SIZES
from refused_state import STATE
from refused_values import VALUES

from vlm_ci.watch import internals
from vlm_ci.watch.explain import explain
from vlm_ci.watch.signatures import Binder

CASES = {case.name: case for case in (*STATE, *ARGUMENTS, *MODULES, *VALUES, *SIZES)}
_known = {}


def refusal_of(case):
    """Provoke a case's refusal: once only, for it may change what it calls."""
    if case.name not in _known:
        _known[case.name] = provoke(case)
    return _known[case.name]


def provoke(case):
    """Warm a function up and return the refusal, the refused call's signature, the warm ones."""
    module = isinstance(case.function, torch.nn.Module)
    bind = Binder(case.function.forward if module else case.function)
    internals.reset()
    compiled = torch.compile(case.function, backend=case.backend, dynamic=case.dynamic)
    for args, kwargs in case.warm:
        compiled(*args, **kwargs)
    warm = [bind(*arguments) for arguments in case.warm]
    refusals = []
    if case.before:
        case.before()
    args, kwargs = case.now
    with internals.reporting_refusals(refusals.append), internals.strict(), case.within():
        now = bind(args, kwargs)
        with pytest.raises(RuntimeError, match="fail_on_recompile"):
            compiled(*args, **kwargs)
    internals.reset()
    return refusals[0], now, warm


def explained(case):
    """Explain a refusal as a run does: the guards, and the signatures of warm-up."""
    refusal, now, warm = provoke(case)
    return explain(refusal.failed, now, warm)


def small(function, warm, now, **more):
    """A case of which only the calls matter."""
    return refused.case("", function, warm, now, "", "", **more)
