# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Find and remove workspace images on a Docker engine."""

from __future__ import annotations

from typing import Any

from ....module_utils._node.errors import FlowError, NotFound, Unhealthy
from .identity import Image

_BUILD_TIMEOUT = 1800


def sdk() -> Any:
    """Return the Docker SDK's client, imported late because that takes 0.4 s (docs/decisions/docker-api-client.md)."""
    try:
        import docker
    except ImportError:
        raise FlowError(
            "Cannot build the workspace image: the Python package docker is missing.",
            "Install it in the environment of ansible-core: pip install docker",
        ) from None
    from docker.errors import DockerException

    try:
        return docker.from_env(timeout=_BUILD_TIMEOUT)
    except DockerException as error:
        raise Unhealthy(
            f"Cannot build the workspace image: the Docker engine does not answer ({error}).",
            "Start it, or set one up: make quickstart",
        ) from None


def present(image: Image) -> bool:
    """Return whether this machine's engine has the image."""
    from ....module_utils._node.docker import http as docker_http
    from ....module_utils._node.docker import images as docker_images

    return docker_images.present(docker_http.connect(), image.tag, image.hash)


def remove(image: Image) -> bool:
    """Remove the tag from the engine. The cache keeps its copy."""
    from ....module_utils._node.docker import http as docker_http

    try:
        docker_http.connect().request_json("DELETE", f"/images/{image.tag}")
    except NotFound:
        return False
    return True
