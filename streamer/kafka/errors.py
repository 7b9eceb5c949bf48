"""What an error of a Kafka client means to us; every broker error leaves a room of ours as one of these exceptions."""

from __future__ import annotations

import re
from enum import Enum, auto
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from models.errors import SidstreamError
from streamer.settings.kafka import KafkaSettings


class Meaning(Enum):
    """What is to be done about an error."""

    END = auto()
    """No error: the end of a partition was reached."""
    PASSING = auto()
    """Wait: the client goes on by itself, and the same call succeeds later."""
    ABORT = auto()
    """Abort the transaction, and do its batch again."""
    FENCED = auto()
    """End: another client has taken our transactional id or our place in the group."""
    LOGIN_REFUSED = auto()
    """Other settings alone help: user, password, certificate."""
    RECORD_REFUSED = auto()
    """The topic does not take this record, however often it is sent: too large, or without a key where it is compacted."""
    OFFSET_GONE = auto()
    """The log does not hold the offset that we wanted to read next."""
    UNKNOWN_PARTITION = auto()
    """The topic has fewer partitions than the number that a record was to go to."""
    GONE = auto()
    """The topic is not there, or not any more."""
    FATAL = auto()
    """End: the client is broken, we are not allowed to, or it is a fault of ours."""


# ``KafkaError.retriable()`` is set by the calls of a transaction alone; elsewhere the code tells.
_MEANINGS: Final = {
    Meaning.END: (KafkaError._PARTITION_EOF,),
    Meaning.PASSING: (
        KafkaError._ALL_BROKERS_DOWN,
        KafkaError._TRANSPORT,
        KafkaError._RESOLVE,
        KafkaError._TIMED_OUT,
        KafkaError._MAX_POLL_EXCEEDED,
        KafkaError.REQUEST_TIMED_OUT,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
        KafkaError.NOT_COORDINATOR,
        # A partition between two leaders, or before its first: it answers a moment later.
        KafkaError.NOT_LEADER_FOR_PARTITION,
        KafkaError.LEADER_NOT_AVAILABLE,
        KafkaError.UNKNOWN_LEADER_EPOCH,
        KafkaError.FENCED_LEADER_EPOCH,
        # A transaction that commits these offsets is not finished yet.
        KafkaError.UNSTABLE_OFFSET_COMMIT,
        # Of a topic that was just made not every broker knows. Whether it is gone for good ``PartitionWatch`` tells.
        KafkaError.UNKNOWN_TOPIC_OR_PART,
    ),
    Meaning.FENCED: (
        KafkaError._FENCED,
        KafkaError.PRODUCER_FENCED,
        KafkaError.INVALID_PRODUCER_EPOCH,
        KafkaError.FENCED_INSTANCE_ID,
    ),
    Meaning.LOGIN_REFUSED: (
        KafkaError._AUTHENTICATION,
        KafkaError._SSL,
        KafkaError.SASL_AUTHENTICATION_FAILED,
        KafkaError.UNSUPPORTED_SASL_MECHANISM,
    ),
    Meaning.RECORD_REFUSED: (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD),
    Meaning.OFFSET_GONE: (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE, KafkaError._NO_OFFSET),
    Meaning.UNKNOWN_PARTITION: (KafkaError._UNKNOWN_PARTITION,),
    Meaning.GONE: (KafkaError._UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_ID),
}
_CUT_OFF: Final = ("Request not valid in current SASL state", "handshake failed: Local: ")
_NO_TOKEN: Final = "Failed to acquire SASL OAUTHBEARER token"
# Alerts of TLS (RFC 8446, 6.2): a certificate that is bad, unsupported, revoked, expired or unknown, access denied, none given.
_CERTIFICATE_REFUSED: Final = re.compile(r"SSL alert number (4[2-689]|116)\b")
_MEANING_OF_CODE: Final = {code: means for means, codes in _MEANINGS.items() for code in codes}


def meaning(error: KafkaError) -> Meaning:
    """The one table: what ``error`` means, whichever client or call it comes from."""
    if error.txn_requires_abort():
        return Meaning.ABORT
    means = _MEANING_OF_CODE.get(error.code())
    if error.fatal() and means is not Meaning.FENCED:
        return Meaning.FATAL
    if error.retriable():
        return Meaning.PASSING
    return Meaning.FATAL if means is None else means


def has_no_token(error: KafkaError) -> bool:
    """Whether the client could not get an OAUTHBEARER token: refused, or because nobody answered, which its text alone tells."""
    return bool(error.code() == KafkaError._AUTHENTICATION and error.str().startswith(_NO_TOKEN))


def login_was_cut_off(error: KafkaError) -> bool:
    """Whether a login ended with its connection, or was renewed twice in a second, which Kafka does not take: the client connects
    anew by itself."""
    return bool(error.code() == KafkaError._AUTHENTICATION and any(text in error.str() for text in _CUT_OFF))


def refuses_our_certificate(error: KafkaError) -> bool:
    """Whether the broker ends TLS over our certificate or its absence: librdkafka takes that for a broker that went away."""
    return bool(error.code() == KafkaError._TRANSPORT and _CERTIFICATE_REFUSED.search(error.str()))


def took_our_place(error: KafkaError) -> bool:
    """Whether another client is the reason, even where the client would let us abort and go on."""
    return _MEANING_OF_CODE.get(error.code()) is Meaning.FENCED


def told(offset: int) -> int:
    """``offset``, as an answer has it. While a partition changes its leader a client may answer without one (-1001), and
    without an error: that is no end of a log.

    Raises:
        KafkaException: there is none; it passes.
    """
    if offset < 0:
        raise KafkaException(KafkaError(KafkaError.LEADER_NOT_AVAILABLE, "the answer has no offset"))
    return offset


class FatalKafkaError(SidstreamError):
    """The broker or the client refuses for good; the process ends and a supervisor starts it anew."""


class ConsumerBrokenError(FatalKafkaError):
    """This consumer cannot go on, but a new one in its place can: its membership was lost while the broker was away."""


class OffsetGoneError(FatalKafkaError):
    """The log does not hold the next offset any more: its start has moved on, or it is another log."""


class LoginRefusedError(FatalKafkaError):
    """The broker refuses our user, password, token or certificate, we are given no token, or do not trust its certificate."""

    def __init__(self, kafka: KafkaSettings, reason: str) -> None:
        if kafka.oauth_token_provider:
            given = "what kafka.oauth_token_provider gives"
        elif kafka.uses_tokens:
            given = "sasl.oauthbearer.client.id, .client.secret, .scope and .token.endpoint.url"
        elif kafka.security_properties().get("security.protocol", "").upper() == "SSL":
            given = "ssl.certificate.location and ssl.key.location"
        else:
            given = "sasl.username and sasl.password"
        super().__init__(
            f"{kafka.bootstrap_servers} and we do not agree on who we are: {reason.rstrip('.')}. Correct kafka.security in the "
            f"settings: {given}, or the certificate in ssl.ca.location"
        )


def error_text(error: KafkaException) -> str:
    """One line for a person: what the broker said and its code."""
    inner = error.args[0]
    return f"{inner.str()} ({inner.name()})" if isinstance(inner, KafkaError) else str(error)
