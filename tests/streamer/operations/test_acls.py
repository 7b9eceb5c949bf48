"""The lines of ``sidstream acls``; that they are enough, and no more, the secure pipeline's test shows on a broker."""

from __future__ import annotations

import shlex

from typer.testing import CliRunner

from sidstream import app
from streamer.operations.acls import acl_lines
from streamer.settings import load_settings

KINDS = {"--topic", "--group", "--transactional-id"}


def test_each_line_is_of_one_user_and_one_resource_of_the_settings() -> None:
    settings = load_settings(topics={"prefix": "shop-"}, kafka={"bootstrap_servers": "kafka-1:9092"})
    lines = list(acl_lines(settings, {"assigner": "User:CN=idx, O=Shop"}))
    commands = [shlex.split(line) for line in lines if not line.startswith("#")]
    for words in commands:
        assert words[:3] == ["kafka-acls", "--bootstrap-server", "kafka-1:9092"]
        [resource] = KINDS & set(words)
        assert words[words.index(resource) + 1].startswith("shop-"), "what is of another prefix is none of ours"
    users = {words[words.index("--allow-principal") + 1] for words in commands}
    assert users == {
        f"User:sidstream-{name}"
        for name in ("producer", "follower", "indexer", "monitor", "retriever", "gateway", "client", "operator")
    } | {"User:CN=idx, O=Shop"}
    written = [words for words in commands if "Write" in words and "shop-results" in words]
    assert [words[words.index("--allow-principal") + 1] for words in written] == ["User:sidstream-retriever"]


def test_whoever_follows_a_table_may_count_its_batches_and_an_ordinary_producer_reads_nothing() -> None:
    commands = [shlex.split(line) for line in acl_lines(load_settings(topics={"prefix": "shop-"}), {})]
    of_follower = [words for words in commands if "User:sidstream-follower" in words]
    counting = {words[words.index(kind) + 1 :][0]: words for words in of_follower for kind in KINDS & set(words)}
    assert {"shop-item-updates", "shop-item-attributes", "shop-sidstream-publish-"} == set(counting)
    kinds = [KINDS & set(words) for words in of_follower if "prefixed" in words]
    assert kinds == [{"--group"}, {"--transactional-id"}]
    assert "Read" in counting["shop-item-updates"], "an offset may be kept of a topic that may be read"
    assert "Read" not in counting["shop-item-attributes"]
    assert not [words for words in commands if "User:sidstream-producer" in words and "Read" in words]


def test_command_prints_them_and_refuses_a_user_that_there_is_not() -> None:
    found = CliRunner().invoke(app, ["acls", "--user", "indexer=User:shop"])
    assert found.exit_code == 0
    assert "--allow-principal User:shop" in found.stdout
    for wrong in ("indexr=User:shop", "indexer=shop", "indexer"):
        assert CliRunner().invoke(app, ["acls", "--user", wrong]).exit_code == 2
