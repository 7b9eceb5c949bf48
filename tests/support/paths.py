"""Where the checkout and the programs of the tests lie."""

from __future__ import annotations

from pathlib import Path
from typing import Final

SUPPORT: Final = Path(__file__).parent
TESTS: Final = SUPPORT.parent
ROOT: Final = TESTS.parent
