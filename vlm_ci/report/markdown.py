"""A report as GitHub's Markdown, for the summary of a job. Pure: records in, text out.

The verdict stands first, then each cause with what to do about it. Everything that comes from a
record is made safe by ``escaping``; what is too much for the size that is given is left out in
whole sections (``sections``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from vlm_ci.failures import ENDED, Failure, headline, identity, replay_command
from vlm_ci.report import warmup
from vlm_ci.report.escaping import cell, code, fenced, prose, table
from vlm_ci.report.failures import text_of
from vlm_ci.report.sections import KEPT, Section, joined
from vlm_ci.traffic import drawing

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from vlm_ci.result import Result
    from vlm_ci.traffic.envelope import Geometry

# "Each step is restricted to a maximum size of 1MiB" (GitHub, workflow commands, step isolation and
# limits), and a summary a few bytes below that is dropped in silence: a part of it stays unused.
MOST_BYTES = 1_048_576 - 4_096
MOST_ROWS = 200  # of one table

# From worst to best; the report has the worst verdict of its runs.
VERDICTS = ("failed", "vacuous", "interrupted", "incomplete", "clean")
SMALLEST = "The smallest traffic that shows it"
MARKS = {"clean": "✅", "interrupted": "⚠️", "incomplete": "⚠️"}
BROKEN_TESTS = ("missing shard", "missing", "failed", "infrastructure")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run and the folder of its result, as it can be named on the command line.

    ``geometry`` tells the drawing how many positions an image takes; ``replayable`` says that the
    target can be built again by name.
    """

    result: Result
    out: str
    geometry: Geometry | None = None
    replayable: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class TestNote:
    """What a merged JUnit file says of one test: ``sort`` is one of ``BROKEN_TESTS``, "flaky",
    "recovered" or "skipped part"."""

    __test__ = False  # not a test of pytest's

    sort: str
    name: str
    text: str = ""


def report(runs: Sequence[Run], *, tests: Sequence[TestNote] = (), most: int = MOST_BYTES) -> str:
    """Return the report of some runs, in at most ``most`` bytes of UTF-8.

    ``tests`` are what a merged JUnit file says besides. Nothing is returned where there is no room
    for the verdict.
    """
    causes = _by_cause(runs)
    sections = [Section(text=_verdict(runs, causes, tests), rank=KEPT)]
    for number, found in enumerate(causes, start=1):
        sections += _cause(number, *found)
    sections += [
        *_section(_tests(tests), 2, "the tests of the JUnit file"),
        *_section(_runs(runs), 1, "the table of runs"),
        *_section(_plans(runs), 3, "the warm-up plans"),
        *_section(_baselines(runs), 3, "what changed from the baseline"),
        *_section(_tolerated(runs), 5, "what was tolerated"),
        *_section(_warnings(runs), 4, "the warnings"),
        *_section(_caches(runs), 6, "the compile cache"),
        *_section(_environment(runs), 7, "the environment"),
    ]
    outs = ", ".join(dict.fromkeys(code(f"{run.out}/result.json") for run in runs[:3]))
    more = ", …" if len(runs) > 3 else ""
    return joined(sections, most, f"All of it is in {outs}{more}." if outs else "")


Found = tuple[Failure, list[Run]]  # a cause and the runs that have it


def _by_cause(runs: Sequence[Run]) -> list[Found]:
    """Return each cause of a target once, with the runs that have it."""
    found: dict[tuple[str, ...], Found] = {}
    for run in runs:
        for failure in run.result.failures:
            key = (identity(failure), run.result.target, run.result.recipe)
            found.setdefault(key, (failure, []))[1].append(run)
    return list(found.values())


def _section(text: str, rank: int, name: str) -> list[Section]:
    return [Section(text=text, rank=rank, one=name, many=name)] if text else []


# -- the verdict ---------------------------------------------------------------------------------


def _verdict(runs: Sequence[Run], causes: Sequence[Found], tests: Sequence[TestNote]) -> str:
    known = [run.result.verdict for run in runs]
    worst = min(known, key=_rank, default="incomplete")
    broken = [note for note in tests if note.sort in BROKEN_TESTS]
    if broken:
        worst = "failed"
    parts = [prose(worst)]
    if causes:
        red = sum(bool(run.result.failures) for run in runs)
        among = f" in {red} of {_count(len(runs), 'run')}" if len(runs) > 1 else ""
        parts.append(_count(len(causes), "cause") + among)
    elif len(runs) > 1:
        parts.append(_count(len(runs), "run"))
    for sort in BROKEN_TESTS:
        many = sum(note.sort == sort for note in broken)
        if many:
            word = {"failed": "failed test", "infrastructure": "failure of the infrastructure"}
            parts.append(_plural(many, word.get(sort, sort if "shard" in sort else "missing test")))
    lines = [f"## {MARKS.get(worst, '❌')} vlm-ci: {', '.join(parts)}"]
    results = [run.result for run in runs]
    if results:
        lines.append(
            f"{_count(sum(map(_examples, results)), 'example')} in "
            f"{_count(sum(one.strict.batches for one in results), 'batch')}; "
            f"{_count(sum(one.warmup.compiles for one in results), 'compile')} in warm-up, "
            f"{sum(one.strict.compiles for one in results)} after it; "
            f"{_count(sum(one.strict.refusals for one in results), 'refused call')}."
        )
    return "\n\n".join(lines)


