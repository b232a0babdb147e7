"""Why a run failed, by the JUnit files in its artifacts. Writes only into a temporary folder.

A job of a pull request can put anything into an artifact: the number of files and their sizes are
capped, names in an archive are checked and never used as paths, and nothing is unpickled. The worst
that a forged file does is to call a failure by another name.
"""

from __future__ import annotations

import io
import re
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from vlm_ci.bot.facts import Cause
from vlm_ci.bot.words import code, printable
from vlm_ci.errors import UsageError
from vlm_ci.junit import files, merging, rules
from vlm_ci.junit.records import KINDS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from vlm_ci.junit.records import Suite, Test

MOST_ARCHIVES = 100  # of one run
LARGEST_ARCHIVE = 64 * 2**20  # bytes, packed
LARGEST_COMMENT = 256 * 2**20  # bytes, packed, of all runs that a comment asks about
MOST_MEMBERS = 10_000  # of one archive
MOST_FILES = 200  # JUnit files of one run
LARGEST_FILE = 16 * 2**20  # bytes, unpacked
LARGEST_RUN = 64 * 2**20  # bytes of all its JUnit files
MOST_TESTS = 20_000  # of one run: a few seconds' work
SHOWN = 5
_ATTEMPT = re.compile(r"(?<![a-z])attempt[-_]?(\d{1,3})(?!\d)", re.IGNORECASE)
_PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # what GitHub's own actions write
_OURS = re.compile(r"\S*/vlm-ci-bot-[^/\s]*/")  # the temporary folder
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,  # a name that is no UTF-8, a place before the beginning
)


def cause(archives: Sequence[tuple[str, bytes | None]]) -> Cause:
    """Return why a run failed; ``archives`` are names and contents of its artifacts (zip), None
    where it was not fetched."""
    read = [(name, packed) for name, packed in archives if packed is not None]
    found = _cause_of(read)
    if len(read) == len(archives):
        return found
    missing = len(archives) - len(read)
    unread = (
        f"{missing} artifact{'s' if missing > 1 else ''} more were not looked at: "
        f"{LARGEST_COMMENT // 2**20} MiB are read for one comment"
    )
    says = f"{found.says}; {unread}" if found.says else f"not read: {unread}"
    return msgspec.structs.replace(found, says=says)


def _cause_of(archives: Sequence[tuple[str, bytes]]) -> Cause:
    suites, refused = _suites(archives)
    try:
        tests = [test for test in merging.merge(suites).tests if test.broken] if suites else []
    except UsageError as error:
        return _unknown([*refused, code(_OURS.sub("", str(error)))])
    if not tests:
        return _unknown(refused)
    judged = [(test, _verdicts(test)) for test in tests]
    real = [(test, ", ".join(kinds)) for test, kinds in judged if kinds]
    if real:
        found = [(_name(test), kinds) for test, kinds in real]
        return _cause("real", f"{_count(found)} with {_list(kinds for _, kinds in found)}", found)
    ruled = [(_name(test), test.rule) for test in tests if test.rule]
    if len(ruled) == len(tests):
        says = f"{_count(ruled)} by the infrastructure: {_list(rule for _, rule in ruled)}"
        return _cause("infrastructure", says, ruled)
    found = [(_name(test), test.rule or "failed") for test in tests]
    return _cause("failed", f"{_count(found)}", found)


def _cause(kind: str, says: str, tests: list[tuple[str, str]]) -> Cause:
    shown = ", ".join(code(name, 120) for name, _ in tests[:SHOWN])
    more = f" and {len(tests) - SHOWN} more" if len(tests) > SHOWN else ""
    return Cause(kind=kind, says=f"{says}: {shown}{more}", tests=tuple(tests[:SHOWN]))


def _unknown(refused: list[str]) -> Cause:
    return Cause(kind="unknown", says=f"not read: {'; '.join(refused[:3])}" if refused else "")


def _verdicts(test: Test) -> tuple[str, ...]:
    kinds = (value for name, value in test.case.properties if name == KINDS)
    return rules.verdicts(", ".join(kinds))


