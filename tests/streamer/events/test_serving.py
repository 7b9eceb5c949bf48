"""Who is answered by which bundle: a share of the users, the same ones as it grows."""

from __future__ import annotations

import msgspec
import pytest

from streamer.events.serving import Deployed, Pipeline, Serving

SERVING = Serving(
    bundle="a",
    canary="b",
    share=0.1,
    deployed=(Deployed(bundle="a", codebook="x", since=0), Deployed(bundle="b", codebook="y", since=0)),
    pipelines=(Pipeline(codebook="x", bundle="a", since=0), Pipeline(codebook="y", bundle="b", suffix="-y", since=0)),
)
USERS = [f"user-{number}" for number in range(20_000)]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_canary_answers_its_share_of_the_users(share: float) -> None:
    serving = msgspec.structs.replace(SERVING, share=share)
    found = sum(serving.answers(user) == "b" for user in USERS) / len(USERS)
    assert abs(found - share) < 0.015
    assert share not in (0.0, 1.0) or found == share


def test_user_stays_with_the_canary_when_its_share_grows() -> None:
    greater = msgspec.structs.replace(SERVING, share=0.3)
    of_small = {user for user in USERS if SERVING.answers(user) == "b"}
    assert of_small
    assert all(greater.answers(user) == "b" for user in of_small)


def test_next_canary_has_other_users() -> None:
    other = msgspec.structs.replace(SERVING, canary="c")
    both = sum(SERVING.answers(user) == "b" and other.answers(user) == "c" for user in USERS) / len(USERS)
    assert both < 0.02  # 0.01 by chance, 0.1 if they were the same ones


def test_pipeline_of_a_bundle_is_that_of_its_codebook() -> None:
    pipeline = SERVING.pipeline_of("b")
    assert pipeline is not None
    assert pipeline.suffix == "-y"
    assert SERVING.pipeline_of("c") is None
