"""The part of GitHub's expression language that our workflows use; anything else is an error."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

TOKEN = re.compile(
    r"\s*(?:(?P<text>'(?:[^']|'')*')|(?P<number>\d+)|(?P<name>[A-Za-z_][\w-]*)"
    r"|(?P<sign>==|!=|&&|\|\||[!()\[\].,<>]))"
)
WHOLE = re.compile(r"\$\{\{(.*?)\}\}", re.DOTALL)
STATUS = ("always", "cancelled", "failure", "success")


class ExpressionError(Exception):
    """An expression uses something that is not known here."""


class Open(dict[str, Any]):
    """An object of GitHub's of which a field that is not there is null: the event's payload."""


@dataclass
class Expressions:
    """Evaluates expressions. ``contexts`` are the objects that they name; ``status`` holds the
    functions that ask how the job stands."""

    contexts: Mapping[str, Any]
    status: Mapping[str, Callable[[], bool]]

    def text(self, text: str) -> str:
        """Return a text with all its expressions replaced."""
        return WHOLE.sub(lambda found: shown(self.value(found[1])), text)

    def condition(self, text: str) -> bool:
        """Return whether a step or job runs: ``success()`` holds where no status is asked for."""
        inner = text.strip()
        whole = WHOLE.fullmatch(inner)
        inner = whole[1] if whole else inner
        asks = any(re.search(rf"\b{name}\(", inner) for name in STATUS)
        return (asks or self.status["success"]()) and truth(self.value(inner))

    def value(self, text: str) -> Any:
        """Return what an expression is."""
        tokens: list[tuple[str, str]] = []
        place = 0
        while place < len(text.rstrip()):
            found = TOKEN.match(text, place)
            if found is None:
                raise ExpressionError(f"{text!r}: cannot read {text[place:]!r}")
            tokens.append((found.lastgroup or "", found[found.lastgroup or 0]))
            place = found.end()
        parser = _Parser(self, tokens, text)
        result = parser.either()
        if parser.tokens:
            raise ExpressionError(f"{text!r}: {parser.tokens[0][1]!r} is too much")
        return result


class _Parser:
    def __init__(self, owner: Expressions, tokens: list[tuple[str, str]], text: str) -> None:
        self.owner, self.tokens, self.text = owner, tokens, text

    def _take(self, *signs: str) -> str | None:
        if self.tokens and self.tokens[0][0] == "sign" and self.tokens[0][1] in signs:
            return self.tokens.pop(0)[1]
        return None

    def _need(self, sign: str) -> None:
        if self._take(sign) is None:
            raise ExpressionError(f"{self.text!r}: {sign!r} is missing")

    def either(self) -> Any:
        left = self._both()
        while self._take("||"):
            right = self._both()
            left = left if truth(left) else right
        return left

    def _both(self) -> Any:
        left = self._compared()
        while self._take("&&"):
            right = self._compared()
            left = right if truth(left) else left
        return left

    def _compared(self) -> Any:
        left = self._single()
        sign = self._take("==", "!=", ">", "<")
        if sign is None:
            return left
        right = self._single()
        if sign in ("<", ">"):
            small, large = (left, right) if sign == "<" else (right, left)
            return float(small) < float(large)
        same = shown(left).lower() == shown(right).lower()
        return same if sign == "==" else not same

    def _single(self) -> Any:
        if self._take("!"):
            return not truth(self._single())
        if self._take("("):
            inner = self.either()
            self._need(")")
            return inner
        if not self.tokens:
            raise ExpressionError(f"{self.text!r} ends too early")
        kind, word = self.tokens.pop(0)
        if kind == "text":
            return word[1:-1].replace("''", "'")
        if kind == "number":
            return int(word)
        if kind != "name":
            raise ExpressionError(f"{self.text!r}: {word!r} is not known here")
        if word in ("true", "false"):
            return word == "true"
        if self._take("("):
            return self._called(word)
        return self._fields(word)

    def _called(self, name: str) -> Any:
        given: list[Any] = []
        while not self._take(")"):
            given.append(self.either())
            self._take(",")
        if name in self.owner.status and not given:
            return self.owner.status[name]()
        if name == "fromJSON":
            return json.loads(given[0])
        if name == "format":
            return given[0].format(*map(shown, given[1:]))
        if name == "contains":
            return shown(given[1]).lower() in shown(given[0]).lower()
        raise ExpressionError(f"{self.text!r}: the function {name} is not known here")

    def _fields(self, name: str) -> Any:
        if name not in self.owner.contexts:
            raise ExpressionError(f"{self.text!r}: the context {name} is not known here")
        value, path = self.owner.contexts[name], name
        while self._take("."):
            field = self.tokens.pop(0)[1]
            path += f".{field}"
            if value is None:
                continue
            if not isinstance(value, Mapping):
                raise ExpressionError(f"{self.text!r}: {path} is a field of no object")
            if field not in value and not isinstance(value, Open):
                raise ExpressionError(f"{self.text!r}: there is no {path}")
            value = value.get(field)
        return value


def truth(value: Any) -> bool:
    """Return whether a value counts as true."""
    return value not in (None, "", 0, False)


def shown(value: Any) -> str:
    """Return a value as it stands in a text."""
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)
