# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The workspace image (private to the collection): what it is, whether the engine has it, how it gets there.

An image's identity is the content of its inputs (decision B10): everything below ``image/`` that goes into it, and the
profile. Mirrors and certificates change where the same things come from, so they are no part of it.

What is slow is kept by content in ``$XDG_CACHE_HOME/spt-flow``, which may be empty: downloads, the base system, the
compiled code-server and the finished image.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ._errors import FlowError, InvalidInput, NotFound, Unhealthy, redact
from ._image_identity import FOLDER, Image, content_hash
from ._progress import Progress

LABEL = "spt.flow.image"
_BLOCK = 1 << 20
_TIMEOUT = 60
_BUILD_TIMEOUT = 1800


def versions(folder: Path = FOLDER) -> dict[str, Any]:
    """The content of ``image/versions.yml``."""
    import yaml

    with open(folder / "versions.yml", encoding="utf-8") as handle:
        return dict(yaml.safe_load(handle))


# Presence


def ensure(image: Image, options: Mapping[str, Any], progress: Progress) -> bool:
    """Make the engine have ``image``: there, from the cache, or built. Whether anything changed."""
    if present(image):
        return False
    with _lock(image.hash, progress):
        if present(image):
            return False
        with progress.stage("image", f"{image.tag} is not on this engine"):
            if not _load(image, progress):
                _Builder(image, options, progress).build()
    return True


def archived(image: Image, options: Mapping[str, Any], progress: Progress) -> Path:
    """The cache's archive of ``image`` (as `docker save` writes it), made when it is missing, the image as well."""
    archive = _archive(image)
    if not archive.exists():
        ensure(image, options, progress)
    if not archive.exists():
        with progress.stage("archive", f"{image.tag} goes to {archive}"):
            _save(_engine(), image)
    return archive


def _engine() -> Any:
    """The Docker SDK's client, imported here only: it costs 0.4 s (decision B1)."""
    try:
        import docker
    except ImportError:
        raise FlowError(
            "Cannot build the workspace image: the Python package docker is missing.",
            "Install it beside ansible-core: pip install docker",
        ) from None
    from docker.errors import DockerException

    try:
        return docker.from_env(timeout=_BUILD_TIMEOUT)
    except DockerException as error:
        raise Unhealthy(
            f"Cannot build the workspace image: the Docker engine does not answer ({error}).",
            "Start it, or let `make quickstart` set one up.",
        ) from None


def present(image: Image) -> bool:
    """Whether the engine has the image under its tag and label; one request by the small client."""
    from . import _docker_http

    try:
        found = _docker_http.connect().get_json(f"/images/{image.tag}/json")
    except NotFound:
        return False
    return ((found.get("Config") or {}).get("Labels") or {}).get(LABEL) == image.hash


def remove(image: Image) -> bool:
    """Take the tag away from the engine; the cache keeps its copy."""
    from . import _docker_http

    try:
        _docker_http.connect().request_json("DELETE", f"/images/{image.tag}")
    except NotFound:
        return False
    return True


# Cache


def cache(*parts: str) -> Path:
    """A folder of the cache, made when missing."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = base.joinpath("spt-flow", *parts)
    path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def _lock(name: str, progress: Progress) -> Iterator[None]:
    """One build of an image at a time on this machine; the others wait and find it done."""
    with open(cache("locks") / f"{name}.lock", "w", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            progress.note("image: another run builds it, waiting")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def _atomic(target: Path) -> Iterator[Path]:
    """A path beside ``target`` that becomes it when the block succeeds."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
        path = Path(folder) / target.name
        yield path
        os.replace(path, target)


def _archive(image: Image) -> Path:
    return cache("images") / f"{image.profile}-{image.hash}.tar"


def _save(engine: Any, image: Image) -> None:
    """Keep the image in the cache, and of its profile no other one."""
    archive = _archive(image)
    with _atomic(archive) as path, open(path, "wb") as out:
        for block in engine.images.get(image.tag).save(chunk_size=_BLOCK, named=True):
            out.write(block)
    for old in archive.parent.glob(f"{image.profile}-*.tar"):
        if old != archive:
            old.unlink(missing_ok=True)


def _load(image: Image, progress: Progress) -> bool:
    """Take the image from the cache; an archive that does not hold it is removed."""
    archive = _archive(image)
    if not archive.exists():
        return False
    progress.note(f"image: loading {archive} ({archive.stat().st_size >> 20} MiB)")
    engine = _engine()
    from docker.errors import DockerException

    try:
        with open(archive, "rb") as handle:
            engine.images.load(handle)
    except (OSError, DockerException) as error:
        progress.note(f"image: the cached archive is of no use ({error})")
    if present(image):
        return True
    archive.unlink(missing_ok=True)
    return False


# Downloads


