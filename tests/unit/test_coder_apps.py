# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The IDE's address on a Coder server: its own with a wildcard, otherwise a path of the dashboard's address."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import jinja2
import pytest
import yaml
from ansible_collections.spt.flow.plugins.plugin_utils._engine.coder import client, template
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings.workspace import Settings

CHECKOUT = Path(__file__).resolve().parents[2]
ROLE = CHECKOUT / "roles/coder_server"
WORKSPACE = {"owner_name": "ada", "name": "demo"}
APP = {"slug": "ide", "subdomain": True, "subdomain_name": "ide--main--demo--ada"}


def never() -> str:
    raise AssertionError("the server is asked for nothing")


def address(url: str, host: str, **app: Any) -> str:
    agent = {"name": "main", "apps": [{**APP, **app}]}
    return client.app_url(url, lambda: host, WORKSPACE, agent, "ide")


def test_ide_has_an_address_of_its_own() -> None:
    found = address("https://coder.example.com", "*.apps.example.com")
    assert found == "https://ide--main--demo--ada.apps.example.com/"


def test_address_keeps_scheme_port_and_suffix() -> None:
    found = address("http://10.0.0.1:3000", "*-apps.example.com:3000")
    assert found == "http://ide--main--demo--ada-apps.example.com:3000/"


@pytest.mark.parametrize(("host", "app"), [("", {}), ("*.apps.example.com", {"subdomain": False})])
def test_path_app_is_below_the_servers_address(host: str, app: dict[str, Any]) -> None:
    found = address("https://coder.example.com", host, **app)
    assert found == "https://coder.example.com/@ada/demo.main/apps/ide/"


def test_server_is_not_asked_for_a_path_app() -> None:
    agent = {"name": "main", "apps": [{**APP, "subdomain": False}]}
    assert client.app_url("https://c", never, WORKSPACE, agent, "ide") == "https://c/@ada/demo.main/apps/ide/"


def test_template_uses_the_subdomain_mode_of_the_server() -> None:
    wanted = template.ours(Settings.of({}), "dev", "spt-flow", {}, subdomain="true")
    assert wanted.variables["subdomain"] == "true"
    assert template.ours(Settings.of({}), "dev", "spt-flow", {}).variables["subdomain"] == "false"
    assert re.search(r"subdomain\s+= var\.subdomain", (CHECKOUT / "templates/coder/spt-flow/main.tf").read_text())


def caddyfile(**values: str) -> str:
    environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)
    environment.filters["regex_replace"] = lambda text, old, new: re.sub(old, new, text)
    environment.filters["regex_search"] = lambda text, old: (re.search(old, text) or [""])[0]
    environment.filters["comment"] = str
    defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
    given = {**defaults, "ansible_managed": "", "__coder_server_upstream": "127.0.0.1:3000", **values}
    return environment.from_string((ROLE / "templates/caddyfile.j2").read_text()).render(given)


def test_caddy_serves_the_wildcard_with_its_certificate() -> None:
    text = caddyfile(
        coder_server_access_url="https://coder.example.com:8443/",
        coder_server_caddy="acme",
        coder_server_wildcard="*.apps.example.com",
        coder_server_wildcard_cert="/etc/ssl/apps.pem",
        coder_server_wildcard_key="/etc/ssl/apps.key",
    )
    assert "\nhttps://*.apps.example.com:8443 {\n\ttls /etc/ssl/apps.pem /etc/ssl/apps.key\n" in text
    assert text.count("reverse_proxy 127.0.0.1:3000") == 2


def test_caddy_serves_no_wildcard_unless_configured() -> None:
    text = caddyfile(coder_server_access_url="https://coder.example.com", coder_server_caddy="internal")
    assert text.count("reverse_proxy") == 1 and "*" not in text.replace("**", "")


def test_path_apps_are_disabled_exactly_with_a_wildcard() -> None:
    variables = yaml.safe_load((ROLE / "vars/main/environment.yml").read_text())
    wildcard = {"CODER_WILDCARD_ACCESS_URL": "{{ coder_server_wildcard }}", "CODER_DISABLE_PATH_APPS": "true"}
    assert variables["__coder_server_env_wildcard"] == wildcard
    assert "__coder_server_env_wildcard if coder_server_wildcard else {}" in variables["__coder_server_env"]
