"""The browser of this machine, which takes pictures of our pages and tests them."""

from __future__ import annotations

import os
import shutil


def chromium() -> str | None:
    """The program; None where there is none."""
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def sandbox() -> list[str]:
    """Its arguments for this user: root has no sandbox."""
    return [] if os.geteuid() else ["--no-sandbox"]
