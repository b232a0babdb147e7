"""Rows of token ids and pixels, seeded; shared by the families."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from vlm_ci.families.base import IMAGE, PADDING, TEXT, VIDEO
from vlm_ci.traffic.spec import Batch, Item, item_seed

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(slots=True)
class Row:
    """One request under construction: token ids and what each position holds.

    ``generator`` draws the content; ``items`` sets it to the stream of each item in turn.
    """

    generator: torch.Generator
    contents: tuple[tuple[Item, int], ...]
    ids: list[int] = field(default_factory=list)
    kinds: list[int] = field(default_factory=list)

    def items(self) -> Iterator[Item]:
        """Yield the request's items, in order; what is drawn until the next one is its content."""
        for item, seed in self.contents:
            self.generator.manual_seed(seed)
            yield item

    def text(self, tokens: int, vocabulary: int) -> None:
        """Append random ordinary tokens, ids 1 to ``vocabulary`` - 1."""
        drawn = torch.randint(1, vocabulary, (tokens,), generator=self.generator).tolist()
        self.ids += drawn
        self.kinds += [TEXT] * tokens

    def special(self, token_id: int) -> None:
        """Append one delimiter token."""
        self.ids.append(token_id)
        self.kinds.append(TEXT)

    def placeholders(self, token_id: int, count: int, kind: int) -> None:
        """Append the placeholders of an image (kind IMAGE) or a frame group (kind VIDEO)."""
        self.ids += [token_id] * count
        self.kinds += [kind] * count

    def pixels(self, *shape: int) -> torch.Tensor:
        """Return float32 standard-normal pixels of this shape: never blank, never constant."""
        return torch.randn(*shape, generator=self.generator)


def start_rows(batch: Batch) -> list[Row]:
    """Return an empty row for each request, with the seeds of its items."""
    return [
        Row(
            torch.Generator().manual_seed(item_seed(batch, index, 0)),
            tuple(
                (item, item_seed(batch, index, place)) for place, item in enumerate(request.items)
            ),
        )
        for index, request in enumerate(batch.requests)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """Padded rows: ``input_ids``, ``attention_mask`` (int64) and ``token_kinds`` (int8), all
    [requests, padded length] on the CPU."""

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    token_kinds: torch.Tensor


def pack(rows: list[Row], batch: Batch, *, pad_id: int) -> Packed:
    """Pad the rows of a batch to one length, on the side that the batch names.

    That is the longest row's length, and ``Batch.extra_padding`` more.
    """
    length = max(len(row.ids) for row in rows) + batch.extra_padding
    ids, kinds = [], []
    for row in rows:
        fill = length - len(row.ids)
        before, after = (fill, 0) if batch.padding == "left" else (0, fill)
        ids.append([pad_id] * before + row.ids + [pad_id] * after)
        kinds.append([PADDING] * before + row.kinds + [PADDING] * after)
    token_kinds = torch.tensor(kinds, dtype=torch.int8)
    return Packed(
        input_ids=torch.tensor(ids),
        attention_mask=(token_kinds != PADDING).long(),
        token_kinds=token_kinds,
    )


__all__ = ["IMAGE", "TEXT", "VIDEO", "Packed", "Row", "pack", "start_rows"]
