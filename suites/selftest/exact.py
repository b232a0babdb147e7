"""A target that keeps every relation bitwise, and what the tests of relations share."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import torch
from toy import ENVELOPE

from vlm_ci.parity.relations import RELATIONS, RelationChecker, Violation
from vlm_ci.targets.protocol import Capabilities, Output, Stats
from vlm_ci.traffic.spec import Batch, Image, Text, batch, item_seed, kind_of
from vlm_ci.watch.watcher import Watcher


class Exact:
    """Answers each token by a hash of what its request holds up to it, so that every relation
    holds bitwise; NaN stands at padding. ``fault(batch, request, token)`` is added to the logits of
    a token, which is counted without padding."""

    def __init__(
        self, fault: Callable[[Batch, int, int], float] = lambda part, request, token: 0.0
    ) -> None:
        self.name = "exact"
        self.envelope = ENVELOPE
        self.capabilities = Capabilities()
        self.fault = fault
        self.served: list[Batch] = []

    def run_compiled(self, part: Batch) -> Output:
        self.served.append(part)
        length = self.envelope.padded_length(part)
        logits = torch.full((len(part.requests), length, 8), math.nan)
        kinds = torch.full(logits.shape[:2], -1, dtype=torch.int8)
        for index, request in enumerate(part.requests):
            tokens = self.envelope.row_tokens(request)
            start = length - tokens if part.padding == "left" else 0
            prefix, token = hashlib.sha256(), 0
            for place, item in enumerate(request.items):
                content = f"{item!r} {item_seed(part, index, place)}"
                content = content.replace(f", seed={item.seed}", "")
                prefix.update(content.encode())
                for _ in range(self.envelope.geometry.positions(item)):
                    prefix.update(b".")
                    values = torch.tensor(list(prefix.digest()[:8]), dtype=torch.float32)
                    logits[index, start + token] = values + self.fault(part, index, token)
                    kinds[index, start + token] = ("text", "image").index(kind_of(item))
                    token += 1
        return Output(logits=logits, token_kinds=kinds)

    run_eager = run_compiled

    def run_poisoned(self, part: Batch, value: float) -> Output:
        return self.run_compiled(part)

    def warm_up(self, part: Batch) -> None:
        self.run_compiled(part)

    def stats(self) -> Stats:
        return Stats(compiles=0)

    def reset(self) -> None: ...

    def close(self) -> None: ...


ROWS = batch(
    [Text(3), Image(8, 16), Text(2), Image(16, 16), Text(1)],  # 3 + 2 + 2 + 4 + 1 = 12 tokens
    Text(5),
    Text(9),
    seed=7,
)


def watcher_of(target: Any) -> Watcher:
    watcher = getattr(target, "watcher", None) or Watcher()
    watcher.begin("strict")
    return watcher


def served(
    target: Any, checker: RelationChecker, part: Batch, names: Any = tuple(RELATIONS)
) -> Violation | None:
    return checker.check(part, target.run_compiled(part), names)
