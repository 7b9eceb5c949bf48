"""W3C Trace Context: what is read of any headers, and what is passed on."""

from __future__ import annotations

import re

import pytest
from confluent_kafka import Message
from hypothesis import example, given
from hypothesis import strategies as st

from streamer.tracing.context import (
    TraceContext,
    context_of,
    contexts_of,
    current_context,
    trace_context,
    working_in,
)

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
VALID = f"00-{TRACE}-{SPAN}-01".encode()
HEX = "0123456789abcdef"


def read(parent: bytes, *states: bytes) -> TraceContext | None:
    return trace_context([("traceparent", parent), *(("tracestate", state) for state in states)])


def record(*headers: tuple[str, bytes]) -> Message:
    return Message(topic="t", partition=0, offset=0, key=b"k", value=b"v", headers=list(headers) or None)


def test_context_has_the_fields_of_its_header() -> None:
    context = read(VALID, b"congo=t61rcWkgMzE")
    assert context is not None
    assert (context.trace_id, context.span_id, context.flags, context.sampled) == (TRACE, SPAN, 1, True)
    assert context.headers == [("traceparent", VALID), ("tracestate", b"congo=t61rcWkgMzE")]
    unsampled = read(VALID[:-1] + b"2")
    assert unsampled is not None
    assert not unsampled.sampled


@given(
    st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255), st.sampled_from(["", " ", "\t ", "  "])
)
def test_every_valid_header_is_passed_on_as_it_came(trace: int, span: int, flags: int, space: str) -> None:
    parent = f"00-{trace:032x}-{span:016x}-{flags:02x}".encode()
    context = read(space.encode() + parent + space.encode())
    assert context is not None
    assert context.headers == [("traceparent", parent)]
    assert (int(context.trace_id, 16), int(context.span_id, 16), context.sampled) == (trace, span, flags % 2 == 1)


def by_the_specification(header: bytes) -> bool:
    """§ 3.2 and § 3.2.4, read anew: fields by their places."""
    text = header.strip(b" \t").decode("latin-1")
    version, rest = text[:2], text[55:]
    fields = (text[3:35], text[36:52], text[53:55])
    return (
        len(text) >= 55
        and len(header) <= 512
        and all(letter in HEX for part in (version, *fields) for letter in part)
        and [text[place] for place in (2, 35, 52)] == ["-"] * 3
        and version != "ff"
        and set(fields[0]) != {"0"}
        and set(fields[1]) != {"0"}
        and (
            rest == "" if version == "00" else rest == "" or (rest[0] == "-" and all("!" <= one <= "~" for one in rest))
        )
    )


NEARLY = st.builds(
    lambda header, at, byte: header[:at] + byte + header[at + 1 :],
    st.sampled_from([VALID, b"01" + VALID[2:] + b"-what-the-future-brings", b"cc" + VALID[2:]]),
    st.integers(0, 60),
    st.binary(max_size=2),
)


@given(st.one_of(NEARLY, st.binary(max_size=80)))
@example(b"ff" + VALID[2:])
@example(b"00" + VALID[2:] + b"-more")
@example(b"01" + VALID[2:] + b"-more")
@example(b"01" + VALID[2:] + b".more")
@example(f"00-{'0' * 32}-{SPAN}-01".encode())
@example(f"00-{TRACE}-{'0' * 16}-01".encode())
@example(VALID.upper())
@example(VALID + b"\n")
@example(b"01" + VALID[2:] + b"-" + b"x" * 500)
def test_header_is_read_as_the_specification_says_and_ignored_otherwise(header: bytes) -> None:
    context = read(header)
    assert (context is not None) == by_the_specification(header)
    if context is not None:
        assert context.traceparent == header.strip(b" \t")


def test_names_are_told_in_any_case_and_two_parents_are_none() -> None:
    assert trace_context([("TraceParent", VALID), ("TRACESTATE", b"a=1")]) == TraceContext(VALID, b"a=1")
    assert trace_context([("traceparent", VALID), ("Traceparent", VALID)]) is None
    assert trace_context([("tracestate", b"a=1")]) is None
    assert trace_context([("traceparent", None)]) is None


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_no_tracestate_harms_its_parent_or_grows_beyond_its_limit(states: list[bytes]) -> None:
    context = read(VALID, *states)
    assert context is not None
    assert context.traceparent == VALID
    assert len(context.tracestate) <= 512
    assert re.fullmatch(rb"(?:[\t\x20-\x7e]*=[\t\x20-\x7e]*)?", context.tracestate)


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        ([b"a=1,b=2"], b"a=1,b=2"),
        ([b"a=1 ,", b"\tb=2"], b"a=1,b=2"),
        ([b""], b""),
        ([b"no member"], b""),
        ([b"a=\xff"], b""),
        ([b",".join(b"k%d=v" % number for number in range(33))], b""),
        # The longest members go first, then the last ones.
        ([b"a=" + b"x" * 300, b"b=1", b"c=" + b"y" * 300], b"b=1"),
        ([b",".join([b"a=" + b"x" * 98] * 6)], b",".join([b"a=" + b"x" * 98] * 5)),
    ],
)
def test_tracestate_is_joined_cleaned_and_cut_as_the_specification_says(states: list[bytes], kept: bytes) -> None:
    context = read(VALID, *states)
    assert context is not None
    assert context.tracestate == kept


def test_batch_without_contexts_has_no_list_of_them() -> None:
    assert contexts_of([]) is None
    assert contexts_of([record(), record()]) is None
    assert contexts_of([record(("ce_id", b"1")), record(("traceparent", b"nonsense"))]) is None
    assert contexts_of([record(), record(("traceparent", VALID))]) == [None, TraceContext(VALID)]
    assert context_of(record()) is None


def test_current_context_is_that_of_the_innermost_block() -> None:
    one, two = TraceContext(VALID), TraceContext(VALID[:-1] + b"0")
    with working_in(one):
        with working_in(two):
            assert current_context() == two
        assert current_context() == one
    assert current_context() is None
