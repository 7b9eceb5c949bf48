"""What an error means, and an answer that is none."""

from __future__ import annotations

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException

from streamer.kafka.errors import Meaning, has_no_token, meaning, refuses_our_certificate, told


def test_answer_without_an_offset_passes_and_any_other_is_the_offset() -> None:
    assert [told(offset) for offset in (0, 1, 1 << 62)] == [0, 1, 1 << 62]
    with pytest.raises(KafkaException) as passing:
        told(OFFSET_INVALID)
    assert meaning(passing.value.args[0]) is Meaning.PASSING


@pytest.mark.parametrize(
    ("code", "means"),
    [
        (KafkaError._PARTITION_EOF, Meaning.END),
        (KafkaError._ALL_BROKERS_DOWN, Meaning.PASSING),
        (KafkaError.NOT_LEADER_FOR_PARTITION, Meaning.PASSING),
        (KafkaError._FENCED, Meaning.FENCED),
        (KafkaError.SASL_AUTHENTICATION_FAILED, Meaning.LOGIN_REFUSED),
        (KafkaError.MSG_SIZE_TOO_LARGE, Meaning.RECORD_REFUSED),
        (KafkaError.OFFSET_OUT_OF_RANGE, Meaning.OFFSET_GONE),
        (KafkaError._UNKNOWN_PARTITION, Meaning.UNKNOWN_PARTITION),
        (KafkaError._UNKNOWN_TOPIC, Meaning.GONE),
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, Meaning.FATAL),
    ],
)
def test_each_kind_of_error_has_one_meaning(code: int, means: Meaning) -> None:
    assert meaning(KafkaError(code)) is means


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        (
            "Receive failed: error:0A00045C:SSL routines::tlsv13 alert certificate required: SSL alert number 116 (after",
            True,
        ),
        ("error:0A000415:SSL routines::sslv3 alert certificate expired: SSL alert number 45 (after 1ms in state", True),
        ("error:0A000438:SSL routines::tlsv1 alert internal error: SSL alert number 80 (after 1ms in state", False),
        ("Connect to ipv4#127.0.0.1:4 failed: Connection refused (after 4ms in state CONNECT)", False),
    ],
)
def test_broker_that_refuses_our_certificate_is_told_from_one_that_went_away(text: str, refused: bool) -> None:
    assert refuses_our_certificate(KafkaError(KafkaError._TRANSPORT, text)) is refused


def test_token_that_could_not_be_got_is_told_from_one_that_the_broker_refuses() -> None:
    assert has_no_token(KafkaError(KafkaError._AUTHENTICATION, "Failed to acquire SASL OAUTHBEARER token: Failed to"))
    refused = 'SASL authentication error: {"status":"invalid_token"} (after 317ms in state AUTH_REQ)'
    assert not has_no_token(KafkaError(KafkaError._AUTHENTICATION, refused))
