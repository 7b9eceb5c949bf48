"""Records the demo and draws the recording as one SVG: ``python -m documentation.recording docs/pictures/demo.svg``.

A real run of ``sidstream demo`` in a terminal of its own (asciinema), played faster where it only waits and slower where there
is something to read, so that it lasts a minute; then drawn (svg-term). Both tools are fetched by name and version; no machine
that reads or builds the site needs them. ``--cast FILE`` draws a recording that is there already.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
ASCIINEMA: Final = "asciinema==2.4.0"
SVG_TERM: Final = "svg-term-cli@2.1.1"
COLUMNS: Final = 104
ROWS: Final = 36
# Drawn text may be a little wider than its columns: room for it before the next picture of the film begins.
_MARGIN: Final = 2
_WAITING_SECONDS: Final = 3.0  # of the run, in one picture, while it only waits
_WRITING_SECONDS: Final = 0.5  # the same, while it writes
_PICTURE_SECONDS: Final = 0.15  # how long a picture stays at the least
_LINE_SECONDS: Final = 0.28  # and for each new line in it
_LONGEST_SECONDS: Final = 3.0
_END_SECONDS: Final = 10.0
_UP: Final = re.compile(r"\x1b\[(\d*)A")


class Output(NamedTuple):
    """What the terminal got at a moment: seconds since the start, text with its escape sequences."""

    seconds: float
    text: str


def outputs(cast: str) -> Iterator[Output]:
    """Of an asciicast of version 2."""
    for line in cast.splitlines()[1:]:
        seconds, kind, text = json.loads(line)
        if kind == "o":
            yield Output(seconds, text)


def new_lines(text: str) -> int:
    """How many lines a piece of output adds: what is drawn again over itself adds none."""
    return max(0, text.count("\n") - sum(int(up or 1) for up in _UP.findall(text)))


def played(run: Iterable[Output]) -> list[Output]:
    """The run in few pictures, each for as long as there is something new to read in it."""
    pictures: list[list[Output]] = []
    for output in run:
        if pictures:
            last = pictures[-1]
            writes = any(new_lines(one.text) for one in (*last, output))
            if output.seconds - last[0].seconds < (_WRITING_SECONDS if writes else _WAITING_SECONDS):
                last.append(output)
                continue
        pictures.append([output])
    film, now = [], 0.0
    for picture in pictures:
        text = "".join(one.text for one in picture)
        film.append(Output(round(now, 2), text))
        now += min(_LONGEST_SECONDS, _PICTURE_SECONDS + _LINE_SECONDS * new_lines(text))
    return [*film, Output(round(now + _END_SECONDS, 2), "\x1b[0m")]


def record(cast: Path) -> None:
    """Runs the demo in a terminal and a directory of its own, that of ``cast``."""
    demo = f"{sys.executable} -m sidstream demo"
    shown = f"printf '\\033[1;32m$\\033[0m sidstream demo\\r\\n'; {demo}"
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or "uv"
    subprocess.run(
        [uv, "tool", "run", ASCIINEMA, "rec", "--overwrite", "--cols", str(COLUMNS), "--rows", str(ROWS),
         "--command", shown, str(cast)],
        check=True, cwd=cast.parent, env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"},
    )  # fmt: skip


def draw(cast: Path, svg: Path) -> None:
    """The recording as a film in one file that asks for nothing else."""
    film = played(outputs(cast.read_text()))
    now = film[-1].seconds - _END_SECONDS / 2
    header = {"version": 2, "width": COLUMNS + _MARGIN, "height": ROWS}
    faster = cast.with_suffix(".played.cast")
    faster.write_text("\n".join(map(json.dumps, [header, *([one.seconds, "o", one.text] for one in film)])) + "\n")
    subprocess.run(
        ["npx", "--yes", SVG_TERM, "--in", str(faster), "--out", str(svg), "--no-cursor", "--padding", "12"], check=True
    )
    # Who wants no motion gets the last picture: what was measured.
    still = f"{{g{{animation-play-state:paused!important;animation-delay:-{now:.0f}s!important}}}}"
    svg.write_text(svg.read_text().replace("<style>", f"<style>@media (prefers-reduced-motion:reduce){still}", 1))
    print(f"{svg}: {len(film)} pictures, {film[-1].seconds:.0f} s, {svg.stat().st_size / 1000:.0f} kB")


def main() -> None:
    parser = argparse.ArgumentParser(description="Record the demo as an SVG.")
    parser.add_argument("svg", type=Path)
    parser.add_argument("--cast", type=Path, help="a recording that is there already")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        cast = Path(directory) / "demo.cast"
        if chosen.cast is None:
            record(cast)
        else:
            shutil.copy(chosen.cast, cast)
        draw(cast, chosen.svg)


if __name__ == "__main__":
    main()
