# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The image on a host with a real engine: pulled by digest, loaded from an archive, old ones removed.

The images are empty and belong to a repository of the test, so that no others are affected.
"""

from __future__ import annotations

import hashlib
import io
import json
import secrets
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ansible_collections.spt.flow.plugins.module_utils._node import labels as node_labels
from ansible_collections.spt.flow.plugins.module_utils._node.docker import images as cache
from ansible_collections.spt.flow.plugins.module_utils._node.docker.http import connect
from ansible_collections.spt.flow.plugins.module_utils._node.errors import FlowError

KIND = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar"


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass
class Registry:
    """Serves ``blobs`` by digest, like Docker's Registry API version 2, on loopback without TLS."""

    address: str
    blobs: dict[str, tuple[str, bytes]]

    def offer(self, label: str) -> str:
        """Return the reference of an empty image with this label."""
        layer, config = parts(label)
        about = {
            "schemaVersion": 2,
            "mediaType": KIND,
            "config": {"mediaType": CONFIG, "size": len(config), "digest": digest_of(config)},
            "layers": [{"mediaType": LAYER, "size": len(layer), "digest": digest_of(layer)}],
        }
        manifest = json.dumps(about).encode()
        for kind, content in ((CONFIG, config), (LAYER, layer), (KIND, manifest)):
            self.blobs[digest_of(content)] = (kind, content)
        return f"{self.address}/team/workspace@{digest_of(manifest)}"


def parts(label: str) -> tuple[bytes, bytes]:
    """Return layer and configuration of an image with one file."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.addfile(tarfile.TarInfo(f"of-{label}"))
    about = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Labels": {node_labels.IMAGE: label}, "Cmd": ["/true"]},
        "rootfs": {"type": "layers", "diff_ids": [digest_of(layer.getvalue())]},
    }
    return layer.getvalue(), json.dumps(about).encode()


@pytest.fixture
def registry() -> Iterator[Registry]:
    blobs: dict[str, tuple[str, bytes]] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            kind, content = blobs.get(self.path.rpartition("/")[2], ("application/json", b"{}"))
            self.send_response(200 if content != b"{}" or self.path == "/v2/" else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if content != b"{}":
                self.send_header("Docker-Content-Digest", digest_of(content))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield Registry(f"127.0.0.1:{server.server_address[1]}", blobs)
        server.shutdown()


@pytest.fixture
def repository(registry: Registry) -> Iterator[str]:
    name = f"spt-flow-test/{secrets.token_hex(4)}"
    yield name
    for word in (name, f"{registry.address}/team/workspace"):
        for identifier in set(docker("images", "--quiet", "--filter", f"reference={word}").split()):
            subprocess.run(["docker", "rmi", "--force", identifier], capture_output=True, timeout=60, check=False)


def docker(*argv: str) -> str:
    return subprocess.run(["docker", *argv], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def ids(word: str) -> list[str]:
    return sorted(set(docker("images", "--quiet", "--all", "--no-trunc", "--filter", f"reference={word}").split()))


def test_image_is_pulled_by_digest_and_replaced_completely(registry: Registry, repository: str) -> None:
    first = cache.Wanted(f"{repository}:slim-1", "one", reference=registry.offer("one"), keep=0)
    assert cache.reconcile(first, check=True).changed
    assert not cache.present(connect(), first.tag, first.hash)
    assert cache.reconcile(first).changed
    assert cache.present(connect(), first.tag, first.hash)
    assert not cache.reconcile(first).changed

    second = replace(first, tag=f"{repository}:slim-2", hash="two", reference=registry.offer("two"))
    outcome = cache.reconcile(second)
    assert outcome.removed == [first.reference, first.tag]
    assert len(ids(repository)) == 1
    assert ids(repository) == ids(f"{registry.address}/team/workspace")


def test_used_and_referenced_images_stay_until_unused(registry: Registry, repository: str) -> None:
    made = [cache.Wanted(f"{repository}:{n}", n, reference=registry.offer(n)) for n in ("one", "two", "three")]
    for wanted in made:
        cache.reconcile(wanted)
    container = docker("create", made[0].tag)
    try:
        newest = replace(made[2], keep=0, in_use=["two"])
        assert not cache.reconcile(newest).changed
        assert cache.reconcile(replace(newest, in_use=())).removed == [made[1].reference, made[1].tag]
        assert cache.present(connect(), made[0].tag, made[0].hash)
    finally:
        docker("rm", container)
    assert cache.reconcile(newest).removed == [made[0].reference, made[0].tag]
    assert len(ids(repository)) == 1


def test_wrong_digest_is_refused(registry: Registry, repository: str) -> None:
    wanted = cache.Wanted(f"{repository}:slim-1", "one", reference=registry.offer("another"))
    with pytest.raises(FlowError, match="does not contain the image"):
        cache.reconcile(wanted)
    assert not cache.present(connect(), wanted.tag, wanted.hash)


def test_missing_image_in_the_registry_is_reported(registry: Registry, repository: str) -> None:
    wanted = cache.Wanted(
        f"{repository}:slim-1", "one", reference=f"{registry.address}/team/workspace@sha256:{'0' * 64}"
    )
    with pytest.raises(FlowError, match="docker pull .* failed"):
        cache.reconcile(wanted)


def test_archive_is_loaded(repository: str, tmp_path: Path) -> None:
    layer, config = parts("one")
    wanted = cache.Wanted(f"{repository}:slim-1", "one", archive=str(tmp_path / "image.tar"))
    manifest = [{"Config": "config.json", "RepoTags": [wanted.tag], "Layers": ["layer.tar"]}]
    with tarfile.open(wanted.archive, "w") as tar:
        for name, content in {
            "config.json": config,
            "layer.tar": layer,
            "manifest.json": json.dumps(manifest).encode(),
        }.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    assert cache.reconcile(wanted).changed
    assert not cache.reconcile(wanted).changed
