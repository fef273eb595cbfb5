# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Fixtures for tests on the real engine. Without an engine these tests are skipped with a reason."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node.docker import http as docker_http
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError
from ansible_collections.spt.flow.plugins.plugin_utils._engine.common.progress import Progress
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import build as image_build
from ansible_collections.spt.flow.plugins.plugin_utils._engine.image import identity as image_identity
from ansible_collections.spt.flow.tests.integration.harness import Harness
from ansible_collections.spt.flow.tests.integration.harness import harness as make_harness


@pytest.fixture(scope="session")
def image() -> image_identity.Image:
    """The workspace image, built if the engine does not have it."""
    try:
        docker_http.connect().get_json("/version")
    except FlowError as error:
        pytest.skip(error.message)
    found = image_identity.identity()
    image_build.ensure(found, {"ca_bundle": os.environ.get("SSL_CERT_FILE", "")}, Progress(print))
    return found


@pytest.fixture
def harness(tmp_path: Path, image: image_identity.Image) -> Iterator[Harness]:
    """A harness with a random owner."""
    with make_harness(tmp_path, image) as made:
        yield made


@pytest.fixture(scope="module")
def shared_harness(tmp_path_factory: pytest.TempPathFactory, image: image_identity.Image) -> Iterator[Harness]:
    """A harness shared by the tests of a module, which must leave it unchanged."""
    with make_harness(tmp_path_factory.mktemp("harness"), image) as made:
        yield made
