"""Where the plugin's settings come from: command line, markers and ini file.

Every pytest session imports this module; ``session_of`` loads the rest once it is needed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from vlm_ci.errors import UsageError, unknown_name
from vlm_ci.options import OPTIONS, Option

if TYPE_CHECKING:
    from pathlib import Path

    from vlm_ci.plugin.session import VlmSession
    from vlm_ci.settings import Layer

SESSION = pytest.StashKey["VlmSession"]()
STARTED = pytest.StashKey[float]()  # seconds since the epoch
FIXTURES = frozenset(("vlm_check", "vlm_target", "vlm_settings"))

MARKER_LINE = (
    "vlm(**options): options of vlm_ci for this test, such as target='llava-tiny', examples=20; "
    "the command line wins over it, and it wins over the ini file"
)

INI_TYPES: dict[type, Literal["string", "bool", "int"]] = {str: "string", bool: "bool", int: "int"}


def add_options(parser: pytest.Parser) -> None:
    """Add each option with the prefix ``--vlm-``, and its ini twin ``vlm_…``."""
    from argparse import BooleanOptionalAction

    group = parser.getgroup("vlm-ci", "compiled vision-language models (vlm_ci)")
    for option in OPTIONS:
        attributes: dict[str, Any] = {"dest": f"vlm_{option.field}", "default": None}
        if option.kind is bool:
            attributes["action"] = BooleanOptionalAction
        else:
            attributes |= {"type": option.kind, "metavar": option.metavar}
        group.addoption(as_argument(option), help=option.help, **attributes)
        parser.addini(as_ini(option), help=option.help, type=INI_TYPES[option.kind], default=None)


def session_of(config: pytest.Config) -> VlmSession:
    """Return the state of the plugin in this pytest session, made when it is first needed.

    Raises:
        pytest.UsageError: the command line or the ini file holds a wrong value.
    """
    if SESSION not in config.stash:
        from vlm_ci.plugin.session import VlmSession

        try:
            config.stash[SESSION] = VlmSession(config)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None
    return config.stash[SESSION]


def is_used(fixtures: object) -> bool:
    """Whether a test that has these fixtures uses a target."""
    return isinstance(fixtures, list) and not FIXTURES.isdisjoint(fixtures)


def is_vlm(item: pytest.Item) -> bool:
    """Whether a test uses a target."""
    return is_used(getattr(item, "fixturenames", None))


def is_configured(config: pytest.Config) -> bool:
    """Whether the command line or the ini file says anything of vlm_ci."""
    try:
        return bool(given_arguments(config) or given_ini(config))
    except UsageError:
        return True


def is_sharded(config: pytest.Config) -> bool:
    """Whether the tests of this session are split over machines, also those of no target."""
    return bool(config.getoption("vlm_shard") or config.getini("vlm_shard"))


def as_argument(option: Option) -> str:
    """Name an option as pytest's command line does."""
    return f"--vlm-{option.name}"


def as_ini(option: Option) -> str:
    """Name an option as the ini file does."""
    return f"vlm_{option.field}"


def as_keyword(option: Option) -> str:
    """Name an option as the marker does."""
    return f"vlm({option.field}=...)"


def given_arguments(config: pytest.Config) -> dict[str, Any]:
    """Return what the command line gives, by field."""
    values = {option.field: config.getoption(f"vlm_{option.field}") for option in OPTIONS}
    return {field: value for field, value in values.items() if value is not None}


def given_ini(config: pytest.Config) -> dict[str, Any]:
    """Return what the ini file gives, by field.

    Raises:
        UsageError: a value is no number or no truth value where one is needed.
    """
    values = {}
    for option in OPTIONS:
        try:
            value = config.getini(as_ini(option))
        except (TypeError, ValueError, pytest.UsageError) as error:
            words = {str: "a string", int: "a whole number", bool: "true or false"}
            raise UsageError(
                f"{as_ini(option)} in {ini_name(config)} must be {words[option.kind]}: {error}"
            ) from None
        if value is not None:
            values[option.field] = value
    return values


def ini_name(config: pytest.Config) -> str:
    """Return the name of the ini file for messages."""
    return config.inipath.name if config.inipath is not None else "the ini file"


def ini_folder(config: pytest.Config) -> Path:
    """Return the folder from which the ini file's paths count."""
    return config.inipath.parent if config.inipath is not None else config.invocation_params.dir


def layers_of_markers(item: pytest.Item) -> list[Layer]:
    """Return the options of an item's markers, the nearest one last.

    Paths in a marker count from the folder of the test's file.

    Raises:
        UsageError: a marker has positional arguments, or an option that does not exist.
    """
    from vlm_ci.settings import Layer

    known = [option.field for option in OPTIONS if option.per_test]
    layers = []
    for marker in item.iter_markers("vlm"):
        if marker.args:
            raise UsageError(
                "the vlm marker takes keywords only, such as "
                f"vlm(target='llava-tiny'), not {marker.args[0]!r}"
            )
        for name in marker.kwargs:
            if name not in known:
                raise unknown_name("option of the vlm marker", name, known)
        layers.append(
            Layer(
                values=dict(marker.kwargs),
                wording=as_keyword,
                folder=item.path.parent,
            )
        )
    return layers[::-1]