def fetch(name: str, entry: Mapping[str, str], options: Mapping[str, Any], progress: Progress) -> Path:
    """The file ``entry`` (``url``, ``sha256``) from the cache or its source; a wrong one is named with both sums."""
    target = cache("downloads") / f"{entry['sha256'][:16]}-{entry['url'].rsplit('/', 1)[-1]}"
    if target.exists():
        return target
    url = mirrored(entry["url"], options)
    progress.note(f"image: downloading {name} {entry.get('version', '')} from {redact(url)}")
    with _atomic(target) as path:
        found = _download(name, url, path, str(options.get("ca_bundle") or ""))
        if found != entry["sha256"]:
            raise FlowError(
                f"Cannot use {name} from {url}: its SHA-256 is {found}, and {entry['sha256']} was expected.",
                "The source or the mirror is wrong, or the download was cut off; nothing was kept of it. Run it again.",
            )
    return target


def mirrored(url: str, options: Mapping[str, Any]) -> str:
    """``url``, or its place on the mirror that the user's ``mirror_*`` settings name."""
    origins = {"mirror_pypi": "https://files.pythonhosted.org", "mirror_npm": "https://registry.npmjs.org"}
    for option, origin in origins.items():
        mirror = str(options.get(option) or "").rstrip("/")
        if mirror and url.startswith(origin):
            return mirror + url[len(origin) :]
    mirror = str(options.get("mirror_files") or "").rstrip("/")
    if mirror and not url.startswith(tuple(origins.values())):
        return f"{mirror}/{url.split('://', 1)[1]}"
    return url


def _download(name: str, url: str, path: Path, ca_bundle: str) -> str:
    """Write what ``url`` answers to ``path``; its SHA-256."""
    import ssl

    digest = hashlib.sha256()
    try:
        context = ssl.create_default_context(cafile=ca_bundle or None)
        with urllib.request.urlopen(url, timeout=_TIMEOUT, context=context) as answer, open(path, "wb") as out:
            while block := answer.read(_BLOCK):
                digest.update(block)
                out.write(block)
    except (OSError, urllib.error.URLError, ValueError) as error:
        raise FlowError(
            f"Cannot download {name} from {url}: {error}.",
            "Check the network, or name a mirror (mirror_pypi, mirror_npm, mirror_files).",
        ) from None
    return digest.hexdigest()


# Build


