"""A model of two layers that compiles in a second, served by the transformers twin."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from toy import ENVELOPE, VOCABULARY

from vlm_ci.families.base import IMAGE, TEXT, Encoded, Parts
from vlm_ci.targets.backends import CompileOptions
from vlm_ci.targets.transformers_twin import TransformersTwin
from vlm_ci.traffic.spec import Batch, Text

WIDTH = 16


class Attention(torch.nn.Module):
    """One head; ``mask`` is bool [rows, length, length]."""

    scale = WIDTH**-0.5

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = self.q(hidden) @ self.k(hidden).transpose(1, 2) * self.scale
        return self.o(scores.masked_fill(~mask, -1e4).softmax(dim=-1) @ self.v(hidden))


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.down(torch.nn.functional.silu(self.up(hidden)))


class Layer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention, self.mlp = torch.nn.LayerNorm(WIDTH), Attention(), Mlp()

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        hidden = hidden + self.attention(self.norm(hidden), mask)
        return hidden + self.mlp(hidden)


class Model(torch.nn.Module):
    """Embeds tokens, puts projected pixels in their places, and runs the layers."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.visual = torch.nn.Linear(8, WIDTH)
        self.layers = torch.nn.ModuleList([Layer(), Layer()])
        self.head = torch.nn.Linear(WIDTH, VOCABULARY)

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.embed

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.visual(pixels)

    def forward(
        self,
        ids: torch.Tensor,
        real: torch.Tensor,
        pixels: torch.Tensor | None = None,
        use_cache: bool = False,
    ) -> Any:
        hidden = self.embed(ids)
        if pixels is not None:
            hidden[ids == 0] = self.features(pixels).to(hidden.dtype)
        length = ids.shape[1]
        causal = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        mask = causal & real[:, None] | torch.eye(length, dtype=torch.bool, device=ids.device)
        for layer in self.layers:
            hidden = layer(hidden, mask)
        return SimpleNamespace(logits=self.head(hidden))


class Source:
    """What ``TransformersTwin`` needs of a model's source; each image is one token, of 8 pixels."""

    name = "small"

    def build(self, *, device: torch.device, dtype: torch.dtype) -> torch.nn.Module:
        return Model().to(device, dtype).eval()

    def parts(self, model: Any) -> Parts:
        return Parts(
            whole=model,
            language_model=model,
            decoder_layers=tuple(model.layers),
            vision_blocks=(model.visual,),
        )

    def encode(self, batch: Batch, *, device: torch.device, dtype: torch.dtype) -> Encoded:
        generator = torch.Generator().manual_seed(batch.seed)
        length = self._length(batch)
        kinds = torch.full((len(batch.requests), length), -1, dtype=torch.int8)
        for row, request in enumerate(batch.requests):
            found: list[int] = []
            for item in request.items:
                found += [TEXT] * item.tokens if isinstance(item, Text) else [IMAGE]
            kinds[row, length - len(found) :] = torch.tensor(found, dtype=torch.int8)
        ids = torch.randint(1, VOCABULARY, kinds.shape, generator=generator)
        ids[kinds == IMAGE] = 0
        inputs = {"ids": ids, "real": kinds >= 0}
        if images := int((kinds == IMAGE).sum()):
            inputs["pixels"] = torch.randn(images, 8, generator=generator, dtype=dtype)
        return Encoded(inputs=inputs, token_kinds=kinds, pixel_inputs={"image": "pixels"})

    @staticmethod
    def _length(batch: Batch) -> int:
        return max(
            sum(item.tokens if isinstance(item, Text) else 1 for item in request.items)
            for request in batch.requests
        )


def small_twin(mutate: Any = None, *, backend: str = "eager", **given: Any) -> TransformersTwin:
    """Build one, its layers compiled."""
    source: Any = Source()
    return TransformersTwin(
        source,
        recipe=given.get("recipe", "decoder-layers"),
        options=CompileOptions(backend=backend),
        device=torch.device("cpu"),
        dtype=given.get("dtype", torch.float32),
        envelope=ENVELOPE,
        mutate=mutate,
    )
