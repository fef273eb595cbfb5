# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""Build the workspace image on a Docker engine."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ....module_utils._node.errors import FlowError, InvalidInput
from ..common.progress import Progress
from . import download as image_download
from . import engine as image_engine
from . import tools as image_tools
from .cache import BLOCK, archive_of, atomic, cache, load, lock, no_space, room, save, sweep
from .debootstrap import debootstrap
from .download import fetch, mirrored
from .identity import FOLDER, WITHOUT, Image, Recipe, content_hash, placed, recipe


def ensure(image: Image, options: Mapping[str, Any], progress: Progress) -> bool:
    """Provide ``image`` on the engine: present, loaded from the cache, or built. Return whether anything changed."""
    if image_engine.present(image):
        return False
    with lock(image.hash, progress):
        if image_engine.present(image):
            return False
        with progress.stage("image", f"{image.tag} is not on this engine"):
            if not load(image, progress):
                _Builder(image, options, progress).build()
    return True


def archived(image: Image, options: Mapping[str, Any], progress: Progress) -> Path:
    """Return the cache's archive of ``image`` (in the format of `docker save`).

    Build the archive and the image if missing.
    """
    archive = archive_of(image)
    if not archive.exists():
        ensure(image, options, progress)
    if not archive.exists():
        with progress.stage("archive", f"{image.tag} is saved to {archive}"):
            save(image_engine.sdk(), image)
    return archive


def dockerfile(made: Recipe, folder: Path = FOLDER) -> str:
    """Return ``image/Dockerfile`` with a layer for each package group and each tool of the recipe."""
    build = "/usr/local/lib/spt-flow-build"
    archives = '"$MIRROR" "$MIRROR_SECURITY" "$ARCHIVE" "$ARCHIVE_SECURITY"'
    lines = {
        "# packages": [f"RUN sh {build}/packages {archives} {' '.join(group)}" for group in made.packages.values()],
        "# tools": [f"ADD tools/{name}.tar.gz /" for name in made.tools],
    }
    text = (folder / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for given in text for line in lines.get(given, [given]))


def inventory(made: Recipe, image: Image) -> dict[str, Any]:
    """Return the content of /usr/share/spt-flow/image.json. It lists all tools of the profile."""
    present = {name: {"version": str(tool["version"]), "state": "present"} for name, tool in made.tools.items()}
    absent = {name: {"version": "", "state": "unavailable", "reason": why} for name, why in made.absent.items()}
    ide = {name: str(entry["version"]) for name, entry in made.ide.items()}
    return {
        "profile": image.profile,
        "hash": image.hash,
        "base": made.base_name,
        "snapshot": made.base["snapshot"],
        "ide": ide,
        "tools": {**present, **absent},
        "packages": {name: list(group) for name, group in made.packages.items()},
    }


