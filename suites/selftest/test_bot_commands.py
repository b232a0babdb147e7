"""What is a command in a comment, and what is none."""

from __future__ import annotations

import time

import pytest

from vlm_ci.bot.commands import LONGEST, Command, parse
from vlm_ci.bot.words import code

NONE = [
    "please /ci-status",
    " /ci-status",
    "    /ci-status",
    "\t/ci-status",
    "> /ci-status",
    "> said\n/ci-status",
    "- /ci-status",
    "1. /ci-status",
    "# /ci-status",
    "/ci-status\n---",
    "```\n/ci-status\n```",
    "~~~\n/ci-status",
    "`\n/ci-status\n`",
    "*well\n/ci-status*",
    "[a\n/ci-status](b)",
    '[a](b "c\n/ci-status")',
    "<!--\n/ci-status\n-->",
    "<!--\n\n/ci-status\n",
    "words <!--\n/ci-status\n-->",
    "<details>\n\n/ci-status\n\n</details>",
    "<pre>\n\n/ci-status\n\n</pre>",
    "<sub>\n/ci-status\n</sub>",
    "a|b\n-|-\n/ci-status",
    "\\/ci-status",
    "&#47;ci-status",
    "/ci-status-now",
    "//ci-status",
    "",
    "/",
    "/ ci-status",
    "/lgtm",
]


@pytest.mark.parametrize("body", NONE)
def test_what_is_no_command_is_none(body: str):
    assert parse(body).commands == ()


@pytest.mark.parametrize(
    "body", [body for body in NONE if "ci-status-now" not in body and "//" not in body]
)
def test_and_needs_no_answer(body: str):
    assert parse(body).misunderstood == ()


@pytest.mark.parametrize(
    "body",
    [
        "/ci-status",
        "/ci-status  \t",
        "words\n/ci-status\nwords",
        "words\r\n/ci-status\r\n",
        "words\r/ci-status",
        "**bold** `code`\n/ci-status",
        "<b>bold</b>\n/ci-status",
        "<details>\n\nwords\n\n</details>\n\n/ci-status",
        "> quoted\n\n/ci-status",
        "```\ncode\n```\n/ci-status",
        "- item\n\n<!-- end -->\n/ci-status\n\n/ci-status",
    ],
)
def test_a_line_of_a_plain_paragraph_is_a_command(body: str):
    if body.startswith("- item"):
        body = body.replace("<!-- end -->\n", "")
    (command,) = parse(body).commands
    assert command == Command(name="ci-status")


def test_the_options_of_a_test():
    (command,) = parse("/rerun-test `t/a.py::T::t[a b]` --repeat 3 --runner h100 --replay").commands
    wanted = Command(
        name="rerun-test", node_id="t/a.py::T::t[a b]", repeat=3, runner="h100", replay=True
    )
    assert command == wanted


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("/rerun-test a.py::t --repeat", "--repeat needs a value"),
        ("/rerun-test a.py::t --repeat 0", "at least 1"),
        ("/rerun-test a.py::t --repeat 1e9", "at least 1"),
        ("/rerun-test a.py::t --repeat --replay", "--repeat needs a value"),
        ("/rerun-test a.py::t --replay --replay", "stands there twice"),
        ("/rerun-test a.py::t --runner ../x", "is no runner's name"),
        ("/rerun-test a.py::t b.py::t", "is too much"),
        ("/rerun-failed-ci ABCDEF", "in lower case"),
        ("/rerun-faild-ci", "did you mean /rerun-failed-ci?"),
        ("/rerun_failed_ci", "did you mean /rerun-failed-ci?"),
        ("/CI-STATUS", "did you mean /ci-status?"),
        ("/ci-status.", "did you mean /ci-status?"),
        ("/ci-\u200bstatus", "U+200B (ZERO WIDTH SPACE)"),
        ("/ci-status\u00a0", "U+00A0 (NO-BREAK SPACE)"),
        ("/ci-status --help\u202e", "U+202E (RIGHT-TO-LEFT OVERRIDE)"),
        ("/\u0441i-status", "U+0441 (CYRILLIC SMALL LETTER ES)"),
        ("/ci\u2010status", "U+2010 (HYPHEN)"),
        ("/ci-status \x1b[31m", "U+001B (a control character)"),
    ],
)
def test_a_near_miss_is_answered(line: str, reason: str):
    parsed = parse(line)
    assert parsed.commands == ()
    (one,) = parsed.misunderstood
    assert reason in one.reason


@pytest.mark.parametrize(
    "piece",
    [
        *"[ ![[ *a* **a ` `` < <a> <!-- > - & \\ _a_*b* [a](b<c ~~a~~ a|b\n|\n".split(" "),
        *("/x\n", "|\n", "<div>\n\n", "[a]: x\n", "> ", "- a\n  ", "/rerun-failed-cj\n", "\n"),
    ],
)
def test_64_kib_take_no_time(piece: str):
    for start in ("/ci-status\n\n", "/ci-status\n", "a|b\n-|-\n/ci-status\n"):
        body = (start + piece * LONGEST)[:LONGEST]
        started = time.process_time()
        parse(body)
        assert time.process_time() - started < 4


def test_a_longer_comment_than_github_has_is_not_read():
    assert parse("/ci-status\n\n" + "x" * LONGEST).commands == ()


@pytest.mark.parametrize(
    "text", ["@octo/all", "`", "``a`", "a\nb", "<!-- x -->", "\u202e", "[a](b)", "x" * 999]
)
def test_foreign_text_in_an_answer_is_code_on_one_line(text: str):
    from vlm_ci.bot.markdown import _inline

    shown = code(text)
    (only,) = _inline(shown, {})
    assert only.type == "code_inline"
    assert only.content.isprintable()
    assert len(shown) < 300
