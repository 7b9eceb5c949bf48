"""The file of clients: what it may hold, that no key stands in it, and that it is read again."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from gateway.clients.keys import ClientsFile, ClientsFileError, new_key_of, read_clients

HASH = "a" * 64


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_new_key_opens_the_client_of_its_table_and_no_other_and_stands_nowhere(tmp_path: Path) -> None:
    (shop, shops), (search, searches) = new_key_of("shop"), new_key_of("search")
    clients = ClientsFile(written(tmp_path / "clients.toml", shops + searches))
    found = [clients.of_key(key) for key in (shop, search, shop[:-1], "")]
    assert [client and client.name for client in found] == ["shop", "search", None, None]
    assert shop not in shops
    assert tomllib.loads(shops)["shop"]["rights"] == ["ask", "write"]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[shop", "cannot be read"),
        ('["a b"]\n', "'a b' is no name of a client"),
        ('[shop]\nsha256 = "abc"', "'shop'.*sha256 .64 hexadecimal digits"),
        ('[shop]\nrights = ["delete"]', "'shop'.*delete"),
        ('[shop]\nkey = "x"', "'shop'.*key"),
        ("[shop]\nrequests_per_second = -1", "'shop'.*requests_per_second"),
        (f'[shop]\nsha256 = "{HASH}"\n[other]\nsha256 = "{HASH}"', "'shop' and 'other' have the same key"),
        ("shop = 3", "'shop'"),
    ],
)
def test_file_that_cannot_be_used_is_refused_by_the_clients_name(tmp_path: Path, text: str, names: str) -> None:
    with pytest.raises(ClientsFileError, match=names):
        read_clients(written(tmp_path / "clients.toml", text))


def test_changed_file_counts_and_a_faulty_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "clients.toml"
    old, table = new_key_of("shop")
    clients = ClientsFile(written(path, table))
    written(path, "[shop")
    clients.look()
    assert clients.of_key(old) is not None, "the clients of before count"
    new, table = new_key_of("shop")
    written(path, table)
    clients.look()
    assert clients.of_key(old) is None
    assert clients.of_key(new) is not None
    path.unlink()
    clients.look()
    assert clients.of_key(new) is not None
