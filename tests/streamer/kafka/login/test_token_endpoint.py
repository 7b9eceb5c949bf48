"""What is asked of a token endpoint, and what each of its answers means; the issuer is a real one, over TLS."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import trustme

from streamer.kafka.login.token_endpoint import fetch_token, unable
from streamer.kafka.login.tokens import TokenRefusedError, TokenSourceAwayError
from support.token_issuer import TokenIssuer

ENDPOINT = "sasl.oauthbearer.token.endpoint.url"


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenIssuer]:
    with TokenIssuer({"shop": "s:e+c/r%t"}, trustme.CA(), tmp_path_factory.mktemp("issuer")) as issuer:
        yield issuer


def test_token_comes_with_its_subject_its_end_and_the_extensions_of_the_settings(issuer: TokenIssuer) -> None:
    extensions = {"sasl.oauthbearer.extensions": "logicalCluster=lkc-1,identityPoolId=pool-2"}
    token = fetch_token(issuer.client_properties("shop") | extensions)
    assert token.value.count(".") == 2
    assert token.principal == "shop"
    assert token.expires_at == pytest.approx(time.time() + issuer.lifetime, abs=60)
    assert token.extensions == {"logicalCluster": "lkc-1", "identityPoolId": "pool-2"}


def test_names_of_kafkas_own_properties_for_id_and_secret_do_too(issuer: TokenIssuer) -> None:
    properties = issuer.client_properties("shop")
    for name in ("id", "secret"):
        properties[f"sasl.oauthbearer.client.credentials.client.{name}"] = properties.pop(
            f"sasl.oauthbearer.client.{name}"
        )
    assert fetch_token(properties).principal == "shop"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sasl.oauthbearer.client.secret": "wrong"}, "answers 401 Unauthorized .invalid_client Invalid client"),
        ({"sasl.oauthbearer.scope": "another"}, "answers 400 Bad Request .invalid_scope."),
        ({"sasl.oauthbearer.client.secret": ""}, "sasl.oauthbearer.client.secret missing"),
        ({"https.ca.location": ""}, "is not trusted .*set https.ca.location"),
        ({"https.ca.location": "/nowhere.pem"}, "https.ca.location /nowhere.pem cannot be used"),
        ({ENDPOINT: "file:///etc/passwd"}, "'file:///etc/passwd' is no address"),
        ({ENDPOINT: ""}, f"{ENDPOINT} missing"),
    ],
)
def test_what_only_other_settings_mend_is_refused_and_named(
    issuer: TokenIssuer, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(TokenRefusedError, match=message) as refused:
        fetch_token(issuer.client_properties("shop") | changes)
    assert "s:e+c/r%t" not in str(refused.value)


def test_busy_endpoint_is_away_and_so_is_one_that_nobody_listens_on(
    issuer: TokenIssuer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(issuer, "away", True)
    with pytest.raises(TokenSourceAwayError, match=r"answers 503 Service Unavailable \(temporarily_unavailable\)"):
        fetch_token(issuer.client_properties("shop"))
    with pytest.raises(TokenSourceAwayError, match="does not answer"):
        fetch_token(issuer.client_properties("shop") | {ENDPOINT: "http://127.0.0.1:1/token"})


def test_page_that_is_no_token_endpoint_is_refused(issuer: TokenIssuer) -> None:
    with pytest.raises(TokenRefusedError, match="answers 404 Not Found"):
        fetch_token(issuer.client_properties("shop") | {ENDPOINT: issuer.endpoint + "/else"})


def test_redirect_is_not_followed_with_the_secret(issuer: TokenIssuer) -> None:
    before = len(issuer.asked)
    with pytest.raises(TokenRefusedError, match="answers 307"):
        fetch_token(issuer.client_properties("shop") | {ENDPOINT: issuer.redirecting})
    assert len(issuer.asked) == before


def test_ways_of_librdkafka_that_are_not_ours_are_named() -> None:
    assert unable({}) is None
    assert unable({"sasl.oauthbearer.metadata.authentication.type": "azure_imds"}) is None
    jwt = "urn:ietf:params:oauth:grant-type:jwt-bearer"
    assert unable({"sasl.oauthbearer.grant.type": jwt}) == f"sasl.oauthbearer.grant.type {jwt!r}"
    assert "aws_iam" in str(unable({"sasl.oauthbearer.metadata.authentication.type": "aws_iam"}))
    assert "unsecure" in str(unable({"enable.sasl.oauthbearer.unsecure.jwt": "true"}))
