"""The retriever with a model that takes its time: ``SLOW_MODEL_SECONDS`` more for each call."""

from __future__ import annotations

import os
import time
from typing import Any

from retriever.answering.searches import Searches
from retriever.serving.process import run_retriever
from streamer.settings import load_settings

search = Searches.search


def slowly(self: Searches, *arguments: Any) -> Any:
    time.sleep(float(os.environ["SLOW_MODEL_SECONDS"]))
    return search(self, *arguments)


if __name__ == "__main__":
    Searches.search = slowly  # type: ignore[method-assign]
    run_retriever(load_settings())
