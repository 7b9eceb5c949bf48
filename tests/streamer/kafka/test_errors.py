"""What an error means, and an answer that is none."""

from __future__ import annotations

import pytest
from confluent_kafka import OFFSET_INVALID, KafkaError, KafkaException

from streamer.kafka.errors import Meaning, meaning, told


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
