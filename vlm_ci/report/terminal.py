"""The summary that a person reads at the end of a run. Pure: a result in, lines out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from vlm_ci.failures import headline

if TYPE_CHECKING:
    from vlm_ci.result import Result


def summary(result: Result, out: str = "") -> list[str]:
    """Return the summary of a run as lines of text."""
    where = f", results in {out}" if out else ""
    lines = [
        _line("target", _target(result)),
        _line("environment", _environment(result)),
        _line("warm-up", _warmup(result)),
    ]
    if result.strict.batches or result.traffic.examples:
        lines += [
            _line("traffic", _traffic(result)),
            _line("corners", _corners(result)),
            _line("after warm-up", _strict(result)),
            _line("regions", _regions(result)),
            _line("logits", _logits(result)),
        ]
    if result.parity.canary.applied:
        lines.append(_line("canary", _canary(result)))
    lines += [_line("warning", text) for text in result.warnings]
    lines += [_line("failure", headline(failure)) for failure in result.failures]
    found = len(result.failures)
    causes = f", {found} cause{'s' if found > 1 else ''}" if found else ""
    lines.append(_line("verdict", f"{result.verdict}{causes}{where}"))
    return lines


def _line(label: str, text: str) -> str:
    return f"{label:<14} {text}"


def _target(result: Result) -> str:
    options = result.options
    parts = [result.target, f"recipe {result.recipe}", f"backend {result.backend}"]
    parts.append(f"dynamic {options.get('dynamic')}")
    parts += [
        f"{name} {options[name]}"
        for name in ("mode", "recompile_limit")
        if options.get(name) is not None
    ]
    if options.get("bug"):
        parts.append(f"bug {options['bug']}" + (" (repaired)" if options["repaired"] else ""))
    return ", ".join(parts)


def _environment(result: Result) -> str:
    env = result.environment
    return (
        f"torch {env['torch']}, transformers {env['transformers']}, Python {env['python']}, "
        f"{env['device']} ({env['hardware']}), {result.options['dtype']}"
    )


def _warmup(result: Result) -> str:
    warm = result.warmup
    end = "converged" if warm.converged else "did not converge"
    return (
        f"plan {warm.plan}: {warm.batches} batches, {warm.rounds} rounds, {warm.compiles} compiles "
        f"({warm.graphs} graphs, {warm.graph_breaks} graph breaks) in {warm.seconds:.1f} s; {end}"
    )


def _traffic(result: Result) -> str:
    traffic = result.traffic
    return (
        f"{traffic.examples} examples, {traffic.batches} batches ({traffic.text_only} text only), "
        f"{traffic.requests} requests, {traffic.images} images, {traffic.videos} videos; "
        f"seed {result.seed}"
    )


def _corners(result: Result) -> str:
    counts = result.traffic.corners
    reached = sum(count > 0 for count in counts.values())
    return f"{reached} of {len(counts)} reached"


def _strict(result: Result) -> str:
    strict = result.strict
    share = strict.forward_seconds / strict.seconds if strict.seconds else 0.0
    known = [
        f"{name} {'not observed' if count is None else count}"
        for name, count in (
            ("graph captures", strict.graph_captures),
            ("triton compiles", strict.triton_compiles),
        )
    ]
    return (
        f"{strict.compiles} compiles, {strict.refusals} refused calls, {', '.join(known)}; "
        f"{strict.batches} batches in {strict.seconds:.1f} s, {share:.0%} of it in forwards"
    )


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
    return (
        f"{parity.tokens_compared} tokens compared with {parity.reference}; worst error "
        f"{worst.error:.2g}, {worst.ratio:.2g} of what is allowed (request {worst.request}, token "
        f"{worst.token}, {worst.modality})"
    )


def _canary(result: Result) -> str:
    canary = result.parity.canary
    changes = ", ".join(f"{name} by {change:.3g}" for name, change in canary.changes.items())
    return f"{canary.moved} of {canary.applied} modalities move the logits ({changes})"