def _examples(result: Result) -> int:
    """Return how many examples a run served; a synthesis does so where it verifies its plan."""
    proofs = result.synthesis.verifications if result.synthesis is not None else []
    return result.traffic.examples + sum(proof.examples for proof in proofs[-1:])


def _rank(verdict: str) -> int:
    return VERDICTS.index(verdict) if verdict in VERDICTS else 0


def _count(number: int, word: str) -> str:
    return f"{number:,} {_form(number, word)}"


def _plural(number: int, word: str) -> str:
    if word.startswith("failure "):
        return f"{number} failure{'s' if number != 1 else ''} {word.removeprefix('failure ')}"
    return _count(number, word)


def _form(number: int, word: str) -> str:
    return word if number == 1 else f"{word}{'es' if word.endswith('ch') else 's'}"


# -- causes --------------------------------------------------------------------------------------


def _cause(number: int, failure: Failure, runs: list[Run]) -> Iterator[Section]:
    """Yield a cause with its advice, traffic and replay command, and its evidence by itself."""
    run = runs[0]
    where = ", ".join(dict.fromkeys(code(_name(one.result)) for one in runs[:5]))
    more = f" and {len(runs) - 5} more" if len(runs) > 5 else ""
    blocks = [f"### {number}. {code(failure.kind)} in {where}{more}", code(failure.cause)]
    told = [("Advice", failure.advice), ("Note", failure.note)]
    blocks += [f"{label}: {prose(text)}" for label, text in told if text]
    places = [("Frame", failure.frame), ("Line", failure.line), ("Module", _module(failure))]
    blocks += [f"{label}: {code(text)}" for label, text in places if text]
    if failure.traffic is not None:
        count = len(failure.traffic.batches)
        what = "The traffic that was being served" if failure.key == ENDED else SMALLEST
        blocks.append(f"{what}, {_count(count, 'batch')}:")
        blocks.append(fenced("\n".join(map(repr, failure.traffic.batches)), "python"))
        blocks.append(fenced("\n".join(drawing.draw(failure.traffic, run.geometry))))
    command = replay_command(failure, run.out) if run.replayable else ""
    if command:
        blocks += ["To run it again:", fenced(command, "sh")]
    yield Section(text="\n\n".join(blocks), rank=2, one="one cause", many="causes")
    text = text_of(failure, out=run.out, geometry=run.geometry, replayable=run.replayable)
    yield Section(
        text=_details(f"Evidence of cause {number}", fenced(text)),
        rank=8,
        one="the evidence of one cause",
        many="causes' evidence",
    )


def _name(result: Result) -> str:
    return result.test or result.target


def _module(failure: Failure) -> str:
    return str((failure.location or {}).get("module") or "")


def _details(summary: str, text: str) -> str:
    """Return a part that opens on a click; ``summary`` is ours, and holds nothing of a record."""
    return f"<details><summary>{summary}</summary>\n\n{text}\n\n</details>"


# -- tables and lists ----------------------------------------------------------------------------


def _runs(runs: Sequence[Run]) -> str:
    heads = (
        *("run", "target", "shard", "verdict", "examples", "batches"),
        *("compiles in warm-up", "after", "worst error", "seconds", "seed", "results"),
    )
    ordered = sorted(runs, key=lambda run: _rank(run.result.verdict))
    rows = [_row(run.result, run.out) for run in ordered]
    return _titled("Runs", heads, rows)


def _row(result: Result, out: str) -> tuple[str, ...]:
    strict, warm = result.strict, result.warmup
    parts = [result.target, result.recipe, result.backend, str(result.options.get("dtype", ""))]
    found = ", ".join(dict.fromkeys(failure.kind for failure in result.failures))
    return (
        cell(result.test or result.command),
        cell(", ".join(filter(None, parts))),
        cell(result.shard),
        f"{cell(result.verdict)}{f' ({cell(found)})' if found else ''}",
        str(_examples(result)),
        str(strict.batches),
        f"{warm.compiles}{' (reused)' if warm.reused else ''}",
        str(strict.compiles),
        _worst(result),
        f"{warm.seconds:.0f} + {strict.seconds:.0f}",
        str(result.seed),
        cell(out),
    )


