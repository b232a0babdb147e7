"""Answers of GitHub, made from githubkit's models: what is required and not given is filled in."""

from __future__ import annotations

import inspect
import types
from datetime import datetime
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from githubkit import GitHub
from githubkit_schemas.latest import models
from pydantic import BaseModel, TypeAdapter

EPOCH = "2026-01-01T00:00:00Z"


def make(name: str, /, **given: Any) -> dict[str, Any]:
    """Return a model's JSON, with what is given. Raises where the model has no such field, or where
    the whole does not validate."""
    model = getattr(models, name)
    payload = _filled(model, given)
    model.model_validate(payload)
    return payload


def request(name: str, raw: bytes) -> Any:
    """Return what was sent as a model; raises where it is none."""
    model = getattr(models, name)
    body = model.model_validate_json(raw or b"{}")
    unknown = set(model.model_validate_json(raw or b"{}").model_extra or ())
    assert not unknown, f"{name} has no {unknown}"
    return body


@cache
def parameters(method: str) -> set[str]:
    """Return the names that a method of githubkit's, such as ``repos.get``, can send."""
    client = GitHub()  # its methods need it to live on
    found: Any = client.rest
    for part in method.split("."):
        found = getattr(found, part)
    return {name.rstrip("_") for name in inspect.signature(found).parameters}


def error(message: str, status: int) -> dict[str, Any]:
    """Return the JSON of an error."""
    return make("BasicError", message=message, status=str(status), documentation_url="")


def _filled(model: type[BaseModel], given: dict[str, Any]) -> dict[str, Any]:
    names = {field.alias or name for name, field in model.model_fields.items()}
    unknown = given.keys() - names
    assert not unknown, f"{model.__name__} has no {sorted(unknown)}"
    payload: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        key = field.alias or name
        if key in given:
            payload[key] = _given(field.annotation, given[key])
        elif field.is_required():
            payload[key] = _default(field.annotation)
    return payload


def _given(kind: Any, value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    if isinstance(value, dict):
        model = _model(kind)
        return _filled(model, value) if model and not _whole(model, value) else value
    if isinstance(value, list):
        inner = next((get_args(one)[0] for one in _options(kind) if get_origin(one) is list), Any)
        return [_given(inner, one) for one in value]
    return value


def _whole(model: type[BaseModel], value: dict[str, Any]) -> bool:
    return all(
        (field.alias or name) in value
        for name, field in model.model_fields.items()
        if field.is_required()
    )


def _options(kind: Any) -> tuple[Any, ...]:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return tuple(one for part in get_args(kind) for one in _options(part))
    if hasattr(kind, "__metadata__"):
        return _options(get_args(kind)[0])
    return (kind,)


def _model(kind: Any) -> type[BaseModel] | None:
    return next(
        (one for one in _options(kind) if isinstance(one, type) and issubclass(one, BaseModel)),
        None,
    )


def _default(kind: Any) -> Any:
    options = _options(kind)
    if type(None) in options:
        return None
    first = next(one for one in options if "UNSET" not in str(one))
    origin = get_origin(first)
    if origin is Literal:
        return get_args(first)[0]
    if origin is list or first is list:
        return []
    if origin is dict or first in (dict, Any):
        return {}
    if isinstance(first, type) and issubclass(first, BaseModel):
        return _empty(first)
    simple = {str: "x", int: 1, float: 1.0, bool: False, datetime: EPOCH}
    if first in simple:
        return simple[first]
    return TypeAdapter(first).validate_python("x")


@cache
def _empty(model: type[BaseModel]) -> dict[str, Any]:
    return _filled(model, {})
