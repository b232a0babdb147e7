"""The summary that a person reads at the end of a run. Pure: a result in, lines out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.failures import changed, headline

if TYPE_CHECKING:
    from vlm_ci.result import Audit, BaselineUse, CacheUse, EvidenceUse, Result, Tolerated


MOST_TOLERATED = 5
_TOLD = ("torch", "transformers", "python", "device", "hardware")  # of the environment


def summary(result: Result, out: str = "") -> list[str]:
    """Return the summary of a run as lines of text."""
    where = f", results in {out}" if out else ""
    lines = [
        line("target", target_line(result)),
        line("environment", _environment(result)),
        line("warm-up", warmup_line(result)),
    ]
    if result.cache is not None:
        lines.append(line("cache", _cache(result.cache)))
    if result.strict.batches or result.traffic.examples:
        lines += [
            *([line("evidence", _evidence(result.evidence))] if result.evidence else []),
            line("traffic", _traffic(result)),
            line("corners", _corners(result)),
            line("after warm-up", _strict(result)),
            *(line("not watched", text) for text in _blind(result)),
            line("regions", _regions(result)),
            line("logits", _logits(result)),
        ]
    if result.parity.relations:
        lines.append(line("relations", _relations(result)))
    if result.parity.canary.applied:
        lines.append(line("canary", _canary(result)))
    if result.audit is not None:
        lines.append(line("audit", _audit(result, result.audit)))
    lines += [line("warning", text) for text in result.warnings]
    if result.baseline is not None:
        lines += _baseline(result.baseline, result.warnings)
    lines += [line("tolerated", _tolerated(entry)) for entry in result.tolerated[:MOST_TOLERATED]]
    if len(result.tolerated) > MOST_TOLERATED:
        rest = len(result.tolerated) - MOST_TOLERATED
        lines.append(line("", f"and {rest} more causes; result.json has them all"))
    lines += [line("failure", headline(failure)) for failure in result.failures]
    found = len(result.failures)
    causes = f", {found} cause{'s' if found > 1 else ''}" if found else ""
    lines.append(line("verdict", f"{result.verdict}{causes}{where}"))
    return lines


def line(label: str, text: str) -> str:
    """Return a labelled line of a report."""
    return f"{label:<14} {text}"


def split(text: str) -> tuple[str, str]:
    """Return the label and the text of a line of a report."""
    return text[:14].rstrip(), text[15:]


def target_line(result: Result) -> str:
    """Return what was tested, and how it was compiled."""
    options = result.options
    figures = {"recipe": result.recipe, "backend": result.backend, **options}
    if "dynamic" in options and options["dynamic"] is None:
        figures["dynamic"] = "auto"
    parts = [result.target]
    parts += [
        f"{name} {figures[name]}"
        for name in ("recipe", "backend", "dynamic", "mode", "recompile_limit")
        if figures.get(name) not in (None, "")
    ]
    if options.get("bug"):
        parts.append(f"bug {options['bug']}" + (" (repaired)" if options.get("repaired") else ""))
    return ", ".join(parts)


def _environment(result: Result) -> str:
    env = {key: result.environment.get(key, "unknown") for key in _TOLD}
    return (
        f"torch {env['torch']}, transformers {env['transformers']}, Python {env['python']}, "
        f"{env['device']} ({env['hardware']}), {result.options.get('dtype', 'unknown type')}"
    )


def warmup_line(result: Result) -> str:
    """Return what the warm-up did."""
    warm = result.warmup
    end = "converged" if warm.converged else "did not converge"
    end += "; done by an earlier run" if warm.reused else ""
    return (
        f"plan {warm.plan}: {warm.batches} batches, {warm.rounds} rounds, {warm.compiles} compiles "
        f"({warm.graphs} graphs, {warm.graph_breaks} graph breaks) in {warm.seconds:.1f} s; {end}"
    )


def _cache(use: CacheUse) -> str:
    graphs = f"{use.hits} graphs from it, {use.misses} compiled" if use.hits is not None else ""
    return "; ".join(filter(None, (f"{use.state} from {use.folder}/{use.key}", graphs, use.note)))


def _traffic(result: Result) -> str:
    traffic = result.traffic
    corpus = f"{traffic.corpus} recorded sessions, " if traffic.corpus else ""
    return (
        f"{corpus}{traffic.examples} examples, {traffic.batches} batches "
        f"({traffic.text_only} text only), "
        f"{traffic.requests} requests, {traffic.images} images, {traffic.videos} videos; "
        f"seed {result.seed}" + (f", part {result.part}" if result.part else "")
    )


def _evidence(use: EvidenceUse) -> str:
    left = [f"{count} {reason}" for reason, count in use.aside.items()]
    left += [f"{len(use.broken)} broken"] if use.broken else []
    aside = f"; left aside: {', '.join(left)}" if left else ""
    sessions = f"{use.sessions} session{'s' if use.sessions != 1 else ''}"
    return f"{sessions} of {use.folder} replayed first, {use.failing} failing again{aside}"


def _corners(result: Result) -> str:
    counts = result.traffic.corners
    reached = sum(count > 0 for count in counts.values())
    return f"{reached} of {len(counts)} reached"


def _strict(result: Result) -> str:
    strict = result.strict
    share = strict.forward_seconds / strict.seconds if strict.seconds else 0.0
    known = [
        f", {count} {name}"
        for name, count in (
            ("graph captures", strict.graph_captures),
            ("triton compiles", strict.triton_compiles),
        )
        if count is not None
    ]
    refused = (
        f"{strict.refusals} refused calls"
        if strict.refusing
        else "calls could not be refused (out of process)"
    )
    return (
        f"{strict.compiles} compiles, {refused}{''.join(known)}; "
        f"{strict.batches} batches in {strict.seconds:.1f} s, {share:.0%} of it in forwards"
    )


def _blind(result: Result) -> list[str]:
    """Return what the watch could not see, and why; nothing where it saw everything."""
    blind = [f"{one.layer} ({one.blind})" for one in result.watch if one.blind]
    return ["; ".join(blind)] if blind else []


def _regions(result: Result) -> str:
    regions = result.strict.regions_per_step
    if regions.least is None:
        return "none executed"
    return (
        f"{regions.least} to {regions.most} compiled regions executed in a step, "
        f"{regions.mean} on average"
    )


def _logits(result: Result) -> str:
    parity = result.parity
    if parity.worst is None:
        return "none compared"
    worst = parity.worst
    judged = (
        f"eager, judged by {parity.reference}"
        if parity.reference != "none"
        else f"eager by a fixed tolerance, which is weaker ({parity.weaker})"
    )
    if parity.without_reference:
        count = parity.without_reference
        judged += f" ({count} {'batch' if count == 1 else 'batches'} without it, by a tolerance)"
    if worst.ratio is None or worst.error is None:
        return (
            f"{parity.tokens_compared} tokens compared with {judged}; NaN or Inf at "
            f"request {worst.request}, token {worst.token} ({worst.modality})"
        )
    return (
        f"{parity.tokens_compared} tokens compared with {judged}; worst error "
        f"{worst.error:.2g}, {worst.ratio:.2g} of what is allowed (request {worst.request}, token "
        f"{worst.token}, {worst.modality})"
    )


def _relations(result: Result) -> str:
    counts = result.parity.relations.items()
    judged = ", ".join(f"{name} {count}" for name, count in counts if count)
    return f"batches judged by {judged}" if judged else "none was judged"


def _baseline(use: BaselineUse, warnings: list[str]) -> list[str]:
    """Return how the run compares with its baseline, and each line that differs."""
    worse = sum(change.worse for change in use.changes)
    better = len(use.changes) - worse
    told = [f"{count} {word}" for count, word in ((worse, "worse"), (better, "better")) if count]
    words = ", ".join(told) or "as it was"
    if use.updated:
        words = f"written, {', '.join(told)} than before" if told else "written"
    elif better and not worse:
        words += ": --update-baselines keeps what was won"
    lines = [f"{use.path}: {words}"] if use.path else []
    lines += changed((one.field, one.before, one.after) for one in use.changes)
    lines += [note for note in use.notes if note not in warnings]
    return [line("baseline" if index == 0 else "", text) for index, text in enumerate(lines)]


def _audit(result: Result, audit: Audit) -> str:
    end = "the last one found nothing new" if audit.complete else "it did not come to its end"
    return (
        f"{audit.rounds} searches, {end}; the warm-up grew from {result.warmup.batches} to "
        f"{audit.plan_batches} batches with {audit.extension_compiles} compiles"
    )


def _tolerated(entry: Tolerated) -> str:
    times = f", {entry.count} times" if entry.count > 1 else ""
    return f"{headline(entry.failure)} ({entry.policy}{times})"


def _canary(result: Result) -> str:
    canary = result.parity.canary
    changes = ", ".join(
        f"{name} by {'NaN or Inf' if change is None else format(change, '.3g')}"
        for name, change in canary.changes.items()
    )
    return f"{canary.moved} of {canary.applied} modalities move the logits ({changes})"
