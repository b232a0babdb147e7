"""A module of which something changes: attributes, caches, submodules and parameters."""

from __future__ import annotations

import torch
from refused import net

T = torch.ones


MODULES = (
    net(
        "training",
        lambda m: m.eval(),
        "self.training was True when this was compiled, and is not now",
        "call .eval() (or .train()) once, before warm-up",
        line="self.training)",
    ),
    net(
        "integer attribute",
        lambda m: setattr(m, "scale", 7),
        "self.scale was compiled as exactly 3",
        "allow_unspec_int_on_nn_module",
        line="* self.scale",
    ),
    net(
        "float attribute",
        lambda m: setattr(m, "rate", 0.25),
        "self.rate was compiled as exactly 0.5",
        "set self.rate once, before warm-up",
        line="self.rate, self.training",
    ),
    net(
        "string attribute",
        lambda m: setattr(m, "kind", "flash"),
        "self.kind was compiled as exactly 'sdpa'",
        "set self.kind once, before warm-up",
        line='if self.kind == "sdpa"',
    ),
    net(
        "None attribute",
        lambda m: setattr(m, "cache", T(4)),
        "self.cache was None when this was compiled, and is not now",
        "set self.cache before warm-up",
        line="if self.cache is not None:",
    ),
    net(
        "cache entry",
        lambda m: m.table.update(a=1),
        "self.table held no 'a' when this was compiled, and does now",
        "fill self.table before warm-up",
        line='if "a" in self.table:',
        unguarded=("2.11",),
    ),
    net(
        "another submodule",
        lambda m: setattr(m, "fc", torch.nn.Identity()),
        "self.fc was of type Linear when this was compiled",
        "always pass self.fc with one type",
        line="self.fc(x)",
    ),
    net(
        "another forward",
        lambda m: setattr(m.fc, "forward", lambda x: x),
        "self.fc had no attribute forward of its own when this was compiled, and has one",
        "set attributes once",
        line="self.fc(x)",
    ),
    net(
        "parameter's gradient",
        lambda m: m.fc.weight.requires_grad_(False),
        "self.fc.weight required a gradient when this was compiled, and does not now",
        "call requires_grad_() on parameters before warm-up",
        line="self.fc(x)",
        unguarded=("2.11",),
    ),
    net(
        "parameter's size",
        lambda m: setattr(m.fc, "weight", torch.nn.Parameter(T(6, 4))),
        "size 0 of self.fc.weight was compiled as exactly 4 and is now 6",
        "leave the parameters of the model as they were in warm-up",
        line="self.fc(x)",
    ),
)
