"""Settings: where they come from, what is refused, and that secrets stay secret."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from streamer.settings import SettingsError, load_settings
from streamer.settings.pipeline import AssignerSettings, IndexerSettings
from streamer.settings.records import AttributeSettings
from streamer.settings.retriever import RetrieverSettings
from support.paths import ROOT


def test_environment_wins_over_the_file_and_the_file_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sidstream.toml").write_text(
        'index = "from-file"\n[kafka]\nbootstrap_servers = "file:1"\n[topics]\nprefix = "file-"\n'
    )
    monkeypatch.setenv("SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS", "environment:1")
    settings = load_settings()
    assert settings.kafka.bootstrap_servers == "environment:1"
    assert settings.index == Path("from-file")
    assert settings.topics.item_updates == "file-item-updates"
    assert settings.topics.partitions == 4


def test_topic_name_that_is_given_stays_as_it_is_beside_a_prefix() -> None:
    settings = load_settings(topics={"prefix": "shop-", "item_updates": "catalogue.updates"})
    assert settings.topics.item_updates == "catalogue.updates"
    assert settings.topics.results == "shop-results"


def test_secrets_are_masked_in_every_printed_form_but_reach_the_client() -> None:
    settings = load_settings(kafka={"security": {"sasl.password": "hunter2", "security.protocol": "SASL_SSL"}})
    assert "hunter2" not in repr(settings)
    assert "hunter2" not in str(settings.model_dump())
    assert "hunter2" not in settings.model_dump_json()
    assert settings.kafka.security_properties()["sasl.password"] == "hunter2"


def test_wrong_setting_is_named_and_a_secret_value_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDSTREAM_TOPICS__PARTITIONS", "none-of-your-business")
    monkeypatch.setenv("SIDSTREAM_KAFKA__BOOSTRAP", "typing mistake")
    with pytest.raises(SettingsError) as caught:
        load_settings()
    assert "topics.partitions" in str(caught.value)
    assert "kafka.boostrap" in str(caught.value)
    assert "none-of-your-business" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("SIDSTREAM_TOPICS_PREFIX", "SIDSTREAM_TOPICS__PREFIX"),
        ("SIDSTREAM_RETREIVER__BEAMS", "SIDSTREAM_RETRIEVER__BEAMS"),
        ("SIDSTREAM_BUNDEL", "SIDSTREAM_BUNDLE"),
        ("sidstream_kafka_bootstrap_servers", "SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS"),
        ("SIDSTREAM_GATEWAY_PORT", "SIDSTREAM_GATEWAY__PORT"),
    ],
)
def test_variable_that_is_no_setting_is_refused_with_the_one_that_is_meant_and_without_its_value(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "hunter2")
    with pytest.raises(SettingsError, match=f"{name}: there is no such setting; is {meant} meant") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_variables_of_tools_of_tests_and_of_kubernetes_services_are_no_settings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {
        "SIDSTREAM_CACHE": "/tmp/cache",
        "SIDSTREAM_CHAOS_SEEDS": "1",
        "SIDSTREAM_VERSION": "1.2",
        "SIDSTREAM_GATEWAY_PORT": "tcp://10.0.0.7:8080",
        "SIDSTREAM_GATEWAY_PORT_8080_TCP": "tcp://10.0.0.7:8080",
        "SIDSTREAM_GATEWAY_PORT_8080_TCP_ADDR": "10.0.0.7",
        "SIDSTREAM_GATEWAY_SERVICE_HOST": "10.0.0.7",
        "SIDSTREAM_GATEWAY_SERVICE_PORT_HTTP": "8080",
    }.items():
        monkeypatch.setenv(name, value)
    assert load_settings() == load_settings()


def test_variable_with_broken_json_is_named_without_its_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDSTREAM_KAFKA__SECURITY", '{"sasl.password": "hunter2"')
    with pytest.raises(
        SettingsError, match="environment:\n  SIDSTREAM_KAFKA__SECURITY: its value is no JSON"
    ) as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


def test_everything_looks_for_the_cluster_where_a_broker_with_a_port_of_its_own_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "sidstream.toml"
    assert load_settings().brings_broker
    file.write_text("[broker]\nport = 19292\n")
    assert load_settings().kafka.bootstrap_servers == "127.0.0.1:19292"
    assert load_settings().brings_broker
    file.write_text('[broker]\nport = 19292\n[kafka]\nbootstrap_servers = "localhost:19292"\n')
    assert load_settings().brings_broker
    monkeypatch.setenv("SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS", "kafka-1:9092")
    assert load_settings().kafka.bootstrap_servers == "kafka-1:9092"
    assert not load_settings().brings_broker
    file.write_text("[broker]\nport = 0\n")
    monkeypatch.delenv("SIDSTREAM_KAFKA__BOOTSTRAP_SERVERS")
    assert load_settings().kafka.bootstrap_servers == "127.0.0.1:9092"
    assert load_settings().brings_broker


@pytest.mark.parametrize("kafka", [{"group_protocol": "consumer"}, {"security": {"client.id": "shop"}}])
def test_cluster_is_named_by_its_address_alone(kafka: dict[str, object]) -> None:
    assert load_settings(kafka=kafka).brings_broker


@pytest.mark.parametrize(
    ("topics", "fault"),
    [
        ({"prefix": "e-", "item_codes": "e-item-updates"}, "item_updates and item_codes are both 'e-item-updates'"),
        ({"results": "queries"}, "queries and results are both 'queries'"),
        ({"prefix": "shop/"}, "item_updates is 'shop/item-updates': a topic's name has"),
        ({"alerts": ""}, "alerts is '': a topic's name"),
        ({"alerts": "a" * 250}, "a topic's name has 1 to 249"),
        ({"prefix": 5}, "topics.prefix: Input should be a valid string"),
    ],
)
def test_topics_that_kafka_would_not_take_are_refused_before_anyone_asks_it(
    topics: dict[str, object], fault: str
) -> None:
    with pytest.raises(SettingsError, match=re.escape(fault)):
        load_settings(topics=topics)


def test_path_that_is_empty_is_refused_instead_of_being_the_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIDSTREAM_INDEX", "")
    with pytest.raises(SettingsError, match="index: Value error, is empty: name a directory"):
        load_settings()


def test_cluster_at_the_usual_port_that_is_named_is_nobody_elses() -> None:
    assert not load_settings(kafka={"bootstrap_servers": "127.0.0.1:9092"}).brings_broker


def test_settings_file_that_does_not_exist_is_an_error_not_a_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIDSTREAM_CONFIG", str(tmp_path / "missing.toml"))
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings()


def test_settings_file_that_is_no_toml_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("kafka = [")
    monkeypatch.setenv("SIDSTREAM_CONFIG", str(broken))
    with pytest.raises(SettingsError, match=r"broken\.toml"):
        load_settings()


def test_misspelt_setting_is_named_with_the_one_that_is_meant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[monitor]\nweb_prt = 1\nzzz = 2\n[retreiver]\nlayout = 'live'\n")
    monkeypatch.setenv("SIDSTREAM_CONFIG", str(file))
    with pytest.raises(SettingsError) as caught:
        load_settings()
    message = str(caught.value)
    assert "mine.toml" in message
    assert "monitor.web_prt: there is no such setting; is web_port meant?" in message
    assert "monitor.zzz: there is no such setting\n" in message
    assert "retreiver: there is no such setting; is retriever meant?" in message


@pytest.mark.parametrize("section", [AssignerSettings, AttributeSettings, IndexerSettings, RetrieverSettings])
def test_every_limit_is_in_the_security_page_with_its_default(
    section: type[AssignerSettings | AttributeSettings | IndexerSettings | RetrieverSettings],
) -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    limits = {name: field.default for name, field in section.model_fields.items() if name.startswith("maximum_")}
    assert limits
    for name, default in limits.items():
        [row] = [line for line in page.splitlines() if line.startswith("|") and f"{name}`" in line]
        assert ("10¹²" if default == 1e12 else f"{default:,g}" if default < 1e5 else f"{default:,}") in row, name


def test_filterable_attributes_come_from_the_file_or_as_json_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text('[attributes.filterable]\nprice = "number"\n"größe" = "string"\ntags = "strings"\n')
    monkeypatch.setenv("SIDSTREAM_CONFIG", str(file))
    assert load_settings().attributes.filterable == {"price": "number", "größe": "string", "tags": "strings"}
    monkeypatch.delenv("SIDSTREAM_CONFIG")
    monkeypatch.setenv("SIDSTREAM_ATTRIBUTES__FILTERABLE", '{"in_stock": "boolean"}')
    assert load_settings().attributes.rules().types == {"in_stock": "boolean"}


@pytest.mark.parametrize(
    ("declaration", "said"),
    [
        (
            {"price": "decimal"},
            "attributes.filterable.price: Input should be 'string', 'number', 'boolean' or 'strings'",
        ),
        ({"a b": "number"}, "attributes.filterable: Value error, 'a b' is no name of an attribute: a name has 1 to 64"),
    ],
)
def test_wrong_declaration_of_an_attribute_is_named(declaration: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings(attributes={"filterable": declaration})
    assert said in str(caught.value)


TOKENS = {"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER"}


@pytest.mark.parametrize(
    ("kafka", "message"),
    [
        ({"security": TOKENS}, "OAUTHBEARER needs a source of tokens"),
        ({"security": TOKENS | {"sasl.oauthbearer.method": "oidc"}, "oauth_token_provider": "a:b"}, "one of the two"),
        ({"oauth_token_provider": "a:b"}, "set security.protocol SASL_SSL and sasl.mechanism OAUTHBEARER"),
        ({"security": TOKENS, "oauth_token_provider": "no function"}, "kafka.oauth_token_provider"),
    ],
)
def test_tokens_come_from_one_source(kafka: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        load_settings(kafka=kafka)


def test_secret_comes_from_the_environment_and_the_rest_of_the_login_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sidstream.toml").write_text(
        '[kafka.security]\n"security.protocol" = "SASL_SSL"\n"sasl.mechanism" = "OAUTHBEARER"\n'
        '"sasl.oauthbearer.method" = "oidc"\n"sasl.oauthbearer.client.secret" = "of the file"\n'
    )
    monkeypatch.setenv("SIDSTREAM_KAFKA__SECURITY", '{"sasl.oauthbearer.client.secret": "hunter2"}')
    kafka = load_settings().kafka
    assert kafka.uses_tokens
    assert kafka.security_properties()["sasl.oauthbearer.client.secret"] == "hunter2"
    assert "hunter2" not in repr(kafka)
