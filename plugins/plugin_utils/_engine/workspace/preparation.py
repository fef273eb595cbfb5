# SPDX-FileCopyrightText: spt.flow contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The client's part of a new or replaced workspace: its image, and the author of its commits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..settings.options import OPTIONS

if TYPE_CHECKING:
    from ..common.progress import Progress
    from .models import WorkspaceSpec


@dataclass(frozen=True)
class Preparation:
    """Prepare workspaces with the resolved ``values``. Only targets with ``client_prepares`` need it."""

    values: Mapping[str, Any]

    def __call__(self, spec: WorkspaceSpec, progress: Progress) -> WorkspaceSpec:
        """Build the image if it is missing. Return ``spec`` with the author."""
        from ..repository.author import git_identity

        self._image(spec.settings.profile, progress)
        author = git_identity(self.values)
        return replace(spec, git_name=author["name"], git_email=author["email"])

    def _image(self, profile: str, progress: Progress) -> None:
        """Provide the image on this machine's engine; another machine's engine gets it from the role host_images."""
        if self.values.get("engine"):
            return
        from ..image import build as image_build
        from ..image import identity as image_identity

        image = image_identity.current(profile, self.values["image_release"])
        if self.values["image_release"]:
            from ..image import release as image_release

            if image_release.taken(image, progress):
                return
        image_build.ensure(image, image_options(self.values), progress)


def image_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options for building an image."""
    return {option.name: values[option.name] for option in OPTIONS.values() if option.scope == "image"}
