"""Who is let in: keys, rights and rates of a file that is read while the gateway runs, and certificates."""

from __future__ import annotations

import re
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from gateway.clients.keys import new_key_of
from streamer.events.topics import topic_specs
from streamer.kafka.admin import create
from streamer.local.broker import LocalBroker
from streamer.settings import Settings, SettingsError, load_settings
from support.gateway_requests import send
from support.gateways import start
from support.processes import SidstreamProcess, free_port, wait_until


@pytest.fixture(scope="module")
def settings(broker: LocalBroker, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """With topics; nobody but gateways runs."""
    directory = tmp_path_factory.mktemp("clients")
    made = load_settings(
        bundle=directory / "bundle",
        index=directory / "index",
        kafka={"bootstrap_servers": broker.bootstrap_servers},
        topics={"prefix": "gateway-clients-"},
    )
    create(made.kafka, topic_specs(made))
    return made


def with_gateway(settings: Settings, **values: Any) -> Settings:
    return settings.model_copy(update={"gateway": settings.gateway.model_copy(update={"port": free_port(), **values})})


class Keys:
    """A gateway whose clients have keys, and the file that it reads."""

    def __init__(self, port: int, file: Path, process: SidstreamProcess) -> None:
        self.port, self.file, self.process = port, file, process
        self.keys: dict[str, str] = {}
        self.tables: dict[str, str] = {}

    def add(self, name: str, more: str = "") -> None:
        key, table = new_key_of(name)
        self.keys[name], self.tables[name] = key, table + more
        self.file.write_text("".join(self.tables.values()))

    def send(self, name: str, method: str, path: str, body: Any = None) -> Any:
        headers = {"Authorization": f"Bearer {self.keys[name]}"} if name else {}
        return send(self.port, method, path, body, headers={"Prefer": "wait=0.01", **headers})


@pytest.fixture(scope="module")
def keys(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    directory = tmp_path_factory.mktemp("keys")
    own = with_gateway(settings, clients=directory / "clients.toml")
    process = SidstreamProcess(own, "gateway", directory)
    made = Keys(own.gateway.port, directory / "clients.toml", process)
    made.add("shop")
    made.add("slow", "requests_per_second = 0.001\nburst = 2\n")
    made.tables["reader"] = ""
    made.add("reader")
    made.tables["reader"] = made.tables["reader"].replace(', "write"', "")
    made.file.write_text("".join(made.tables.values()))
    with process:
        start(process, own)
        yield made


def test_client_without_its_key_is_not_let_in_and_health_needs_none(keys: Keys) -> None:
    for method, path in (("POST", "/query"), ("PUT", "/items/a"), ("GET", "/metrics"), ("GET", "/figures")):
        reply = keys.send("", method, path, {} if method != "GET" else None)
        assert (reply.status, reply.kind) == (401, "NoKey"), path
        assert reply.headers["www-authenticate"].startswith("Bearer")
    wrong = send(keys.port, "GET", "/figures", headers={"Authorization": "Bearer sid_wrong"})
    assert (wrong.status, wrong.kind) == (401, "UnknownKey")
    assert "sid_wrong" not in wrong.json["detail"]
    assert send(keys.port, "GET", "/healthz").status == 200
    assert keys.send("shop", "GET", "/figures").status == 200


def test_client_may_do_what_its_rights_say(keys: Keys) -> None:
    body = {"embedding": [1.0, 2.0]}
    assert keys.send("shop", "PUT", "/items/a", body).status == 202, "no bundle here: any dimension may be right"
    refused = keys.send("reader", "PUT", "/items/a", body)
    assert (refused.status, refused.kind) == (403, "NotAllowed")
    assert "'write'" in refused.json["detail"]
    late = keys.send("reader", "POST", "/query", {"text": "x"})
    assert (late.status, late.kind, late.headers["retry-after"]) == (504, "NotAnsweredYet", "1")
    query_id = late.json["query_id"]
    assert keys.send("reader", "GET", f"/answers/{query_id}").status == 202
    assert keys.send("shop", "GET", f"/answers/{query_id}").status == 404, "another's answer"


def test_client_beyond_its_rate_is_told_when_to_come_again_and_others_are_not_held_up(keys: Keys) -> None:
    statuses = [keys.send("slow", "GET", "/figures").status for _ in range(3)]
    assert statuses == [200, 200, 429]
    refused = keys.send("slow", "GET", "/figures")
    assert refused.kind == "RateLimited"
    assert int(refused.headers["retry-after"]) > 100
    assert keys.send("shop", "GET", "/figures").status == 200


def test_file_of_clients_counts_as_it_is_now_and_no_key_gets_into_the_log(keys: Keys) -> None:
    old = keys.keys["shop"]
    keys.file.write_text("[broken")
    wait_until(lambda: "clients_not_read" in keys.process.log(), what="the faulty file was told of")
    assert keys.send("shop", "GET", "/figures").status == 200, "the clients of before count"
    keys.add("shop")
    wait_until(lambda: keys.send("shop", "GET", "/figures").status == 200, what="the new key")
    again = send(keys.port, "GET", "/figures", headers={"Authorization": f"Bearer {old}"})
    assert again.status == 401
    assert not any(key in keys.process.log() for key in (old, *keys.keys.values()))


def test_only_who_shows_a_certificate_of_the_ca_is_served_and_is_called_by_its_name(
    settings: Settings, tmp_path: Path
) -> None:
    ours, others = trustme.CA(), trustme.CA()
    server = ours.issue_cert("127.0.0.1")
    server.cert_chain_pems[0].write_to_path(tmp_path / "server.pem")
    server.private_key_pem.write_to_path(tmp_path / "server.key")
    ours.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "clients.toml").write_text('[shop]\nrights = ["ask"]\n')
    own = with_gateway(
        settings,
        tls_certificate=tmp_path / "server.pem",
        tls_key=tmp_path / "server.key",
        tls_client_ca=tmp_path / "ca.pem",
        clients=tmp_path / "clients.toml",
    )

    def showing(ca: trustme.CA | None, name: str = "shop") -> ssl.SSLContext:
        context = ssl.create_default_context()
        ours.configure_trust(context)
        if ca is not None:
            ca.issue_cert(f"{name}.test", common_name=name).configure_cert(context)
        return context

    with SidstreamProcess(own, "gateway", tmp_path) as process:

        def ready() -> bool:
            assert process.running(), process.log()
            try:
                return send(own.gateway.port, "GET", "/healthz", tls=showing(ours)).status == 200
            except OSError:
                return False

        wait_until(ready, what="a gateway that is ready")
        assert send(own.gateway.port, "GET", "/figures", tls=showing(ours)).status == 200
        unknown = send(own.gateway.port, "GET", "/figures", tls=showing(ours, "stranger"))
        assert (unknown.status, unknown.kind) == (403, "UnknownClient")
        write = send(own.gateway.port, "DELETE", "/items/a", tls=showing(ours))
        assert (write.status, write.kind) == (403, "NotAllowed")
        for context in (showing(None), showing(others)):
            with pytest.raises(OSError):
                send(own.gateway.port, "GET", "/figures", tls=context)


def test_gateway_beyond_this_machine_without_keys_is_refused_by_its_settings() -> None:
    with pytest.raises(SettingsError, match=r"0\.0\.0\.0 is heard beyond this machine.*gateway\.open"):
        load_settings(gateway={"host": "0.0.0.0"})
    assert load_settings(gateway={"host": "0.0.0.0", "open": True}).gateway.open
    assert load_settings(gateway={"host": "::1"}).gateway.address == "http://[::1]:8080"
    with pytest.raises(SettingsError, match="tls_certificate"):
        load_settings(gateway={"tls_client_ca": "ca.pem"})


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"clients": Path("missing.toml")}, "missing.toml.*--new-key"),
        ({"tls_certificate": Path("missing.pem")}, "certificates cannot be used.*gateway.tls_certificate"),
    ],
)
def test_gateway_whose_files_cannot_be_used_ends_with_what_to_correct(
    settings: Settings, tmp_path: Path, values: dict[str, Any], says: str
) -> None:
    process = SidstreamProcess(with_gateway(settings, **values), "gateway", tmp_path).start()
    assert process.wait() == 1
    assert re.search(says, " ".join(process.log().split())), process.log()
