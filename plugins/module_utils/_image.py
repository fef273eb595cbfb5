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
import errno
import fcntl
import hashlib
import http.client
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import _image_tools
from ._errors import FlowError, InvalidInput, NotFound, Unhealthy, redact
from ._image_identity import FOLDER, Image, Recipe, content_hash, placed, recipe
from ._progress import Progress

LABEL = "spt.flow.image"
_BLOCK = 1 << 20
_KINDS = ("base", "downloads", "ide", "images", "tools")
"""Folders of the cache."""
_LEFT = 6 * 3600
"""Seconds after which a half-made folder that nobody holds counts as left over."""
_TIMEOUT = 60
_BUILD_TIMEOUT = 1800


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
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder, _held(folder):
        path = Path(folder) / target.name
        yield path
        os.replace(path, target)


@contextlib.contextmanager
def _held(folder: str) -> Iterator[None]:
    """Lock a folder for as long as this process lives; raises ``BlockingIOError`` where another one does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _sweep() -> None:
    """Remove the half-made folders of builds that were killed: nobody holds them any more."""
    for folder in (path for kind in _KINDS for path in cache(kind).glob(".*.*") if path.is_dir()):
        try:
            if folder.stat().st_mtime < time.time() - _LEFT:
                with _held(str(folder)):
                    _remove(folder)
        except OSError:
            continue


def _remove(folder: Path) -> None:
    """Remove a folder that may hold a base system: files of root, and file systems that debootstrap mounted."""
    root = [] if os.geteuid() == 0 else ["sudo", "-n"]
    for mounted in folder.glob("*/system/proc"):
        subprocess.run([*root, "umount", "-q", str(mounted)], capture_output=True, check=False)
    subprocess.run([*root, "rm", "-rf", "--one-file-system", str(folder)], capture_output=True, check=False)


def _archive(image: Image) -> Path:
    return cache("images") / f"{image.profile}-{image.hash}.tar"


def _save(engine: Any, image: Image) -> None:
    """Keep the image in the cache, and of its profile no other one."""
    archive = _archive(image)
    with _atomic(archive) as path, open(path, "wb") as out:
        for block in engine.images.get(image.tag).save(chunk_size=_BLOCK, named=True):
            out.write(block)
    # Another profile's name may begin with this one.
    for old in archive.parent.glob(f"{image.profile}-{'[0-9a-f]' * 64}.tar"):
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


def fetch(name: str, entry: Mapping[str, Any], options: Mapping[str, Any], progress: Progress) -> Path:
    """The file ``entry`` (``url``, ``sha256``) from the cache or its source; a wrong one is named with both sums."""
    target = cache("downloads") / f"{entry['sha256'][:16]}-{entry['url'].rsplit('/', 1)[-1]}"
    if target.exists():
        return target
    url = mirrored(entry["url"], options)
    progress.note(f"image: downloading {name} from {redact(url)}")
    with _atomic(target) as path:
        found, missing = _download(name, url, path, str(options.get("ca_bundle") or ""))
        if found != entry["sha256"]:
            what = f"the download was cut off ({missing}), and its SHA-256 is" if missing else "its SHA-256 is"
            raise FlowError(
                f"Cannot use {name} from {url}: {what} {found}, where {entry['sha256']} was expected.",
                "Nothing was kept of it, and what is complete is not fetched again. Run it again; a sum that stays "
                "wrong is the source's or the mirror's.",
            )
    return target


_ORIGINS = {
    "mirror_apt": ("http://deb.debian.org", "http://archive.ubuntu.com", "http://security.ubuntu.com"),
    "mirror_crates": ("https://static.crates.io",),
    "mirror_go": ("https://proxy.golang.org",),
    "mirror_npm": ("https://registry.npmjs.org",),
    "mirror_pypi": ("https://files.pythonhosted.org",),
}
"""What each mirror stands for; everything else is of ``mirror_files``."""


def mirrored(url: str, options: Mapping[str, Any]) -> str:
    """``url``, or its place on the mirror that the user's ``mirror_*`` settings name."""
    for option, origins in _ORIGINS.items():
        for origin in origins:
            if url.startswith(f"{origin}/"):
                mirror = str(options.get(option) or "").rstrip("/")
                return mirror + url[len(origin) :] if mirror else url
    mirror = str(options.get("mirror_files") or "").rstrip("/")
    return f"{mirror}/{url.split('://', 1)[1]}" if mirror else url


