"""Damaged files, and those of someone who means harm, are read as they were written or refused in a sentence."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.reader import Reader, good, sentence
from tests.fuzz.readers import READERS

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass(frozen=True)
class Good:
    """A good file, its bytes by name, and what is read from it."""

    reader: Reader
    path: Path
    files: dict[str, bytes] = field(repr=False)
    value: object = field(repr=False)
    document: Any = field(repr=False)

    def file(self, name: str) -> Path:
        return self.path / name if name else self.path

    def restore(self) -> None:
        for name, whole in self.files.items():
            self.file(name).parent.mkdir(parents=True, exist_ok=True)
            self.file(name).write_bytes(whole)


@pytest.fixture(params=READERS, ids=lambda reader: reader.name, scope="module")
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Good:
    path = request.param.place(tmp_path_factory.mktemp("good"))
    return Good(request.param, path, *good(request.param, path), request.param.document(path))


@st.composite
def damage(draw: st.DrawFn, whole: bytes) -> bytes:
    """Bits flipped, bytes cut out, put in, doubled, or the end lost."""
    changed = bytearray(whole)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(len(changed) - 1, 0)))
        length = draw(st.integers(1, 40))
        how = draw(st.sampled_from(["flip", "flip", "set", "cut", "insert", "double", "truncate"]))
        if how == "flip" and changed:
            changed[at] ^= 1 << draw(st.integers(0, 7))
        elif how == "set" and changed:
            changed[at] = draw(st.integers(0, 255))
        elif how == "cut":
            del changed[at : at + length]
        elif how == "insert":
            changed[at:at] = draw(st.binary(min_size=1, max_size=40))
        elif how == "double":
            changed[at:at] = changed[at : at + length]
        else:
            del changed[at:]
    return bytes(changed)


@FUZZ
@given(data=st.data())
def test_damaged_bytes_are_refused_by_name_or_change_nothing(case: Good, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(case.files)))
    try:
        case.file(name).write_bytes(data.draw(damage(case.files[name])))
        told, found = sentence(case.reader, case.path)
        assert case.reader.accepts(told, name, case.path, found, case.value), told
    finally:
        case.restore()


WEIRD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, -1, 2**31, 10**400, 1e308, float("nan"), float("inf"), "", "inf", "nan", "../up", "\0"])
    | st.text(max_size=5)
    | st.just("x" * 2000),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)


def places(document: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield above
    for key, value in (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    ):
        yield from places(value, (*above, key))


@st.composite
def distortion(draw: st.DrawFn, document: Any) -> Any:
    """The document with something at one of its places replaced, removed, renamed, or taken from another place."""
    changed = copy.deepcopy(document)
    place = draw(st.sampled_from(list(places(changed))))
    if not place:
        return draw(WEIRD)
    holder = changed
    for key in place[:-1]:
        holder = holder[key]
    how = draw(st.sampled_from(["replace", "replace", "remove", "rename", "borrow", "deepen"]))
    if how == "replace":
        holder[place[-1]] = draw(WEIRD)
    elif how == "remove":
        del holder[place[-1]]
    elif how == "rename" and isinstance(holder, dict):
        holder[draw(st.text(max_size=10))] = holder.pop(place[-1])
    elif how == "deepen":
        for _ in range(draw(st.sampled_from([50, 900]))):
            holder[place[-1]] = [holder[place[-1]]]
    else:
        other: Any = document
        for key in draw(st.sampled_from(list(places(document)))):
            other = other[key]
        holder[place[-1]] = copy.deepcopy(other)
    return changed


@FUZZ
@given(data=st.data())
def test_distorted_documents_with_fitting_checksums_are_read_or_refused_in_a_sentence(
    case: Good, data: st.DataObject
) -> None:
    try:
        case.reader.sign(case.path, data.draw(distortion(case.document)))
        told, _ = sentence(case.reader, case.path)
        assert told is None or "\n" not in told.strip()
    finally:
        case.restore()


def test_documents_nested_too_deep_are_refused(case: Good) -> None:
    for name in case.files:
        if name.endswith(".json") or case.reader.name == "plan":
            try:
                case.file(name).write_text("[" * 100_000 + "]" * 100_000)
                told, _ = sentence(case.reader, case.path)
                assert told is not None
                assert str(case.file(name) if case.reader.named else case.path) in told
            finally:
                case.restore()
