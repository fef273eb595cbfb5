# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Secrets on disk are reported by kind and place, and never shown. Every secret here is invented."""

from __future__ import annotations

import os

import pytest
from ansible_collections.spt.flow.tests.unit import agent_harness as harness
from ansible_collections.spt.flow.tests.unit import test_agent_verify as verifying
from spt_workspace import leaks

machine = verifying.machine
LETTERS = "Ab1" * 30
KEY = f"-----BEGIN OPENSSH {'PRIVATE'} KEY-----\n{LETTERS}\n"
SECRETS = {
    "a private key": (".ssh/id_ed25519", KEY),
    "a token of GitHub": ("notes.txt", f"export X=gh{'p'}_{LETTERS[:36]}"),
    "a token of GitLab": (".bash_history", f"curl -H 'glp{'at'}-{LETTERS[:20]}'"),
    "a key of AWS": (".aws/credentials", f"aws_access_key_id = AK{'IA'}{'ABCD' * 4}"),
    "a token of npm": (".npmrc", f"//registry.npmjs.org/:_auth{'Token'}={LETTERS[:36]}"),
    "an OAuth token": (".config/gh/hosts.yml", f"    oauth_token: {LETTERS[:40]}"),
    "a password in an address": (".git-credentials", f"https://me:{LETTERS[:12]}@github.com"),
    "a login of .netrc": (".netrc", f"machine h login me password {LETTERS[:12]}"),
    "a login of a registry": (".docker/config.json", f'{{"auths": {{"h": {{"auth": "{LETTERS[:20]}"}}}}}}'),
    "a session of Coder": (".config/coderv2/session", f"{LETTERS[:10]}-{LETTERS[:22]}\n"),
}


def put(root, name: str, text: str):
    place = root / name
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text(text)
    return place


@pytest.mark.parametrize("kind", SECRETS)
def test_secret_is_found(tmp_path, kind):
    place = put(tmp_path, *SECRETS[kind])
    assert leaks.search([str(tmp_path)]).found == [(str(place), kind)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (".gitconfig", '[url "https://github.com/"]\n\tinsteadOf = gh:\n'),
        ("README.md", "see https://user:password@host/, ghp_… and -----BEGIN PRIVATE KEY-----"),
        (
            ".ssh/known_hosts",
            "github.com ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl",
        ),
        (".ssh/id_ed25519.pub", "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOMqqnkVzrm0SdG6UOoqKLsabgH5C9okWi0dh2l9GKJl me"),
        ("node_modules/x/test/key.pem", KEY),
    ],
)
def test_similar_text_is_not_a_secret(tmp_path, name, text):
    put(tmp_path, name, text)
    assert leaks.search([str(tmp_path)]).found == []


def test_links_pipes_and_other_folders_are_skipped(tmp_path):
    put(tmp_path, "out/key", KEY)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/link").symlink_to(tmp_path / "out/key")
    os.mkfifo(tmp_path / "home/pipe")
    put(tmp_path, "home/clone/key", KEY)
    result = leaks.search([str(tmp_path / "home")], [str(tmp_path / "home/clone")])
    assert (result.found, result.files) == ([], 0)


def test_search_that_runs_out_of_time_is_reported(tmp_path):
    put(tmp_path, "a", "b")
    assert not leaks.search([str(tmp_path)], seconds=-1).in_time


def test_verify_names_the_place_and_never_the_secret(machine):
    verifying.holds(machine)
    put(machine.paths.home, *SECRETS["a token of GitHub"])
    status, rows, found = verifying.verify(machine, "secrets")
    assert status == 1
    assert rows["secrets"]["detail"] == f"{machine.paths.home}/notes.txt holds a token of GitHub."
    assert LETTERS[:12] not in str(found)


def test_verify_finds_the_current_password_and_skips_repository_content(machine):
    verifying.holds(machine)
    machine.start()
    machine.wait("ide", "ok")
    put(machine.paths.home, "demo/tests/key.pem", KEY)
    assert verifying.verify(machine, "secrets")[0] == 0
    password = machine.status()["ide"]["password"]
    put(machine.paths.home, ".config/code-server/config.yaml", f"password: {password}\n")
    _status, rows, _found = verifying.verify(machine, "secrets")
    assert "config.yaml holds a secret of this start" in rows["secrets"]["detail"]
    assert password not in rows["secrets"]["detail"]


def test_verify_finds_a_credential_in_the_clone(machine):
    verifying.holds(machine)
    machine.start()
    machine.wait("ide", "ok")
    harness.make_repository(machine.root / "r.git")
    text = f'[remote "origin"]\n\turl = https://me:{LETTERS[:12]}@github.com/o/r\n'
    put(machine.paths.home, "demo/.git/config", text)
    detail = verifying.verify(machine, "secrets")[1]["secrets"]["detail"]
    assert detail.endswith("demo/.git/config holds a password in an address.")
