# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import os
import re

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import errors
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import options as settings_options
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import resolve as settings_resolve
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import values as settings_values
from ansible_collections.spt.flow.plugins.plugin_utils._engine.settings import workspace as settings_workspace

Settings = settings_workspace.Settings
GIB = settings_options.GIBIBYTE


def refused(layers) -> errors.InvalidInput:
    with pytest.raises(errors.InvalidInput) as caught:
        settings_resolve.resolve(layers)
    return caught.value


def test_defaults_of_table_and_dataclass_agree():
    assert Settings.of(settings_resolve.resolve([])) == Settings()


def test_every_option_is_complete():
    for option in settings_options.OPTIONS.values():
        assert re.fullmatch(r"[a-z][a-z0-9_]*", option.name)
        assert option.description.endswith(".")
        assert option.type in ("str", "bool", "int", "float", "duration", "size")
        assert option.scope in ("verb", "workspace", "client", "image")
        assert not option.choices or option.default in option.choices
        assert (option.low is None) == (option.high is None)
        settings_values.convert(option, option.default)
    reserved = {"name", "port", "tags", "timeout", "action", "environment"}
    assert not reserved & set(settings_options.OPTIONS)


def test_first_layer_wins():
    layers = {
        "the task": {"cpus": None},
        "extra variables": {"cpus": "3"},
        "the environment": settings_resolve.from_environment({"SPT_FLOW_CPUS": "2", "SPT_FLOW_MEMORY": "4g"}),
        "the settings file": {"memory": "2g", "pids": 512},
        "the inventory": {"pids": 1024, "kvm": "disabled"},
    }
    values = settings_resolve.resolve(layers)
    assert (values["cpus"], values["memory"], values["pids"], values["kvm"]) == (3.0, 4 * GIB, 512, "disabled")
    assert values["docker"] == "auto"


def test_empty_environment_variable_is_unset():
    assert settings_resolve.from_environment({"SPT_FLOW_REF": "", "SPT_FLOW_REPO": "o/r", "OTHER": "x"}) == {
        "repo": "o/r"
    }


def test_empty_extra_variable_removes_a_lower_value():
    assert settings_resolve.resolve([{"dotfiles": ""}, {"dotfiles": "o/dotfiles"}])["dotfiles"] == ""


def test_mistake_hidden_by_a_higher_layer_is_still_reported():
    assert "memory" in refused([{"memory": "4g"}, {"memory": "lots"}]).message


def test_unknown_key_suggests_the_nearest():
    error = refused({"the settings file": {"memroy": "4g"}})
    assert "memroy" in error.message and "the settings file" in error.message
    assert error.hint == "Did you mean memory?"


def test_unknown_choice_suggests_the_nearest():
    error = refused([{"kvm": "requird"}])
    assert "did you mean required?" in error.hint and "auto, required, disabled" in error.hint


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("45s", 45), ("10m", 600), ("2h", 7200), ("1h30m", 5400), ("1d", 86400), ("1d2h3m4s", 93784)]
    + [(60, 60)],
)
def test_durations_are_parsed(text, seconds):
    assert settings_values.parse_duration(text) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [("512m", 512 * 2**20), ("8g", 8 * GIB), ("8G", 8 * GIB), ("8GiB", 8 * GIB), ("8gb", 8 * GIB), ("1.5g", 1610612736)]
    + [("1t", 2**40), ("4096k", 2**22), ("1024", 1024), (1024, 1024)],
)
def test_sizes_are_parsed(text, size):
    assert settings_values.parse_size(text) == size


@pytest.mark.parametrize("word", ["true", "True", "yes", "on", "1", 1, True, " y "])
def test_true_words_are_true(word):
    assert settings_values.as_bool(word) is True


@pytest.mark.parametrize("word", ["false", "FALSE", "no", "off", "0", 0, False, "n"])
def test_false_words_are_false(word):
    assert settings_values.as_bool(word) is False


def test_never_and_any_are_zero():
    values = settings_resolve.resolve([{"idle_stop": "0", "ide_port": "0", "depth": 0}])
    assert (values["idle_stop"], values["ide_port"], values["depth"]) == (0, 0, 0)


def test_range_is_in_the_hint():
    assert refused([{"memory": "8"}]).hint == "Use memory from 256m to 1048576g."
    assert refused([{"idle_stop": "5"}]).hint == "Use idle_stop from 60s to 720h, or 0 for never."
    assert refused([{"ide_port": "80"}]).hint == "Use ide_port from 1024 to 65535, or 0 for any free one."


# The user's settings file


