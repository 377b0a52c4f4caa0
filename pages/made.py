"""All pages that are made from the code, by their names in docs/."""

from __future__ import annotations

from pages import commands, modules, python, settings


def made() -> dict[str, str]:
    """The text of each page, as it has to stand in docs/."""
    return {
        "settings.md": settings.page(),
        "commands.md": commands.page(),
        "modules.md": modules.page(),
        "python.md": python.page(),
    }