def _worst(result: Result) -> str:
    worst = result.parity.worst
    if worst is None:
        return "–"
    return "not finite" if worst.ratio is None else f"{worst.ratio:.2g} of what is allowed"


def _titled(title: str, heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    more = f"\n\nand {len(rows) - MOST_ROWS} more" if len(rows) > MOST_ROWS else ""
    return f"### {title}\n\n{table(heads, rows[:MOST_ROWS])}{more}"


def _plans(runs: Sequence[Run]) -> str:
    heads = ("run", "outcome", "batches", "graphs", "compiles", "verified with", "plan")
    rows = []
    for run in runs:
        books = run.result.synthesis
        if books is not None:
            proofs = [proof for proof in books.verifications if proof.held]
            rows.append(
                (
                    cell(_name(run.result)),
                    cell(warmup.outcome(run.result, books)),
                    *(str(count) for count in (books.batches, books.graphs, books.compiles)),
                    _count(proofs[-1].examples, "example") if proofs else "–",
                    cell(f"{run.out}/{books.plan}" if books.plan else ""),
                )
            )
    return _titled("Warm-up plans", heads, rows)


def _tests(tests: Sequence[TestNote]) -> str:
    order = (*BROKEN_TESTS, "flaky", "recovered", "skipped part")
    known = sorted(tests, key=lambda note: order.index(note.sort) if note.sort in order else 0)
    rows = [(cell(note.sort), cell(note.name), cell(note.text)) for note in known]
    return _titled("Tests that need a look", ("what", "test", "why"), rows)


def _baselines(runs: Sequence[Run]) -> str:
    blocks = []
    for run in runs:
        use = run.result.baseline
        if use is None or not (use.changes or use.notes):
            continue
        blocks.append(f"{code(_name(run.result))}{', now rewritten' if use.updated else ''}:")
        lines = []
        for change in use.changes[:MOST_ROWS]:
            tail = "" if change.worse else " (no worse)"
            lines += [_diff("-", f"{change.field}: {change.before}")]
            lines += [_diff("+", f"{change.field}: {change.after}{tail}")]
        if lines:
            blocks.append(fenced("\n".join(lines), "diff"))
        if len(use.changes) > MOST_ROWS:
            blocks.append(f"and {len(use.changes) - MOST_ROWS} more")
        blocks += [f"- {prose(note)}" for note in use.notes]
    return "\n\n".join(["### Against the baseline", *blocks]) if blocks else ""


def _diff(sign: str, text: str) -> str:
    return f"{sign} {' '.join(text.split())}"


def _caches(runs: Sequence[Run]) -> str:
    known = [(run.result, run.result.cache) for run in runs if run.result.cache is not None]
    rows = [
        (
            cell(_name(result)),
            cell(use.state),
            *("–" if count is None else str(count) for count in (use.hits, use.misses)),
            cell(use.note),
            cell(use.key),
        )
        for result, use in known
    ]
    return _titled("Compile cache", ("run", "it was", "hits", "misses", "note", "key"), rows)


def _tolerated(runs: Sequence[Run]) -> str:
    rows = [
        (cell(_name(run.result)), cell(headline(one.failure)), cell(one.policy), str(one.count))
        for run in runs
        for one in run.result.tolerated
    ]
    return _titled("Tolerated", ("run", "finding", "policy", "times"), rows)


def _warnings(runs: Sequence[Run]) -> str:
    texts = list(dict.fromkeys(text for run in runs for text in run.result.warnings))
    lines = [f"- {prose(text)}" for text in texts[:MOST_ROWS]]
    if len(texts) > MOST_ROWS:
        lines.append(f"- and {len(texts) - MOST_ROWS} more")
    return "\n".join(["### Warnings", "", *lines]) if lines else ""


def _environment(runs: Sequence[Run]) -> str:
    """Return the environments of all runs; what differs stands there more than once."""
    rows: dict[tuple[str, ...], None] = {}
    for run in runs:
        facts = {**run.result.environment, "commit": run.result.commit}
        for name, value in facts.items():
            if value not in ("", None):
                rows[cell(name), cell(str(value))] = None
    shown = list(rows)
    if not shown:
        return ""
    more = f"\n\nand {len(shown) - MOST_ROWS} more" if len(shown) > MOST_ROWS else ""
    return _details("Environment", table(("what", "value"), shown[:MOST_ROWS]) + more)
