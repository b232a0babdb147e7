"""The summary of a job: what stands in it, what hostile text does to it, and its size."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token
from sample_results import failure, full, result

from vlm_ci.report import actions, escaping, markdown, sections
from vlm_ci.report.markdown import Run, TestNote
from vlm_ci.result import BaselineUse, CacheUse, Change, Tolerated

ALLOWED_HTML = re.compile(
    r"<details><summary>(Environment|Evidence of cause \d+)</summary>|</details>"
)
LIMIT = 1_048_576  # bytes that GitHub takes of one step


def parsed(text: str) -> list[Token]:
    """Parse text as GitHub does: tables, HTML, and addresses that become links."""
    parser = MarkdownIt("gfm-like", {"html": True, "linkify": True})
    # GitHub links no bare domain, as this parser does unless it is told not to.
    parser.linkify.set({"fuzzy_link": False, "fuzzy_email": True})
    return parser.parse(text)


def inlines(tokens: list[Token]) -> list[Token]:
    return [child for token in tokens for child in token.children or ()]


def shape(text: str) -> list[str]:
    """What a text consists of, whatever the words in it: blocks and inline code."""
    kinds = []
    for token in parsed(text):
        kinds.append(f"{token.type} {token.tag}")
        kinds += [child.type for child in token.children or () if child.type != "text"]
    return kinds


def prose_of(text: str) -> str:
    """All rendered text outside code, where GitHub looks for mentions and references."""
    return "\n".join(child.content for child in inlines(parsed(text)) if child.type == "text")


PIECES = st.sampled_from(
    [
        *(
            "`",
            "``",
            "```",
            "~~~~",
            "|",
            "\\",
            "\\|",
            "\n",
            "\n\n",
            "\r\n",
            "\u2028",
            "\x1b[31m",
            "\x00",
        ),
        *("<script>alert(1)</script>", "<img src=x>", "</details>", "<!--", "-->", "<b>", "&lt;"),
        *(
            "&#64;",
            "@octocat",
            "@org/team",
            "#123",
            "GH-12",
            "owner/repo#5",
            "https://evil.example",
        ),
        *("www.evil.example", "mailto:a@b.example", "me@evil.example", "[a](http://x)"),
        *("![i](http://x)", "[r]: http://x", "# h", "- item", "1. item", "> quote", "---", "***"),
        *("* * *", "===", "$x$", ":tada:", "    code", "\t", "01234567", "\u202e", "\ud800"),
        *("0123456789abcdef0123456789abcdef01234567", "|---|---|", "x", " ", "é", "漢"),
    ]
)
HOSTILE = st.one_of(st.lists(PIECES, min_size=1, max_size=8).map("".join), st.text(min_size=1))


@settings(max_examples=100)
@given(HOSTILE)
@example("\n```\n<script>alert(1)</script>\n# heading\n")
@example("a | b\n| --- |\n| c |")
@example("\\|")
@example("see @octocat and #123, https://evil.example")
def test_hostile_text_changes_nothing_but_the_words(text: str):
    tests = [TestNote(sort="missing", name=text, text=text)]
    shown = markdown.report([Run(result=full(text), out=text)], tests=tests)
    plain = markdown.report(
        [Run(result=full("x"), out="x")], tests=[TestNote(sort="missing", name="x", text="x")]
    )
    # A text of nothing but blanks leaves its code span out; the blocks are the same all the same.
    blocks = [kind for kind in shape(shown) if kind not in ("code_inline", "softbreak")]
    expected = [kind for kind in shape(plain) if kind not in ("code_inline", "softbreak")]
    if escaping.one_line(text):
        assert blocks == expected
        assert shape(shown).count("code_inline") == shape(plain).count("code_inline")
    tokens = parsed(shown)
    for token in [*tokens, *inlines(tokens)]:
        assert token.type not in ("link_open", "image")
        if token.type.startswith("html"):
            assert ALLOWED_HTML.fullmatch(token.content.strip()), token.content
    assert shown.encode()  # no half of a surrogate pair
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u202e]", shown)


@settings(max_examples=100)
@given(HOSTILE)
@example("@octocat #123 owner/repo#5 GH-12 www.evil.example 0123456789abcdef0123")
def test_nobody_is_mentioned_and_nothing_referred_to(text: str):
    shown = prose_of(markdown.report([Run(result=full(text), out="out")]))
    assert not re.search(r"@\w", shown)
    assert not re.search(r"#\d", shown)
    assert not re.search(r"(?i)\bgh-\d", shown)
    assert not re.search(r"(?i)\bwww\.|://", shown)
    assert not re.search(r"(?i)\b(?=[0-9a-f]*\d)[0-9a-f]{7,40}\b", shown)


@settings(max_examples=100)
@given(HOSTILE.filter(escaping.one_line))
def test_words_are_shown_as_they_are(text: str):
    line = escaping.one_line(text)
    [token] = [one for one in inlines(parsed(f"is {escaping.code(text)} so")) if one.tag == "code"]
    assert token.content == line
    shown = prose_of(f"is {escaping.prose(text)} so")
    assert shown.replace(escaping.JOINER, "") == f"is {line.replace(escaping.JOINER, '')} so"
    row = escaping.table(("a", "b"), [(escaping.cell(text), "1")])
    cells = [token for token in parsed(row) if token.type == "td_open"]
    [token] = [one for one in inlines(parsed(row)) if one.tag == "code"]
    assert len(cells) == 2
    assert token.content.replace("⧵", "\\") == escaping.one_line(text, 300).replace("⧵", "\\")


@settings(max_examples=100)
@given(HOSTILE)
def test_a_fence_ends_where_it_should(text: str):
    tokens = parsed(f"{escaping.fenced(text)}\n\nafter")
    assert [token.type for token in tokens] == [
        "fence", "paragraph_open", "inline", "paragraph_close",
    ]  # fmt: skip


def test_the_verdict_stands_first_and_the_cause_after_it():
    runs = [Run(result=result(), out="a"), Run(result=result(failures=[failure()]), out="b c")]
    text = markdown.report(runs)
    lines = text.splitlines()
    assert lines[0] == "## ❌ vlm-ci: failed, 1 cause in 1 of 2 runs"
    assert lines[4] == "### 1. `recompile` in `tests/test_vlm.py::test_mixed_traffic`"
    assert lines[6] == "`input_deepstack_embeds is present, in warm-up it was None`"
    assert "```sh\nvlm-ci replay 'b c/failures/01-recompile'\n```" in text
    assert "Batch(requests=(Request(items=(Text(tokens=3), Image(height=1, width=2))),))" in text
    assert "Advice: warm up with an image" in text


def test_every_part_of_the_records_is_there():
    run = result(
        failures=[failure()],
        warnings=["this torch was not tested"],
        tolerated=[Tolerated(failure=failure(kind="stall", cause="slow"), policy="warn", count=4)],
        baseline=BaselineUse(
            changes=[
                Change(field="warm-up compiles", before="12", after="15", worse=True),
                Change(field="graph breaks", before="4", after="2", worse=False),
            ],
            notes=["written with torch 2.12"],
        ),
        cache=CacheUse(folder="c", key="k1", state="warm", hits=9, misses=1),
    )
    notes = [TestNote(sort="flaky", name="t::a", text="failed, then passed")]
    text = markdown.report([Run(result=run, out="out")], tests=notes)
    diff = (
        "```diff\n- warm-up compiles: 12\n+ warm-up compiles: 15\n"
        "- graph breaks: 4\n+ graph breaks: 2 (no worse)\n```"
    )
    assert diff in text
    assert "- written with torch 2\\.12" in text
    assert "| `tests/test_vlm.py::test_mixed_traffic` | `warm` | 9 | 1 | – | `k1` |" in text
    assert "| `stall: slow` | `warn` | 4 |" in text
    assert "| `flaky` | `t::a` | `failed, then passed` |" in text
    assert "- this torch was not tested" in text
    assert "| `torch` | `2.13.0` |" in text


def test_one_cause_of_two_shards_is_told_once():
    runs = [
        Run(result=result(failures=[failure()], shard=f"{n}/2", test=f"t::{n}"), out=f"o{n}")
        for n in (1, 2)
    ]
    text = markdown.report(runs)
    assert text.count("### 1. `recompile` in `t::1`, `t::2`") == 1
    assert "### 2." not in text
    elsewhere = Run(result=result(failures=[failure()], target="llava-tiny"), out="o3")
    assert "### 2." in markdown.report([*runs, elsewhere])


def test_a_missing_test_is_no_green():
    text = markdown.report(
        [Run(result=result(), out="out")], tests=[TestNote(sort="missing", name="t::a")]
    )
    assert text.startswith("## ❌ vlm-ci: failed, 1 missing test\n")
    assert markdown.report([Run(result=result(), out="out")]).startswith("## ✅ vlm-ci: clean\n")


def test_what_does_not_fit_is_left_out_whole_and_named():
    many = [failure(key=f"k{n}", cause=f"cause {n}", note="漢" * 1500) for n in range(300)]
    run = Run(result=result(failures=many), out="out")
    text = markdown.report([run])
    assert len(text.encode()) <= markdown.MOST_BYTES < LIMIT
    assert "causes' evidence" in text.splitlines()[-1]
    assert "All of it is in `out/result.json`." in text.splitlines()[-1]
    assert text.count("\n### ") > 50
    assert text.count("<details>") == text.count("</details>")
    small = markdown.report([run], most=3000)
    assert len(small.encode()) <= 3000
    assert small.startswith("## ❌ vlm-ci: failed, 300 causes")
    assert "### Runs" in small  # the table is worth more than the causes
    fences = [token for token in parsed(small) if token.type == "fence"]
    assert all(token.markup and "Left out" not in token.content for token in fences)
    assert markdown.report([run], most=20) == ""


def test_sections_of_the_highest_rank_go_first_and_of_one_rank_the_last():
    parts = [
        sections.Section(text="kept", rank=sections.KEPT),
        *(sections.Section(text=f"{n}" * 100, rank=2, one="one", many="some") for n in (1, 2, 3)),
        sections.Section(text="x" * 100, rank=5, one="extra", many="extras"),
    ]
    text = sections.joined(parts, 240, "It is elsewhere.")
    assert "1" * 100 in text
    assert "2" * 100 not in text
    assert "Left out, because GitHub takes 1 MiB for a step: extra, 2 some." in text


@pytest.mark.parametrize("held", [0, 10, 500_000, LIMIT - 5_000])
def test_the_summary_stays_within_the_limit_with_what_is_there(tmp_path: Path, held: int):
    file = tmp_path / "summary.md"
    file.write_bytes(b"x" * held)
    many = [failure(key=f"k{n}", note="漢" * 1500) for n in range(300)]
    problem = actions.append_summary([Run(result=result(failures=many), out="out")], file)
    content = file.read_bytes()
    assert content.startswith(b"x" * held)
    assert len(content) <= LIMIT - 4_096
    if held == LIMIT - 5_000:
        assert "Runs" in content.decode() or "no room" in problem
    else:
        assert not problem
        assert content.decode()[held:].lstrip("\n").startswith("## ❌ vlm-ci: failed")


def test_a_full_summary_is_left_alone(tmp_path: Path):
    file = tmp_path / "summary.md"
    file.write_bytes(b"x" * LIMIT)
    problem = actions.append_summary([Run(result=result(), out="out")], file)
    assert "has no room for a summary: GitHub takes 1 MiB for a step" in problem
    assert file.read_bytes() == b"x" * LIMIT


def test_a_summary_that_cannot_be_written_is_said(tmp_path: Path):
    problem = actions.append_summary([Run(result=result(), out="out")], tmp_path)
    assert problem.startswith(f"cannot write the summary of the step to {tmp_path}: ")


@pytest.mark.parametrize(
    "changes",
    [
        {"location": {"module": "layers.1"}},
        {"location": {"request": 0, "token": 1, "modality": "text", "worst": "text"}},
        {"call": ({"now": "1"},)},
        {"kind": "baseline", "difference": ({"path": "graphs"},)},
    ],
)
def test_a_record_that_is_not_as_we_write_it_is_told_by_its_cause(changes: dict[str, object]):
    odd = failure(**changes)
    text = markdown.report(
        [Run(result=result(failures=[odd, failure(key="b", cause="b")]), out="out")]
    )
    assert text.count(odd.cause) == 2  # as a cause, and in place of its evidence
    assert "Evidence of cause 2" in text
