"""A target without a model, and answers of it: what the tests of the protocol share."""

from __future__ import annotations

from typing import Any

import torch
from toy import ENVELOPE

from vlm_ci.parity.comparison import TOLERANCES
from vlm_ci.targets.protocol import Capabilities, Output, Stats
from vlm_ci.traffic.spec import Batch, Text, batch

FLOAT32 = TOLERANCES["float32"]
TWO = batch(Text(3), Text(5))


def kinds_of(part: Batch, fill: int = 0) -> torch.Tensor:
    return torch.full((len(part.requests), ENVELOPE.padded_length(part)), fill, dtype=torch.int8)


def answer(part: Batch, **given: Any) -> Output:
    """A right answer, but for what is given."""
    kinds = kinds_of(part)
    return Output(**{"logits": torch.randn(*kinds.shape, 8), "token_kinds": kinds, **given})


def top_k(part: Batch, **given: Any) -> Output:
    """A right answer of the two most likely tokens, but for what is given."""
    shape = (*kinds_of(part).shape, 2)
    values = torch.tensor([-0.5, -2.0]).expand(shape).clone()
    return answer(
        part,
        **{"logits": values, "token_ids": torch.tensor([3, 7]).expand(shape).clone(), **given},
    )


class Fake:
    """A target without a model, each member of which can be replaced."""

    def __init__(self, **given: Any) -> None:
        self.name = "fake"
        self.envelope = ENVELOPE
        self.capabilities = Capabilities()
        self.run_eager = self.run_compiled = answer
        self.warm_up = lambda part: None
        self.stats = lambda: Stats(compiles=0)
        self.reset = self.close = lambda: None
        for name, value in given.items():
            setattr(self, name, value)
