# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""List an image's packages in SPDX 2.3, from its facts alone.

Distribution packages come from dpkg in the image, tools and the IDE from the recipe, with digests.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from .identity import Image, Recipe

QUERY = "${Package}\\t${Version}\\t${Architecture}\\t${source:Package}\\n"
"""Format of dpkg-query's output, one line per package."""


@dataclass(frozen=True)
class Package:
    """A package of the distribution, as ``QUERY`` prints it."""

    name: str
    version: str
    architecture: str
    source: str

    @classmethod
    def of(cls, line: str) -> Package:
        return cls(*line.split("\t"))


def sbom(image: Image, made: Recipe, packages: list[Package], created: str, release: str) -> dict[str, Any]:
    """Return the document. ``created`` is the image's own time, ``release`` the collection's version."""
    whole = {
        **_package("image", image.tag, image.hash, "NOASSERTION"),
        "primaryPackagePurpose": "CONTAINER",
    }
    parts = [*_of_distribution(made, packages), *_of_recipe(made)]
    contains = {"relationshipType": "CONTAINS", "spdxElementId": whole["SPDXID"]}
    return {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": "SPDXRef-DOCUMENT",
        "name": image.tag,
        # Unique, as the standard requires, and the same for the same image. The address does not exist.
        "documentNamespace": f"https://spt.flow.invalid/spdx/{image.profile}-{image.hash}",
        "creationInfo": {"created": created, "creators": [f"Tool: spt.flow-{release}"]},
        "packages": [whole, *parts],
        "relationships": [
            {
                "spdxElementId": "SPDXRef-DOCUMENT",
                "relationshipType": "DESCRIBES",
                "relatedSpdxElement": whole["SPDXID"],
            },
            *({**contains, "relatedSpdxElement": part["SPDXID"]} for part in parts),
        ],
    }


def _of_distribution(made: Recipe, packages: list[Package]) -> Iterator[dict[str, Any]]:
    distribution, suite = made.base["distribution"], made.base["suite"]
    for package in sorted(packages, key=lambda found: (found.name, found.architecture)):
        address = (
            f"pkg:deb/{distribution}/{quote(package.name, safe='')}@{quote(package.version, safe='')}"
            f"?arch={package.architecture}&distro={suite}"
        )
        about = _package(f"deb-{package.name}-{package.architecture}", package.name, package.version, "NOASSERTION")
        reference = {
            "referenceCategory": "PACKAGE-MANAGER",
            "referenceType": "purl",
            "referenceLocator": address,
        }
        yield {**about, "externalRefs": [reference], "sourceInfo": f"built from the source package {package.source}"}


def _of_recipe(made: Recipe) -> Iterator[dict[str, Any]]:
    """Return each file of a tool, with its address and digest."""
    of_tools = [(name, tool["version"], file) for name, tool in made.tools.items() for file in tool["files"]]
    of_ide = [(name, entry["version"], entry) for name, entry in made.ide.items()]
    for number, (name, version, file) in enumerate([*of_ide, *of_tools]):
        about = _package(f"tool-{number}-{name}", name, str(version), str(file["url"]))
        yield {**about, "checksums": [{"algorithm": "SHA256", "checksumValue": str(file["sha256"])}]}


def _package(identifier: str, name: str, version: str, location: str) -> dict[str, Any]:
    return {
        "SPDXID": f"SPDXRef-{re.sub(r'[^A-Za-z0-9.-]', '-', identifier)}",
        "name": name,
        "versionInfo": version,
        "downloadLocation": location,
        "filesAnalyzed": False,
        "licenseConcluded": "NOASSERTION",
        "licenseDeclared": "NOASSERTION",
        "copyrightText": "NOASSERTION",
    }
