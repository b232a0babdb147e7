"""Toy targets for the tests of warm-up synthesis, each with one need, and a silent progress."""

from __future__ import annotations

import torch
from toy import Toy, ToyTarget

from vlm_ci.traffic.envelope import Envelope
from vlm_ci.traffic.spec import Batch, Image, Text, batch
from vlm_ci.watch import internals

GENERIC = batch([Text(7), Image(16, 24)], Text(11))


class Silent:
    """A progress that says nothing; ``stop_at`` interrupts the stage of that name."""

    def __init__(self, stop_at: str = "") -> None:
        self.stop_at = stop_at
        self.notes: list[str] = []

    def warming(self, round_number: int, index: int, total: int) -> None: ...

    def searching(self, sessions: int, examples: int, batches: int, failing: int) -> None: ...

    def note(self, text: str) -> None:
        self.notes.append(text)
        if self.stop_at and self.stop_at in text:
            raise KeyboardInterrupt


def images_of(part: Batch) -> int:
    return sum(isinstance(item, Image) for item in part.items())


class PerImage(Toy):
    """Adds a list of tensors, one for each image: a guard on the length of the list."""

    def forward(self, ids: torch.Tensor, parts: list[torch.Tensor] | None = None) -> torch.Tensor:
        hidden = self.embed(ids).sin()
        for part in parts or []:
            hidden = hidden + part
        return self.project(hidden)


def per_image() -> ToyTarget:
    """Needs a graph for each number of images."""

    def serve(call, ids, part):
        return call(ids, [torch.zeros(1)] * images_of(part))

    return ToyTarget(serve, model=PerImage())


def many_images() -> ToyTarget:
    """Passes an argument from five images on, which the generic plan does not have."""

    def serve(call, ids, part):
        if images_of(part) >= 5:
            return call(ids, features=ids.new_zeros(*ids.shape, 16).float())
        return call(ids)

    return ToyTarget(serve)


def limited() -> ToyTarget:
    """Needs four variants where torch keeps two."""
    internals.set_recompile_limit(2)
    return ToyTarget()


def sometimes_eager() -> ToyTarget:
    """Serves images without its compiled code."""
    return ToyTarget(lambda call, ids, part: call._orig_mod(ids) if images_of(part) else call(ids))


def crashing() -> ToyTarget:
    """Dies of three images or more."""

    def serve(call, ids, part):
        if images_of(part) > 2:
            raise ValueError("too many images")
        return call(ids)

    return ToyTarget(serve)


def out_of_process() -> ToyTarget:
    return ToyTarget(in_process=False)


class Bucketing(ToyTarget):
    """An engine that pads every batch to multiples of its first batch's length, all static: what
    its plan has to hold depends on what comes first."""

    def __init__(self) -> None:
        self.bucket = 0

        def serve(call, ids, part):
            length = ids.shape[1]
            self.bucket = self.bucket or length
            padded = ids.new_zeros(ids.shape[0], -(-length // self.bucket) * self.bucket)
            padded[:, :length] = ids
            return call(padded)[:, :length]

        super().__init__(
            serve,
            compile_model=lambda module, backend: torch.compile(
                module, backend=backend, dynamic=False
            ),
        )
        self.envelope = Envelope(modalities=("text",), items=(1, 1), tokens=(1, 12), max_tokens=12)

    def reset(self) -> None:
        super().reset()
        self.bucket = 0
