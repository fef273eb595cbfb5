# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Property tests: any text is either refused with a message or becomes a value that is valid everywhere."""

from __future__ import annotations

import re
import string

from ansible_collections.spt.flow.plugins.module_utils._node import errors
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import address as repository_address
from ansible_collections.spt.flow.plugins.plugin_utils._engine.repository import names as repository_names
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import resolve as settings_resolve
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import values as settings_values
from hypothesis import given, settings
from hypothesis import strategies as st

CODER_NAME = re.compile(r"^[a-zA-Z0-9]+(?:-[a-zA-Z0-9]+)*$")
DOCKER_NAME = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9_.-]+$")
HOST_NAME = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")

quick = settings(max_examples=200, deadline=None, database=None)
part = st.text(string.ascii_letters + string.digits + "._~-", min_size=1, max_size=60)
host = st.from_regex(r"[a-z][a-z0-9-]{0,20}[a-z0-9](\.[a-z]{2,5})?", fullmatch=True)
path = st.lists(part, min_size=1, max_size=4).map("/".join)
address = st.one_of(
    st.builds("https://{}/{}".format, host, path),
    st.builds("ssh://git@{}/{}".format, host, path),
    st.builds("git@{}:{}".format, host, path),
    st.builds("{}/{}".format, part, part),
    st.builds("/{}".format, path),
    st.text(max_size=80),
)


def parsed(text: str) -> repository_address.Repository | None:
    try:
        return repository_address.Repository.parse(text)
    except errors.InvalidInput as error:
        assert error.message.endswith(".") and error.message.isprintable()
        return None


def legal(name: str) -> bool:
    return (
        len(name) <= 32 and all(p.match(name) for p in (CODER_NAME, HOST_NAME)) and bool(DOCKER_NAME.match(f"x-{name}"))
    )


@quick
@given(address)
def test_parsing_is_idempotent(text):
    repository = parsed(text)
    if repository is not None:
        again = repository_address.Repository.parse(repository.url)
        assert again == repository and again.identity == repository.identity


@quick
@given(address)
def test_slug_is_a_valid_name_everywhere(text):
    repository = parsed(text)
    if repository is not None:
        for name in (repository.slug, repository.slug_with_suffix()):
            assert legal(name) and repository_names.validate_name(name) == name
        assert repository_names.slugify(repository.slug) == repository.slug
        assert repository.slug_with_suffix() != repository.slug


@quick
@given(st.text(max_size=100))
def test_any_text_gives_a_valid_slug(text):
    assert legal(repository_names.slugify(text))


@quick
@given(address)
def test_arguments_of_git_are_never_options_or_credentials(text):
    repository = parsed(text)
    if repository is not None:
        assert not repository.url.startswith("-") and "::" not in repository.url.partition("/")[0]
        assert repository.url.isprintable()
        if repository.kind == "https":
            assert "@" not in repository.url.split("/")[2]
        assert "//" not in repository.identity and not repository.identity.endswith(".git")


@quick
@given(host, path)
def test_https_and_ssh_are_one_identity(name, where):
    one, two, three = (
        parsed(f"{form}{name}{between}{where}")
        for form, between in (("https://", "/"), ("ssh://git@", "/"), ("git@", ":"))
    )
    assert (one is None) == (two is None) == (three is None)
    if one and two and three:
        assert one.identity == two.identity == three.identity


@quick
@given(st.text(max_size=60))
def test_ref_is_refused_or_harmless(text):
    try:
        ref = repository_names.validate_ref(text)
    except errors.InvalidInput as error:
        assert error.message.isprintable()
        return
    assert not re.search(r"[\s;$`<>|\"\\*?\[\]~^:]|\.\.|@\{|^-", ref)


@quick
@given(
    st.sampled_from(sorted(settings_options.OPTIONS)),
    st.one_of(st.text(max_size=40), st.integers(), st.floats(), st.booleans()),
)
def test_any_value_of_any_option_is_accepted_or_refused_with_a_message(name, value):
    try:
        values = settings_resolve.resolve([{name: value}])
    except errors.InvalidInput as error:
        assert name in error.message or name in ("git_name", "git_email", "workspace", "ref"), error.message
        return
    assert set(values) == set(settings_options.OPTIONS)


@quick
@given(st.integers(0, 10**9 - 1))
def test_durations_and_sizes_round_trip(number):
    assert settings_values.parse_duration(f"{number}s") == number == settings_values.parse_duration(str(number))
    assert settings_values.parse_size(f"{number}m") == number * 2**20