def _download(name: str, url: str, path: Path, ca_bundle: str) -> tuple[str, str]:
    """Write what ``url`` answers to ``path``: its SHA-256, and how it ended too early, if it did."""
    import ssl

    digest = hashlib.sha256()
    length = 0
    try:
        context = ssl.create_default_context(cafile=ca_bundle or None)
        with urllib.request.urlopen(url, timeout=_TIMEOUT, context=context) as answer, open(path, "wb") as out:
            wanted = answer.headers.get("Content-Length", "")
            try:
                while block := answer.read(_BLOCK):
                    digest.update(block)
                    length += len(block)
                    with _room(f"keep {name} in", path.parent.parent):
                        out.write(block)
            except http.client.IncompleteRead as error:
                digest.update(error.partial)
                length += len(error.partial)
            except OSError as error:
                return digest.hexdigest(), f"after {length} bytes: {error}"
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise FlowError(
            f"Cannot download {name} from {url}: {error}.",
            f"Check the network, or name a mirror ({', '.join([*_ORIGINS, 'mirror_files'])}).",
        ) from None
    cut = f"after {length} of {wanted} bytes" if wanted.isdigit() and length < int(wanted) else ""
    return digest.hexdigest(), cut


_FULL = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def _room(doing: str, where: Path) -> Iterator[None]:
    """Say that the disk is full where that is why the block failed."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _full(doing, where) from None


def _full(doing: str, where: Path | str) -> FlowError:
    return FlowError(
        f"Cannot {doing} {where}: the disk is full.",
        f"Make room there (`df -h {where}`) and run it again: nothing was tagged, and what is complete is used again.",
    )


# Build


def dockerfile(made: Recipe, folder: Path = FOLDER) -> str:
    """``image/Dockerfile`` with a layer for each group of packages and each tool of the recipe."""
    build = "/usr/local/lib/spt-flow-build"
    archives = '"$MIRROR" "$MIRROR_SECURITY" "$ARCHIVE" "$ARCHIVE_SECURITY"'
    lines = {
        "# packages": [f"RUN sh {build}/packages {archives} {' '.join(group)}" for group in made.packages.values()],
        "# tools": [f"ADD tools/{name}.tar.gz /" for name in made.tools],
    }
    text = (folder / "Dockerfile").read_text(encoding="utf-8").splitlines()
    return "".join(f"{line}\n" for given in text for line in lines.get(given, [given]))


def inventory(made: Recipe, image: Image) -> dict[str, Any]:
    """The image of itself in /usr/share/spt-flow/image.json: a tool that is not listed is not in this profile."""
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
    """One build: base system, code-server, tools, image; each from the cache where it is there."""

    def __init__(self, image: Image, options: Mapping[str, Any], progress: Progress, folder: Path = FOLDER) -> None:
        self.image = image
        self.options = options
        self.progress = progress
        self.folder = folder
        self.recipe = recipe(image.profile, folder)
        self.engine = _engine()
        self.archives = self._archives()

    def build(self) -> None:
        _sweep()
        with _room("build the image in", cache()):
            built = self._build()
        repository, tag = self.image.tag.split(":")
        built.tag(repository, tag)
        try:
            _save(self.engine, self.image)
        except OSError as error:
            # Without the room for an archive the image is still there on the engine.
            self.progress.note(f"image: not kept in the cache ({error})")

    def _build(self) -> Any:
        for name, why in self.recipe.absent.items():
            self.progress.note(f"image: without {name}: {why}")
        base = self._base()
        ide = self._ide(base)
        tools = {f"tools/{name}.tar.gz": self._tool(name, base) for name in self.recipe.tools}
        about = json.dumps(inventory(self.recipe, self.image), indent=2, sort_keys=True)
        context: dict[str, Path | bytes] = {
            **{name: self.folder / name for name in ("apt-sources", "install.d", "rootfs")},
            **tools,
            "Dockerfile": dockerfile(self.recipe, self.folder).encode(),
            "ide.tar.gz": ide,
            "image.json": f"{about}\n".encode(),
        }
        archive, security = self.recipe.distribution["archives"]
        words = {"BASE": base, "ARCHIVE": archive, "ARCHIVE_SECURITY": security}
        return self._run("workspace", context, {**words, "IMAGE_HASH": self.image.hash, "PROFILE": self.image.profile})

    def _archives(self) -> tuple[str, str]:
        """The package archives: the named mirror, the snapshot of the day, or (said) the newest instead."""
        distribution = self.recipe.distribution
        mirror = str(self.options.get("mirror_apt") or "")
        if mirror and not mirror.startswith(("http://", "https://")):
            raise InvalidInput("Cannot use mirror_apt: it is not an http URL.", "For example: http://deb.debian.org.")
        packages, security = distribution["archives"]
        if mirror:
            return mirrored(packages, self.options), mirrored(security, self.options)
        day = self.recipe.base["snapshot"]
        snapshots = [address.format(day=day) for address in distribution["snapshots"]]
        if _answers(f"{snapshots[0]}/dists/{self.recipe.base['suite']}/Release"):
            return snapshots[0], snapshots[1]
        self.progress.note(f"image: {snapshots[0]} does not answer; packages are the newest of {packages} instead")
        return packages, security

    def _base(self) -> str:
        """Tag of the base system: by digest from a registry, or made by debootstrap."""
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
                self.progress.note("image: the registry does not have it here; bootstrapping the base instead")
        elif strategy == "registry":
            raise InvalidInput(
                f"Cannot use image_base=registry: image/versions.yml names no digest for {self.recipe.base_name}.",
                "Set its registry there to name@sha256:…, or use image_base=bootstrap.",
            )
        return self._bootstrap(str(self.recipe.base["suite"]))

    def _bootstrap(self, suite: str) -> str:
        key = hashlib.sha256(f"{suite}\0{self.recipe.base['snapshot']}".encode()).hexdigest()[:12]
        repository, tag = "spt-flow/base", f"{suite}-{key}"
        if any(f"{repository}:{tag}" in found.tags for found in self.engine.images.list(name=repository)):
            return f"{repository}:{tag}"
        tarball = cache("base") / f"{suite}-{key}.tar"
        with _lock(tarball.name, self.progress):
            self._tarball(suite, tarball)
        self.progress.note("image: importing the base system")
        self.engine.api.import_image_from_file(str(tarball), repository=repository, tag=tag)
        return f"{repository}:{tag}"

    def _tarball(self, suite: str, tarball: Path) -> None:
        """The base system as a file, made when it is missing."""
        if not tarball.exists():
            with _atomic(tarball) as path:
                keyring = self._keyring(path.parent)
                script = str(self.recipe.distribution["script"])
                _debootstrap(suite, script, self.archives[0], path, self.progress, keyring)

    def _keyring(self, folder: Path) -> Path | None:
        """The keys of another distribution than this machine's, out of their package."""
        entry = self.recipe.distribution.get("keyring")
        if entry is None:
            return None
        name = f"{self.recipe.base['distribution']}-archive-keyring.gpg"
        package = fetch(name, entry, self.options, self.progress)
        target = folder / name
        target.write_bytes(_image_tools.of_package(package, f"usr/share/keyrings/{name}"))
        return target

    def _ide(self, base: str) -> Path:
        """code-server, compiled once for its inputs and kept as an archive."""
        files = self.recipe.ide
        words = [self.recipe.base["suite"], *(files[name]["sha256"] for name in ("node", "code-server"))]
        tree = cache("ide") / f"{content_hash(words, self.folder / 'ide')[:16]}.tar.gz"
        # Images of other profiles that are built at the same time have the same one.
        with _lock(tree.name, self.progress):
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
        with _atomic(tree) as path:
            self._compiled(
                "code-server", context, arguments, "/opt/code-server", lambda blocks: _compress(blocks, path)
            )

    def _tool(self, name: str, base: str) -> Path:
        """The layer of a tool, laid out or compiled once for its inputs and kept as an archive."""
        tool = self.recipe.tools[name]
        words = [_image_tools.LAYOUT, json.dumps(placed(tool), sort_keys=True)]
        crate = bool(tool.get("crate"))
        if crate:
            words += [self.recipe.base["suite"], json.dumps(placed(self.recipe.tools["rust"]), sort_keys=True)]
        kind = f"{name}-{self.recipe.base['suite']}" if crate else name
        key = content_hash(words, *([self.folder / "crate"] if crate else []))[:16]
        layer = cache("tools") / f"{kind}-{key}.tar.gz"
        if layer.exists():
            return layer
        files = [(self._file(name, tool, file), file) for file in tool["files"]]
        with _atomic(layer) as path:
            if crate:
                binary = path.with_name("binary.tar")
                self._crate(name, files[0][0], base, binary)
                taken = {"url": files[0][1]["url"], "take": {name: f"usr/local/bin/{name}"}}
                files = [(binary, taken)]
            self.progress.note(f"image: laying out {name} {tool['version']}")
            _image_tools.write(name, tool, files, path)
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
        self._compiled(name, context, arguments, result, lambda blocks: _image_tools.keep(blocks, target))

    def _authority(self) -> dict[str, Path | bytes]:
        """The certificates that a site trusts; SSL_CERT_FILE is what OpenSSL, Python and git call them."""
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
        """Build ``context`` apart, give its ``result`` (an archive, by blocks) to ``take``, leave nothing behind."""
        built = self._run(what, context, arguments)
        container = self.engine.containers.create(built.id, command="true", labels={"spt.flow.build": what})
        try:
            take(container.get_archive(result, chunk_size=_BLOCK)[0])
        finally:
            container.remove(force=True)
            self.engine.images.remove(built.id, force=True)

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
                    if "no space left on device" in f"{event['error']} {lines}".lower():
                        raise _full(f"build the {what} part of the image on", "the engine's data folder")
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