class _Builder:
    """One build: base system, code-server, image; each from the cache where it is there."""

    def __init__(self, image: Image, options: Mapping[str, Any], progress: Progress, folder: Path = FOLDER) -> None:
        self.image = image
        self.options = options
        self.progress = progress
        self.folder = folder
        self.versions = versions(folder)
        if image.profile not in self.versions["profiles"]:
            raise InvalidInput(
                f"There is no image profile {image.profile!r}.", f"One of: {', '.join(self.versions['profiles'])}."
            )
        self.engine = _engine()
        self.archives = self._archives()

    def build(self) -> None:
        base = self._base()
        ide = self._ide(base)
        files = [self.folder / name for name in ("Dockerfile", "apt-sources", "install.d", "rootfs")]
        built = self._run(
            "workspace",
            {path.name: path for path in files} | {"ide.tar.gz": ide},
            {
                "BASE": base,
                "PACKAGES": " ".join(self.versions["profiles"][self.image.profile]["packages"]),
                "IMAGE_HASH": self.image.hash,
                "PROFILE": self.image.profile,
            },
        )
        repository, tag = self.image.tag.split(":")
        built.tag(repository, tag)
        try:
            _save(self.engine, self.image)
        except OSError as error:
            # Without the room for an archive the image is still there on the engine.
            self.progress.note(f"image: not kept in the cache ({error})")

    def _archives(self) -> tuple[str, str]:
        """The package archives: the named mirror, the snapshot of the day, or (said) the newest instead."""
        base = self.versions["base"]
        mirror = str(self.options.get("mirror_apt") or "").rstrip("/")
        if mirror and not mirror.startswith(("http://", "https://")):
            raise InvalidInput("Cannot use mirror_apt: it is not an http URL.", "For example: http://deb.debian.org.")
        if not mirror:
            snapshot = base["snapshot_url"].rstrip("/")
            pair = (f"{snapshot}/debian/{base['snapshot']}", f"{snapshot}/debian-security/{base['snapshot']}")
            if _answers(f"{pair[0]}/dists/{base['suite']}/Release"):
                return pair
            mirror = base["mirror"].rstrip("/")
            self.progress.note(f"image: {snapshot} does not answer; packages are the newest of {mirror} instead")
        return f"{mirror}/debian", f"{mirror}/debian-security"

    def _base(self) -> str:
        """Tag of the base system: by digest from a registry, or made by debootstrap."""
        base = self.versions["base"]
        strategy = self.options.get("image_base") or "auto"
        if strategy in ("auto", "registry") and base["registry"]:
            from docker.errors import DockerException

            try:
                self.progress.note(f"image: pulling the base {base['registry']}")
                self.engine.images.pull(base["registry"])
                return str(base["registry"])
            except DockerException as error:
                if strategy == "registry":
                    raise FlowError(
                        f"Cannot pull the base image {base['registry']}: {error}.",
                        "Check the registry, or use image_base=bootstrap.",
                    ) from None
                self.progress.note("image: the registry does not have it here; bootstrapping the base instead")
        elif strategy == "registry":
            raise InvalidInput(
                "Cannot use image_base=registry: image/versions.yml names no base image by digest.",
                "Set base.registry there to name@sha256:…, or use image_base=bootstrap.",
            )
        return self._bootstrap(str(base["suite"]))

    def _bootstrap(self, suite: str) -> str:
        key = hashlib.sha256(f"{suite}\0{self.versions['base']['snapshot']}".encode()).hexdigest()[:12]
        repository, tag = "spt-flow/base", f"{suite}-{key}"
        if any(f"{repository}:{tag}" in found.tags for found in self.engine.images.list(name=repository)):
            return f"{repository}:{tag}"
        tarball = cache("base") / f"{suite}-{key}.tar"
        if not tarball.exists():
            with _atomic(tarball) as path:
                _debootstrap(suite, self.archives[0], path, self.progress)
        self.progress.note("image: importing the base system")
        self.engine.api.import_image_from_file(str(tarball), repository=repository, tag=tag)
        return f"{repository}:{tag}"

    def _ide(self, base: str) -> Path:
        """code-server, compiled once for its inputs and kept as an archive."""
        files = self.versions["files"]
        words = [self.versions["base"]["suite"], *(files[name]["sha256"] for name in ("node", "code-server"))]
        tree = cache("ide") / f"{content_hash(words, self.folder / 'ide')[:16]}.tar.gz"
        if tree.exists():
            return tree
        context: dict[str, Path | bytes] = {
            "Dockerfile": self.folder / "ide" / "Dockerfile",
            "ide": self.folder / "ide",
            "apt-sources": self.folder / "apt-sources",
            "downloads/node.whl": fetch("Node.js", files["node"], self.options, self.progress),
            "downloads/code-server.tgz": fetch("code-server", files["code-server"], self.options, self.progress),
        }
        # SSL_CERT_FILE is what OpenSSL, Python and git call the certificates that a site trusts.
        authority = str(self.options.get("ca_bundle") or os.environ.get("SSL_CERT_FILE") or "")
        if authority:
            context["downloads/ca.pem"] = Path(authority)
        self.progress.note("image: compiling code-server (about three minutes, once)")
        registry = str(self.options.get("mirror_npm") or "")
        built = self._run("code-server", context, {"BASE": base, "NPM_REGISTRY": registry})
        container = self.engine.containers.create(built.id, command="true", labels={"spt.flow.build": "ide"})
        try:
            with _atomic(tree) as path:
                _compress(container.get_archive("/opt/code-server", chunk_size=_BLOCK)[0], path)
        finally:
            container.remove(force=True)
            self.engine.images.remove(built.id, force=True)
        return tree

    def _run(self, what: str, context: Mapping[str, Path | bytes], arguments: Mapping[str, str]) -> Any:
        """Build ``context`` by the classic API; progress per step, the last lines on failure. The image object."""
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
                    tail = "\n".join(lines)
                    raise FlowError(
                        f"Cannot build the {what} part of the image: {event['error']}\n{tail}",
                        "Nothing was tagged; what was built so far is used again by the next try.",
                    )
        return self.engine.images.get(identifier)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=5):
            return True
    except (OSError, urllib.error.URLError):
        return False


@contextlib.contextmanager
def _context(entries: Mapping[str, Path | bytes]) -> Iterator[Any]:
    """A build context as an open tar; owners and times are fixed, so that the engine's cache sees the same files."""

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


def _debootstrap(suite: str, mirror: str, path: Path, progress: Progress) -> None:
    """Write a minimal system as a tar to ``path``; needs root, asked for without a prompt."""
    program = shutil.which("debootstrap", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if program is None:
        raise FlowError(
            "Cannot make the base system of the image: debootstrap is not installed.",
            "Install it (apt-get install debootstrap), or name a base image by digest in image/versions.yml.",
        )
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    if root and subprocess.run([*root, "true"], capture_output=True, check=False).returncode:
        raise FlowError(
            "Cannot make the base system of the image: debootstrap needs root, and sudo asks for a password.",
            "Run `sudo -v` before, or name a base image by digest in image/versions.yml.",
        )
    progress.note(f"image: bootstrapping {suite} from {mirror} (about a minute, once)")
    with tempfile.TemporaryDirectory(prefix="spt-flow-base.", dir=path.parent) as folder:
        system = os.path.join(folder, "system")
        argv = [*root, program, "--variant=minbase", suite, system, mirror]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        try:
            if done.returncode:
                tail = "\n".join(done.stdout.splitlines()[-5:])
                raise FlowError(f"Cannot bootstrap {suite} from {mirror}:\n{tail}", "Check the mirror (mirror_apt).")
            with open(path, "wb") as out:
                tar = ["tar", "--numeric-owner", "--exclude=./var/cache/apt/archives/*.deb", "-C", system, "-c", "."]
                subprocess.run([*root, *tar], stdout=out, check=True)
        finally:
            subprocess.run([*root, "rm", "-rf", "--one-file-system", system], check=False)