def _name(test: Test) -> str:
    return printable(test.nodeid or f"{test.case.classname}.{test.case.name}")


def _count(tests: list[tuple[str, str]]) -> str:
    return f"{len(tests)} test{'s' if len(tests) != 1 else ''} failed"


def _list(texts: Iterable[str]) -> str:
    names = dict.fromkeys(name for text in texts for name in text.split(", "))
    return ", ".join(code(name, 40) for name in list(names)[:SHOWN])


def _suites(archives: Sequence[tuple[str, bytes]]) -> tuple[list[Suite], list[str]]:
    """Return the suites of all JUnit files, and why others are left out."""
    suites: list[Suite] = []
    refused: list[str] = []
    left = LARGEST_RUN
    tests = MOST_TESTS
    count = 0
    if len(archives) > MOST_ARCHIVES:
        refused.append(f"there are more than {MOST_ARCHIVES} artifacts")
    with tempfile.TemporaryDirectory(prefix="vlm-ci-bot-") as folder:
        for name, packed in archives[:MOST_ARCHIVES]:
            try:
                for member, content in _members(packed, left):
                    count += 1
                    left -= len(content)
                    if count > MOST_FILES:
                        raise _Unusable(f"a run has at most {MOST_FILES} JUnit files")
                    # At least as many as there are: also in a comment, and in UTF-16.
                    cases = content.replace(b"\0", b"").count(b"<testcase")
                    if cases > tests:
                        said = f"has {cases} tests, and of one run {MOST_TESTS} are read"
                        refused.append(f"{code(name, 80)}: {code(member, 80)} {said}")
                        continue
                    tests -= cases
                    attempt = _ATTEMPT.search(PurePosixPath(member).stem) or _ATTEMPT.search(name)
                    stem = f"{count:03}" + (f"-attempt-{attempt[1]}" if attempt else "")
                    path = Path(folder, f"{stem}.xml")
                    path.write_bytes(content)
                    try:
                        suites += files.read(path)
                    except UsageError as error:  # which may repeat what the file says
                        said = code(str(error).removeprefix(f"{path}: "))
                        refused.append(f"{code(name, 80)}: {code(member, 80)}: {said}")
            except _Unusable as error:
                refused.append(f"{code(name, 80)}: {error}")
    return suites, refused


class _Unusable(Exception):
    """Why an archive is not read any further."""


def _members(packed: bytes, left: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of the XML files in an archive; ``left`` bytes may still be read.

    Raises:
        _Unusable: it is no archive, or larger or otherwise than one of ours.
    """
    if len(packed) > LARGEST_ARCHIVE:
        raise _Unusable(f"it is larger than {LARGEST_ARCHIVE // 2**20} MiB")
    try:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            members = archive.infolist()
            if len(members) > MOST_MEMBERS:
                raise _Unusable(f"it has more than {MOST_MEMBERS} files")
            for member in members:
                if not member.filename.lower().endswith(".xml"):
                    continue
                _check(member)
                limit = min(LARGEST_FILE, left)
                with archive.open(member) as file:  # its stated size may lie: read up to the limit
                    content = file.read(limit + 1)
                if len(content) > limit:
                    raise _Unusable("its JUnit files are too large")
                left -= len(content)
                yield member.filename, content
    except _BROKEN as error:
        raise _Unusable(f"it cannot be read as a zip file: {printable(str(error), 80)}") from None


def _check(member: zipfile.ZipInfo) -> None:
    path = PurePosixPath(member.filename)
    outside = path.is_absolute() or ".." in path.parts or "\\" in member.filename
    if outside or re.match(r"[A-Za-z]:", member.filename):
        raise _Unusable("a name in it leads out of the folder")
    if member.flag_bits & 1:
        raise _Unusable("a file in it is encrypted")
    if member.compress_type not in _PACKED:  # LZMA takes the memory that a header asks for
        raise _Unusable("a file in it is packed otherwise than GitHub's actions do")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG):
        raise _Unusable("something in it is no plain file")
