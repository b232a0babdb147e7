"""Traffic: values, files, envelopes, strategies, corners, shrinking."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from vlm_ci import shrink
from vlm_ci.errors import UsageError
from vlm_ci.failures import Failure, finding
from vlm_ci.search import RUN_LENGTH, Search
from vlm_ci.traffic import corners, strategies
from vlm_ci.traffic.envelope import Envelope, Geometry
from vlm_ci.traffic.files import plan_to_json, pretty, read_envelope, read_plan, read_traffic
from vlm_ci.traffic.spec import (
    Batch,
    Image,
    Request,
    Session,
    Text,
    Video,
    batch,
    session,
)
from vlm_ci.warmup import NAMED_PLANS, named_plan


def seeds(count: int) -> list[object]:
    """Two seeds by day, the others by night."""
    night = [pytest.param(number, marks=pytest.mark.nightly) for number in range(2, count)]
    return [0, 1, *night]


QWEN = Envelope(
    image_side=(8, 48),
    video_side=(8, 24),
    side_multiple=8,
    frames=(1, 6),
    geometry=Geometry(token_side=8, image_overhead=2, frame_overhead=4),
)
LLAVA = Envelope(
    modalities=("text", "image"),
    image_side=(16, 16),
    video_side=(16, 16),
    side_multiple=16,
    geometry=Geometry(token_side=None, tokens_per_image=16),
)
BUCKETS = msgspec.structs.replace(LLAVA, buckets=(16, 32), max_tokens=64, images=(0, 2))
CONTEXTS = msgspec.structs.replace(QWEN, contexts=("inference_mode", "no_grad", "thread"))
# Deployments with lower bounds: never a single row, an image in every request, …
PAIRS = msgspec.structs.replace(QWEN, requests=(2, 3), tokens=(3, 12))
WITH_IMAGE = msgspec.structs.replace(QWEN, images=(1, 3), items=(2, 5), padding=("right",))
PICTURES = msgspec.structs.replace(QWEN, modalities=("image", "video"), max_tokens=120)
ENVELOPES = {
    "qwen": QWEN,
    "llava": LLAVA,
    "buckets": BUCKETS,
    "contexts": CONTEXTS,
    "pairs": PAIRS,
    "with-image": WITH_IMAGE,
    "pictures": PICTURES,
}

SESSION = session(
    batch([Text(5), Image(16, 24)], Text(9), seed=3, padding="right"),
    batch([Video(3, 8, 16)], context="no_grad"),
)


@given(strategies.sessions(QWEN))
def test_repr_is_code_and_json_round_trips(value):
    assert eval(repr(value)) == value
    assert msgspec.json.decode(pretty(value), type=Session) == value


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Text(0), "Text.tokens must be a whole number of at least 1, not 0"),
        (lambda: Text(True), "Text.tokens must be a whole number of at least 1, not True"),
        (lambda: Text(2.5), "not 2.5"),
        (lambda: Image(8, -1), "Image.width must be"),
        (lambda: Video(0, 8, 8), "Video.frames must be"),
        (lambda: Request(()), "Request.items must be a non-empty tuple"),
        (lambda: Request([Text(1)]), "must be a non-empty tuple"),
        (lambda: Request(("text",)), "must hold only Text, Image or Video"),
        (lambda: Batch(()), "Batch.requests must be a non-empty tuple"),
        (lambda: batch(Text(1), padding="up"), "Batch.padding must be one of left, right"),
        (lambda: batch(Text(1), context="nograd"), "Batch.context must be one of inference_mode"),
        (lambda: batch(Text(1), seed=-1), "Batch.seed must be"),
        (lambda: Session(()), "Session.batches must be a non-empty tuple"),
        (lambda: Envelope(requests=(3, 2)), r"must be \[smallest, largest\], not \[3, 2\]"),
        (lambda: Envelope(modalities=("audio",)), "must be one of text, image, video"),
        (lambda: Envelope(modalities=()), "must name at least one"),
        (lambda: Envelope(image_side=(30, 40)), "holds no multiple of side_multiple 28"),
        (lambda: Envelope(images=(0, 0)), "lists 'image' but images allows none"),
        (lambda: Envelope(max_tokens=4, tokens=(9, 9)), "smaller than the shortest text"),
        (lambda: Envelope(buckets=(32, 16)), "must rise strictly"),
    ],
)
def test_values_are_validated_when_they_are_built(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_traffic_file_round_trips_and_fits_its_schema(tmp_path: Path, repository: Path):
    path = tmp_path / "traffic.json"
    path.write_bytes(pretty(SESSION))
    assert read_traffic(path) == SESSION
    schema = json.loads((repository / "vlm_ci/schemas/traffic.schema.json").read_bytes())
    content = json.loads(path.read_bytes())
    jsonschema.validate(content, schema)
    assert content["schema"] == "vlm-ci/traffic/1"
    assert content["batches"][0]["requests"][0]["items"][1] == {
        "kind": "image",
        "height": 16,
        "width": 24,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Input data was truncated"),
        ("{", "truncated"),
        ("[]", "Expected `object`, got `array`"),
        ('{"batches": []}', "at least one batch"),
        ('{"batches": [{"requests": []}]}', r"Batch.requests .* - at `\$.batches\[0\]`"),
        (
            '{"batches": [{"requests": [{"items": [{"kind": "text", "tokens": 0}]}]}]}',
            r"Expected `int` >= 1 - at `\$.batches\[0\].requests\[0\].items\[0\].tokens`",
        ),
        (
            '{"batches": [{"requests": [{"items": [{"kind": "txt"}]}]}]}',
            r"Invalid value 'txt' - at",
        ),
        ('{"batches": [], "name": 1}', "unknown field `name`"),
        ('{"schema": "vlm-ci/plan/9", "batches": []}', "must be one of vlm-ci/plan/1"),
    ],
)
def test_broken_plan_file_is_refused_with_the_place(tmp_path: Path, content: str, message: str):
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=message) as caught:
        read_plan(path)
    assert str(path) in str(caught.value)


def test_plan_file_round_trips(tmp_path: Path):
    path = tmp_path / "plan.json"
    path.write_bytes(plan_to_json(SESSION.batches))
    assert read_plan(path) == SESSION.batches


def test_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"cannot read the plan file .*: No such file"):
        read_plan(tmp_path / "absent.json")


def test_envelope_file_overrides_the_default(tmp_path: Path):
    path = tmp_path / "envelope.json"
    path.write_text('{"requests": [1, 2], "modalities": ["text"]}')
    read = read_envelope(path, QWEN)
    assert read == msgspec.structs.replace(QWEN, requests=(1, 2), modalities=("text",))
    path.write_text('{"request": [1, 2]}')
    with pytest.raises(UsageError, match="unknown field `request`"):
        read_envelope(path, QWEN)


@pytest.mark.parametrize("name", ENVELOPES)
def test_strategies_stay_within_the_envelope(name: str):
    envelope = ENVELOPES[name]

    @settings(max_examples=150, suppress_health_check=list(HealthCheck))
    @given(strategies.sessions(envelope))
    def check(value: Session) -> None:
        for part in value.batches:
            assert envelope.violation(part) is None

    check()


@pytest.mark.parametrize("name", ENVELOPES)
def test_each_corner_strategy_reaches_its_corner(name: str):
    envelope = ENVELOPES[name]
    for corner in corners.allowed(envelope):
        seen: list[Session] = []

        @settings(max_examples=15, suppress_health_check=list(HealthCheck))
        @given(strategies.corner_batches(corner, envelope).map(tuple).map(Session))
        def collect(value: Session) -> None:
            seen.append(value)  # noqa: B023 (called at once)

        collect()
        assert seen
        assert all(corner in corners.reached(value, envelope) for value in seen), corner


@pytest.mark.parametrize("name", ENVELOPES)
@pytest.mark.parametrize("number", seeds(6))
def test_fifty_examples_reach_every_corner(name: str, number: int):
    seen: list[Session] = []
    search = Search(ENVELOPES[name])
    search.run(seen.append, examples=50, seed=number)
    tally = corners.tally(seen, ENVELOPES[name])
    assert len(seen) == 50
    assert [corner for corner, count in tally.items() if not count] == []


def test_corners_follow_the_envelope():
    allowed = corners.allowed(QWEN)
    assert {"one-token-image", "transposed-images", "video-or-images", "odd-frames"} <= set(allowed)
    assert not {"one-token-image", "transposed-images", "video-only"} & set(corners.allowed(LLAVA))
    assert "bucket-above-largest" in corners.allowed(BUCKETS)
    text = msgspec.structs.replace(QWEN, modalities=("text",), requests=(1, 1))
    assert set(corners.allowed(text)) == {
        "batch-1",
        "length-1",
        "length-2",
        "text-only",
        "same-batch-twice",
    }
    with pytest.raises(ValueError, match="unknown or not allowed"):
        strategies.corner_batches("bucket", QWEN)


def _smallest(condition, envelope: Envelope = QWEN, number: int = 0) -> Session:
    """Search for a session that meets a condition, and shrink it as a failing run would."""

    def check(value: Session) -> None:
        if condition(value):
            raise finding(Failure(kind="crash", cause="c", advice="a", key="k", traffic=value))

    search = Search(envelope)
    search.run(check, examples=100, seed=number)
    (failure,) = search.best.values()
    assert failure.traffic is not None
    return failure.traffic


@pytest.mark.parametrize("number", seeds(5))
@pytest.mark.parametrize(
    ("condition", "smallest"),
    [
        (lambda s: True, session(batch(Text(1)))),
        (lambda s: any("image" in b.modalities for b in s.batches), session(batch(Image(8, 8)))),
        (
            lambda s: any(b.modalities >= {"image", "video"} for b in s.batches),
            None,  # one request with one image and one video of the smallest size
        ),
        (
            lambda s: any(
                isinstance(i, Image) and i.width > 30 for b in s.batches for i in b.items()
            ),
            session(batch(Image(8, 32))),
        ),
        (
            lambda s: any(len(b.requests) > 1 for b in s.batches),
            session(batch(Text(1), Text(1))),
        ),
        (
            lambda s: any(b.padding == "right" for b in s.batches),
            session(batch(Text(1), padding="right")),
        ),
    ],
)
def test_failures_shrink_to_the_smallest_session(condition, smallest, number: int):
    found = _smallest(condition, number=number)
    if smallest is None:
        (only,) = found.batches
        assert [len(r.items) for r in only.requests] == [2]
        assert set(only.items()) == {Image(8, 8), Video(1, 8, 8)}
    else:
        assert found == smallest


def test_hypothesis_alone_shrinks_to_text_and_small_sizes():
    found: list[Session] = []

    @seed(1)
    @settings(max_examples=200, database=None, phases=(Phase.generate, Phase.shrink))
    @given(strategies.batches(QWEN))
    def check(value: Batch) -> None:
        if sum(item.tokens for item in value.items() if isinstance(item, Text)) > 10:
            found.append(session(value))
            raise AssertionError

    with pytest.raises(AssertionError):
        check()
    assert found[-1] == session(batch(Text(11)))


def test_two_causes_are_both_found():
    def check(value: Session) -> None:
        for part in value.batches:
            for kind in ("video", "image"):
                if kind in part.modalities:
                    raise finding(
                        Failure(kind="crash", cause=kind, advice="a", key=kind, traffic=value)
                    )

    search = Search(QWEN)
    search.run(check, examples=100, seed=0)
    assert sorted(search.best) == ["crash: image", "crash: video"]


def test_search_survives_a_failure_that_does_not_repeat():
    state = {"failed": False}

    def check(value: Session) -> None:
        if "image" in value.batches[0].modalities and not state["failed"]:
            state["failed"] = True
            raise finding(Failure(kind="crash", cause="c", advice="a", key="k", traffic=value))

    search = Search(QWEN)
    search.run(check, examples=100, seed=0)
    assert search.flaky
    assert list(search.best) == ["crash: k"]


def test_an_error_of_our_own_is_not_taken_for_a_finding():
    def check(value: Session) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Search(QWEN).run(check, examples=RUN_LENGTH, seed=0)

    state = {"failed": False}

    def check_once(value: Session) -> None:
        if len(value.batches) > 1 and not state["failed"]:
            state["failed"] = True
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Search(QWEN).run(check_once, examples=50, seed=0)


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        (batch(Text(5)), "1 requests are outside [2, 3]"),
        (batch(Text(5), Text(2)), "Text(tokens=2): tokens must be from 3 to 12"),
        (batch(Text(5), [Text(5)] * 6), "request 1: 6 items are outside [1, 5]"),
        (batch(Text(5), [Image(8, 8)] * 4), "request 1: 4 images are outside [0, 3]"),
        (batch(Text(5), Image(8, 9)), "sides must be multiples of 8 pixels from 8 to 48"),
        (batch(Text(5), Video(7, 8, 8)), "frames must be from 1 to 6"),
        (batch(Text(5), Text(5), context="grad"), "context 'grad' is not among"),
    ],
)
def test_an_envelope_says_why_it_refuses(part: Batch, reason: str):
    assert reason in (PAIRS.violation(part) or "")


@given(strategies.sessions(QWEN))
def test_simpler_sessions_stay_valid(value):
    for candidate in shrink.simpler(value, QWEN):
        assert candidate != value


@pytest.mark.parametrize("name", ENVELOPES)
@pytest.mark.parametrize("plan", NAMED_PLANS)
def test_named_plans_fit_the_envelope_and_say_what_they_hold(name: str, plan: str):
    envelope = ENVELOPES[name]
    if plan == "text-only" and not {"text-only"} & set(corners.allowed(envelope)):
        with pytest.raises(UsageError, match="has no batch that this envelope accepts"):
            named_plan(plan, envelope)
        return
    batches = named_plan(plan, envelope).batches
    assert 5 <= len(batches) <= 9 * len(envelope.contexts)
    assert all(envelope.violation(part) is None for part in batches)
    kinds = [part.modalities for part in batches]
    if plan == "text-only":
        assert set().union(*kinds) == {"text"}
    elif plan == "image-only":
        assert all("image" in kind for kind in kinds)
    else:
        assert set().union(*kinds) == set(envelope.modalities)


def test_unknown_plan_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'text-only'"):
        named_plan("text-onl", QWEN)
    text = msgspec.structs.replace(QWEN, modalities=("text",))
    with pytest.raises(UsageError, match="has no batch that this envelope accepts"):
        named_plan("image-only", text)
