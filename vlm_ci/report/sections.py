"""Parts of a Markdown report, and how it is kept within a size: whole parts are left out, and it
says so. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

KEPT = 0  # the rank of a section that is never left out


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A part that stands or falls as a whole. What has the highest ``rank`` is left out first, and
    of one rank the last; ``one`` and ``many`` name it where it was left out."""

    text: str
    rank: int
    one: str = ""
    many: str = ""


def joined(sections: Sequence[Section], most: int, where: str) -> str:
    """Return the text of the sections in at most ``most`` bytes of UTF-8.

    ``where`` tells, in safe Markdown, where the reader finds what was left out. Nothing is
    returned where not even the sections that are kept find room.
    """
    kept = list(sections)
    gone: list[Section] = []
    sizes = {id(section): len(section.text.encode()) + 2 for section in kept}  # a blank line each
    size = sum(sizes.values())
    order = sorted(range(len(kept)), key=lambda index: (-kept[index].rank, -index))
    for index in order:
        if size + _size(_notice(gone, where)) <= most:
            break
        section = sections[index]
        if section.rank == KEPT:
            return ""
        kept.remove(section)
        gone.append(section)
        size -= sizes[id(section)]
    texts = [section.text for section in kept]
    if gone:
        texts.append(_notice(gone, where))
    text = "\n\n".join(texts) + "\n"
    return text if _size(text) <= most else ""


def _notice(gone: Sequence[Section], where: str) -> str:
    if not gone:
        return ""
    names = {section.one: section.many for section in gone}
    counts = Counter(section.one for section in gone)
    listed = [(f"{counts[one]} {many}" if counts[one] > 1 else one) for one, many in names.items()]
    return f"Left out, because GitHub takes 1 MiB for a step: {', '.join(listed)}. {where}"


def _size(text: str) -> int:
    return len(text.encode())