class _Builder:
    """One build: base system, code-server, tools, image. Each part comes from the cache if possible."""

    def __init__(self, image: Image, options: Mapping[str, Any], progress: Progress, folder: Path = FOLDER) -> None:
        self.image = image
        self.options = options
        self.progress = progress
        self.folder = folder
        self.recipe = recipe(image.profile, folder)
        self.engine = image_engine.sdk()
        self.archives = self._archives()
        self.left_out: dict[str, str] = {}

    def build(self) -> None:
        sweep()
        with room("build the image in", cache()):
            built = self._build()
        repository, tag = self.image.tag.split(":")
        built.tag(repository, tag)
        if self.left_out:
            # Not cached, so that another engine tries to get a complete image.
            return
        try:
            save(self.engine, self.image)
        except OSError as error:
            # If the archive does not fit on the disk, the engine still has the image.
            self.progress.note(f"image: not kept in the cache ({error})")

    def _build(self) -> Any:
        for name, why in self.recipe.absent.items():
            self.progress.note(f"image: without {name}: {why}")
        base = self._base()
        ide = self._ide(base)
        tools = {f"tools/{name}.tar.gz": layer for name, layer in self._tools(base).items()}
        about = json.dumps(inventory(self.recipe, self.image), indent=2, sort_keys=True)
        context: dict[str, Path | bytes] = {
            **{name: self.folder / name for name in ("apt-sources", "install.d", "rootfs")},
            **tools,
            "Dockerfile": (dockerfile(self.recipe, self.folder) + self._label()).encode(),
            "ide.tar.gz": ide,
            "image.json": f"{about}\n".encode(),
        }
        archive, security = self.recipe.distribution["archives"]
        words = {"BASE": base, "ARCHIVE": archive, "ARCHIVE_SECURITY": security}
        return self._run("workspace", context, {**words, "IMAGE_HASH": self.image.hash, "PROFILE": self.image.profile})

    def _archives(self) -> tuple[str, str]:
        """Return the package archives:

        the named mirror, the snapshot of the day, or, with a note, the newest packages.
        """
        distribution = self.recipe.distribution
        mirror = str(self.options.get("mirror_apt") or "")
        if mirror and not mirror.startswith(("http://", "https://")):
            raise InvalidInput("Cannot use mirror_apt: it is not an http URL.", "For example: http://deb.debian.org.")
        packages, security = distribution["archives"]
        if mirror:
            return mirrored(packages, self.options), mirrored(security, self.options)
        day = self.recipe.base["snapshot"]
        snapshots = [address.format(day=day) for address in distribution["snapshots"]]
        if image_download.answers(f"{snapshots[0]}/dists/{self.recipe.base['suite']}/Release"):
            return snapshots[0], snapshots[1]
        self.progress.note(f"image: {snapshots[0]} does not answer; packages are the newest of {packages} instead")
        return packages, security

    def _base(self) -> str:
        """Return the tag of the base system: by digest from a registry, or created by debootstrap."""
        registry = str(self.recipe.base.get("registry") or "")
        strategy = self.options.get("image_base") or "auto"
        if strategy in ("auto", "registry") and registry:
            from docker.errors import DockerException

            try:
                self.progress.note(f"image: pulling the base {registry}")
                self.engine.images.pull(registry)
                return registry
            except DockerException as error:
                if strategy == "registry":
                    raise FlowError(
                        f"Cannot pull the base image {registry}: {error}.",
                        "Check the registry, or use image_base=bootstrap.",
                    ) from None
                self.progress.note("image: the registry does not have it; bootstrapping the base instead")
        elif strategy == "registry":
            raise InvalidInput(
                "Cannot use image_base=registry: image/versions.yml does not have a digest for "
                f"{self.recipe.base_name}.",
                "Set its registry there to name@sha256:…, or use image_base=bootstrap.",
            )
        return self._bootstrap(str(self.recipe.base["suite"]))

    def _bootstrap(self, suite: str) -> str:
        key = hashlib.sha256(f"{suite}\0{self.recipe.base['snapshot']}".encode()).hexdigest()[:12]
        repository, tag = "spt-flow/base", f"{suite}-{key}"
        if any(f"{repository}:{tag}" in found.tags for found in self.engine.images.list(name=repository)):
            return f"{repository}:{tag}"
        tarball = cache("base") / f"{suite}-{key}.tar"
        with lock(tarball.name, self.progress):
            self._tarball(suite, tarball)
        self.progress.note("image: importing the base system")
        self.engine.api.import_image_from_file(str(tarball), repository=repository, tag=tag)
        return f"{repository}:{tag}"

    def _tarball(self, suite: str, tarball: Path) -> None:
        """Return the base system as a file; create it if missing."""
        if not tarball.exists():
            with atomic(tarball) as path:
                keyring = self._keyring(path.parent)
                script = str(self.recipe.distribution["script"])
                debootstrap(suite, script, self.archives[0], path, self.progress, keyring)

    def _keyring(self, folder: Path) -> Path | None:
        """Return the archive keys of another distribution, from their package."""
        entry = self.recipe.distribution.get("keyring")
        if entry is None:
            return None
        name = f"{self.recipe.base['distribution']}-archive-keyring.gpg"
        package = fetch(name, entry, self.options, self.progress)
        target = folder / name
        target.write_bytes(image_tools.of_package(package, f"usr/share/keyrings/{name}"))
        return target

    def _ide(self, base: str) -> Path:
        """Return code-server, compiled once per set of inputs and cached as an archive."""
        files = self.recipe.ide
        words = [self.recipe.base["suite"], *(files[name]["sha256"] for name in ("node", "code-server"))]
        tree = cache("ide") / f"{content_hash(words, self.folder / 'ide')[:16]}.tar.gz"
        # Builds of other profiles running at the same time share it.
        with lock(tree.name, self.progress):
            if not tree.exists():
                self._compile_ide(base, tree)
        return tree

    def _compile_ide(self, base: str, tree: Path) -> None:
        files = self.recipe.ide
        context: dict[str, Path | bytes] = {
            "Dockerfile": self.folder / "ide" / "Dockerfile",
            "ide": self.folder / "ide",
            "apt-sources": self.folder / "apt-sources",
            "downloads/node.whl": self._file("node", files["node"], files["node"]),
            "downloads/code-server.tgz": self._file("code-server", files["code-server"], files["code-server"]),
            **self._authority(),
        }
        self.progress.note("image: compiling code-server (about three minutes, once)")
        registry = str(self.options.get("mirror_npm") or "")
        arguments = {"BASE": base, "NPM_REGISTRY": registry}
        with atomic(tree) as path:
            self._compiled(
                "code-server", context, arguments, "/opt/code-server", lambda blocks: _compress(blocks, path)
            )

    def _tools(self, base: str) -> dict[str, Path]:
        """Return the tools' layers. An optional tool whose server does not answer is left out; the image says so."""
        layers = {}
        for name, tool in self.recipe.tools.items():
            try:
                layers[name] = self._tool(name, base)
            except image_download.Unreachable as error:
                if not tool.get("optional"):
                    raise
                self.progress.note(f"image: without {name}: {error.message}")
                self.left_out[name] = error.message
        tools = {name: self.recipe.tools[name] for name in layers}
        self.recipe = replace(self.recipe, tools=tools, absent={**self.recipe.absent, **self.left_out})
        return layers

    def _label(self) -> str:
        return f'LABEL {WITHOUT}="{" ".join(self.left_out)}"\n' if self.left_out else ""

    def _tool(self, name: str, base: str) -> Path:
        """Return the layer of a tool, assembled or compiled once per set of inputs and cached as an archive."""
        tool = self.recipe.tools[name]
        words = [image_tools.LAYOUT, json.dumps(placed(tool), sort_keys=True)]
        crate = bool(tool.get("crate"))
        if crate:
            words += [self.recipe.base["suite"], json.dumps(placed(self.recipe.tools["rust"]), sort_keys=True)]
        kind = f"{name}-{self.recipe.base['suite']}" if crate else name
        key = content_hash(words, *([self.folder / "crate"] if crate else []))[:16]
        layer = cache("tools") / f"{kind}-{key}.tar.gz"
        if layer.exists():
            return layer
        files = [(self._file(name, tool, file), file) for file in tool["files"]]
        with atomic(layer) as path:
            if crate:
                binary = path.with_name("binary.tar")
                self._crate(name, files[0][0], base, binary)
                taken = {"url": files[0][1]["url"], "take": {name: f"usr/local/bin/{name}"}}
                files = [(binary, taken)]
            self.progress.note(f"image: assembling {name} {tool['version']}")
            image_tools.write(name, tool, files, path)
            if crate:
                binary.unlink()
        for old in layer.parent.glob(f"{kind}-{'?' * len(key)}.tar.gz"):
            if old != layer:
                old.unlink(missing_ok=True)
        return layer

    def _file(self, name: str, about: Mapping[str, Any], entry: Mapping[str, Any]) -> Path:
        return fetch(f"{name} {about['version']}", entry, self.options, self.progress)

    def _crate(self, name: str, crate: Path, base: str, target: Path) -> None:
        context: dict[str, Path | bytes] = {
            "Dockerfile": self.folder / "crate" / "Dockerfile",
            "crate": self.folder / "crate",
            "apt-sources": self.folder / "apt-sources",
            "rust.tar.gz": self._tool("rust", base),
            "downloads/crate.tar.gz": crate,
            **self._authority(),
        }
        self.progress.note(f"image: compiling {name} (some minutes, once)")
        mirror = str(self.options.get("mirror_crates") or "").rstrip("/")
        result = f"/build/result/bin/{name}"
        arguments = {"BASE": base, "CRATES": mirror}
        self._compiled(name, context, arguments, result, lambda blocks: image_tools.keep(blocks, target))

    def _authority(self) -> dict[str, Path | bytes]:
        """Return the certificates that a site trusts, from SSL_CERT_FILE as in OpenSSL, Python and git."""
        authority = str(self.options.get("ca_bundle") or os.environ.get("SSL_CERT_FILE") or "")
        return {"downloads/ca.pem": Path(authority)} if authority else {}

    def _compiled(
        self,
        what: str,
        context: Mapping[str, Path | bytes],
        arguments: Mapping[str, str],
        result: str,
        take: Callable[[Iterable[bytes]], None],
    ) -> None:
        """Build ``context`` separately, pass its ``result`` (an archive, in blocks) to ``take``, delete the image."""
        built = self._run(what, context, arguments)
        container = self.engine.containers.create(built.id, command="true", labels={"spt.flow.build": what})
        try:
            take(container.get_archive(result, chunk_size=BLOCK)[0])
        finally:
            container.remove(force=True)
            self.engine.images.remove(built.id, force=True)

    def _run(self, what: str, context: Mapping[str, Path | bytes], arguments: Mapping[str, str]) -> Any:
        """Build ``context`` with the classic API. Return the image object.

        Shows progress per step, and the last lines on failure.
        """
        arguments = {**arguments, "MIRROR": self.archives[0], "MIRROR_SECURITY": self.archives[1]}
        lines: list[str] = []
        identifier = ""
        with _context(context) as stream:
            for event in self.engine.api.build(
                fileobj=stream, custom_context=True, decode=True, buildargs=arguments, rm=True, forcerm=True
            ):
                text = str(event.get("stream", "")).strip()
                if text.startswith("Step "):
                    self.progress.note(f"image: {what}: {text[:100]}")
                if text:
                    lines = [*lines[-14:], text]
                identifier = (event.get("aux") or {}).get("ID", identifier)
                if "error" in event:
                    if "no space left on device" in f"{event['error']} {lines}".lower():
                        raise no_space(f"build the {what} part of the image on", "the engine's data folder")
                    tail = "\n".join(lines)
                    raise FlowError(
                        f"Cannot build the {what} part of the image: {event['error']}\n{tail}",
                        "Nothing was tagged. Run it again: finished parts are reused.",
                    )
        return self.engine.images.get(identifier)


@contextlib.contextmanager
def _context(entries: Mapping[str, Path | bytes]) -> Iterator[Any]:
    """Return a build context as an open tar.

    Owners and times are fixed, so that the engine's cache recognises the files.
    """

    def plain(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if "__pycache__" in info.name:
            return None
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        info.mtime = 0
        info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
        return info

    with tempfile.TemporaryFile(dir=cache()) as stream:
        with tarfile.open(fileobj=stream, mode="w") as tar:
            for name, content in sorted(entries.items()):
                if isinstance(content, bytes):
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
                else:
                    tar.add(content, name, filter=plain)
        stream.seek(0)
        yield stream


def _compress(blocks: Iterable[bytes], path: Path) -> None:
    import gzip

    with gzip.open(path, "wb", compresslevel=1) as out:
        for block in blocks:
            out.write(block)
