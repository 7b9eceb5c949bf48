"""Imported last by a fork server, and by nobody else: what there is by now stays shared with what it forks; its end is silent.

The garbage collector would write to every object that it looks at, and so copy it. At its end the interpreter would take apart
what was imported, and extensions would complain on standard error, where a log of JSON lines may be.
"""

from __future__ import annotations

import atexit
import gc
import os

gc.collect()
gc.freeze()
atexit.register(os._exit, 0)