@pytest.fixture
def settings_file(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    file = tmp_path / "spt-flow" / "config.yml"
    file.parent.mkdir()

    def write(content: str | bytes, mode: int = 0o600) -> str:
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
        return str(file)

    return write


def test_settings_file_is_optional(settings_file):
    assert settings_resolve.load_user_settings() == {}


def test_settings_file_is_read(settings_file):
    path = settings_file("memory: 4g\ncpus: 2\nconnect: no\n")
    assert settings_resolve.user_settings_file() == path
    assert settings_resolve.load_user_settings() == {"memory": "4g", "cpus": 2, "connect": False}


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_settings_file_writable_by_others_is_refused(settings_file, mode):
    path = settings_file("cpus: 2\n", mode)
    with pytest.raises(errors.InvalidInput, match="writable by other users") as caught:
        settings_resolve.load_user_settings()
    assert caught.value.hint == f"Run chmod go-w {path}"


def test_settings_file_of_another_user_is_refused(settings_file, monkeypatch):
    path = settings_file("cpus: 2\n")
    os.chown(path, 12345, -1) if os.geteuid() == 0 else monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(errors.InvalidInput, match="belongs to another user"):
        settings_resolve.load_user_settings()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: [\n", "not valid YAML in line"),
        ("- cpus\n", "does not contain options"),
        ("just words\n", "does not contain options"),
        ("memroy: 4g\n", "Unknown option 'memroy'"),
        ("1: 2\n", "Unknown option '1'"),
        (b"cpus: \xff\xfe\n", "not valid UTF-8"),
        ("cpus: !!python/object/apply:os.system [id]\n", "not valid YAML"),
        ("x" * (2**20 + 1), "larger than 1 MiB"),
        ("[" * 3000, "not valid YAML"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_invalid_settings_file_is_refused(settings_file, content, words):
    settings_file(content)
    with pytest.raises(errors.InvalidInput, match=re.escape(words)):
        settings_resolve.load_user_settings()


def test_unreadable_settings_file_is_refused(settings_file, tmp_path):
    (tmp_path / "spt-flow" / "config.yml").mkdir()
    with pytest.raises(errors.InvalidInput, match="Cannot read the settings file"):
        settings_resolve.load_user_settings()


def test_accidental_yaml_booleans_are_explained():
    error = refused([{"kvm": False}])
    assert "Quote it" in error.hint


# Values that create a workspace


def test_hash_covers_what_is_fixed_at_creation():
    base = Settings()
    digest = base.hash()
    assert re.fullmatch(r"[0-9a-f]{64}", digest)
    assert Settings(memory=4 * GIB).hash() != digest
    assert Settings(kvm="disabled").hash() != digest
    assert Settings(wait_timeout=5).hash() == digest
    assert Settings.of(settings_resolve.resolve([{"cpus": 4}])).hash() == digest
    assert Settings.of(settings_resolve.resolve([{"cpus": "4.0", "memory": "8192m"}])).hash() == digest


def test_sufficient_machine_changes_nothing():
    assert Settings().cap(8, 32 * GIB) == (Settings(), [])


def test_limits_are_capped_with_one_line():
    fitted, notes = Settings().cap(2, 6 * GIB)
    assert (fitted.cpus, fitted.memory) == (2, 5 * GIB)
    assert notes == [
        "The workspace gets 2 instead of 4 CPUs and 5.0 instead of 8.0 GiB of memory, because the machine has 2 CPUs "
        "and 6.0 GiB of memory, of which 1.0 GiB are reserved."
    ]


def test_reserve_is_configurable_and_leaves_resources():
    assert Settings().cap(8, 6 * GIB, reserve=2 * GIB)[0].memory == 4 * GIB
    assert Settings().cap(8, GIB, reserve=2 * GIB)[0].memory == 256 * 2**20


def test_docker_arguments_are_rendered():
    arguments = Settings(cpus=1.5, memory=4 * GIB, pids=512, ide_port=8443).docker_arguments()
    assert arguments["NanoCpus"] == 1_500_000_000
    assert arguments["Memory"] == arguments["MemorySwap"] == 4 * GIB
    assert arguments["PidsLimit"] == 512
    assert arguments["PortBindings"] == {"8080/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8443"}]}
    assert arguments["Tmpfs"] == {
        "/tmp": f"exec,nosuid,nodev,mode=1777,size={GIB}",
        "/run": "nosuid,nodev,noexec,mode=0755,size=64m",
        "/run/spt-flow": "nosuid,nodev,mode=0700,uid=1000,gid=1000,size=64m",
        "/run/user/1000": "nosuid,nodev,mode=0700,uid=1000,gid=1000,size=64m",
    }


def test_default_owner_is_the_login_name(monkeypatch):
    monkeypatch.setenv("LOGNAME", "Ada.Lovelace@corp")
    assert settings_resolve.default_owner() == "ada-lovelace-corp"
