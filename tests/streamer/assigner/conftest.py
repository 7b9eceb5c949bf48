"""The assigner's transform with the limits of these tests."""

from __future__ import annotations

import pytest

from streamer.assigner.assign_batch import AssignBatch
from support.assigned import LIMITS, SignEncoder


@pytest.fixture
def assign() -> AssignBatch:
    return AssignBatch(SignEncoder(), codes_topic="codes", dead_letter_topic="dlq", limits=LIMITS)
