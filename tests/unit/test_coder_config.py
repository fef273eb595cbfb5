# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Server, token and headers are found where Coder's own command line finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.errors import AuthError, InvalidInput, NotFound
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import config

TOKEN = "abcdefghij-0123456789abcdefghijkl"


def stored(folder: Path, url: str = "https://coder.example.com") -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "url").write_text(url + "\n")
    (folder / "session").write_text(TOKEN + "\n")
    return {"CODER_CONFIG_DIR": str(folder)}


def test_environment_has_priority(tmp_path: Path):
    found = config.load({"CODER_URL": "https://a.example", "CODER_SESSION_TOKEN": "x-y", **stored(tmp_path)})
    assert (found.url, found.token, found.source) == ("https://a.example", "x-y", "CODER_SESSION_TOKEN")


def test_session_of_the_command_line_is_used(tmp_path: Path):
    found = config.load(stored(tmp_path))
    assert (found.url, found.token) == ("https://coder.example.com", TOKEN)
    assert str(tmp_path) in found.source


def test_empty_variable_counts_as_unset(tmp_path: Path):
    assert config.load({"CODER_URL": "", "CODER_SESSION_TOKEN": "", **stored(tmp_path)}).token == TOKEN


def test_stored_token_is_never_sent_to_another_server(tmp_path: Path):
    found = config.load({"CODER_URL": "https://evil.example", **stored(tmp_path)})
    assert found.token == ""
    with pytest.raises(AuthError, match="session token for the Coder server https://evil.example is missing") as caught:
        config.require_token(found)
    assert "coder login https://evil.example" in caught.value.hint


def test_equivalent_addresses_are_one_server(tmp_path: Path):
    assert config.load({"CODER_URL": "https://CODER.example.com/", **stored(tmp_path)}).token == TOKEN


@pytest.mark.parametrize(
    ("platform", "environ", "folder"),
    [
        ("linux", {"HOME": "/home/x"}, "/home/x/.config/coderv2"),
        ("linux", {"HOME": "/home/x", "XDG_CONFIG_HOME": "/c"}, "/c/coderv2"),
        ("darwin", {"HOME": "/Users/x"}, "/Users/x/Library/Application Support/coderv2"),
        ("win32", {"APPDATA": r"C:\Users\x\AppData\Roaming"}, r"C:\Users\x\AppData\Roaming\coderv2"),
        ("win32", {}, ""),
        ("linux", {"HOME": "/home/x", "CODER_CONFIG_DIR": "/there"}, "/there"),
    ],
)
def test_configuration_directory_is_found(platform: str, environ: dict[str, str], folder: str):
    assert config.config_dir(environ, platform) == folder


def test_missing_server_explains_how_to_name_one():
    with pytest.raises(NotFound, match="The address of the Coder server is missing") as caught:
        config.load({})
    assert "CODER_URL" in caught.value.hint
    assert not config.configured({})
    assert not config.configured({"CODER_URL": "https://a.example"})
    assert config.configured({"CODER_URL": "https://a.example", "CODER_SESSION_TOKEN": TOKEN})


def test_repr_contains_no_secret():
    found = config.load(
        {
            "CODER_URL": "https://a.example",
            "CODER_SESSION_TOKEN": TOKEN,
            "CODER_HEADER": "X-Key=hush-hush",
            "HTTPS_PROXY": "http://me:pass-word@proxy:3128",
        }
    )
    assert not any(secret in repr(found) for secret in (TOKEN, "hush-hush", "pass-word"))


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("coder.example.com", "https://coder.example.com"),
        ("http://127.0.0.1:3000/", "http://127.0.0.1:3000"),
        ("https://x.example/api/v2", "https://x.example"),
        ("https://x.example/coder/", "https://x.example/coder"),
        ("https://[::1]:7080", "https://[::1]:7080"),
    ],
)
def test_valid_urls_are_accepted(text: str, url: str):
    assert config.parse_url(text) == url


@pytest.mark.parametrize(
    "text", ["ftp://x", "https://", "https://x:y", "https://x:99999", "https://x/?token=1", "http://a b", "https://x\n"]
)
def test_invalid_urls_are_refused(text: str):
    if text.endswith("\n"):
        assert config.parse_url(text) == "https://x"
        return
    with pytest.raises(InvalidInput):
        config.parse_url(text)


def test_password_in_the_url_is_refused_and_not_shown():
    with pytest.raises(InvalidInput) as caught:
        config.parse_url("https://me:hush@x.example")
    assert "hush" not in str(caught.value)


def test_headers_are_read_as_the_command_line_reads_them():
    assert config.parse_headers('a=1,"b=2,3",c=x=y') == (("a", "1"), ("b", "2,3"), ("c", "x=y"))
    with pytest.raises(InvalidInput) as caught:
        config.parse_headers("good=1,b ad=hush")
    assert "hush" not in str(caught.value)


def test_token_with_a_line_break_is_refused_and_not_shown():
    with pytest.raises(InvalidInput) as caught:
        config.load({"CODER_URL": "https://x", "CODER_SESSION_TOKEN": "hush\nEvil: 1"})
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(
    ("environ", "proxy"),
    [
        ({}, ""),
        ({"https_proxy": "p:3128"}, "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "example.com"}, ""),
        ({"HTTPS_PROXY": "http://p:3128", "no_proxy": ".example.com:443"}, ""),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "ample.com"}, "http://p:3128"),
        ({"HTTPS_PROXY": "http://p:3128", "NO_PROXY": "*"}, ""),
        ({"ALL_PROXY": "http://p:1"}, "http://p:1"),
        ({"HTTP_PROXY": "http://p:1"}, ""),
    ],
)
def test_proxies_are_used(environ: dict[str, str], proxy: str):
    assert config.proxy_for("https://coder.example.com", environ) == proxy