_SCRIPTS = Path("/usr/share/debootstrap/scripts")


def _debootstrap(
    suite: str, script: str, mirror: str, path: Path, progress: Progress, keyring: Path | None = None
) -> None:
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
        trust = [f"--keyring={keyring}"] if keyring else []
        # A suite younger than this debootstrap is made as its distribution's others are.
        known = [] if (_SCRIPTS / suite).exists() else [script]
        argv = [*root, program, "--variant=minbase", *trust, suite, system, mirror, *known]
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        try:
            if done.returncode:
                tail = "\n".join(done.stdout.splitlines()[-5:])
                # It calls whatever went wrong with a file a failed download; the programs' own words are in its log.
                log = Path(system, "debootstrap/debootstrap.log")
                if "No space left on device" in done.stdout + (log.read_text(errors="replace") if log.exists() else ""):
                    raise _full(f"bootstrap {suite} in", path.parent.parent)
                raise FlowError(f"Cannot bootstrap {suite} from {mirror}:\n{tail}", "Check the mirror (mirror_apt).")
            with open(path, "wb") as out:
                tar = ["tar", "--numeric-owner", "--exclude=./var/cache/apt/archives/*.deb", "-C", system, "-c", "."]
                subprocess.run([*root, *tar], stdout=out, check=True)
        finally:
            subprocess.run([*root, "rm", "-rf", "--one-file-system", system], check=False)
