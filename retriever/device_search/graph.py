"""One CUDA graph of a search: hundreds of kernels started by one call.

Never run where it was written: no card was at hand. What it captures is the search that the tests hold against the host's on the
processor; that nothing in it waits for the host is tested too. Where a model's own code does, capture fails: the same steps then
run one by one, and the log says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog
import torch

logger = structlog.get_logger(__name__)

Run = Callable[..., tuple[torch.Tensor, ...]]
_WARM_UPS: Final = 2  # libraries choose kernels and take their memory before anything is captured


class Graph:
    """``run`` of a fixed shape on a CUDA device; captured at the first call."""

    def __init__(self, run: Run, name: str) -> None:
        self._run, self._name = run, name
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[torch.Tensor] = []
        self._outputs: tuple[torch.Tensor, ...] = ()
        self._by_steps = False

    @property
    def is_captured(self) -> bool:
        """Whether calls replay the graph."""
        return self._graph is not None

    def run(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The outputs, which stand in the same memory at every call."""
        if self._graph is None and not self._by_steps:
            self._capture(inputs)
        if self._graph is None:
            return self._run(*inputs)
        for buffer, given in zip(self._inputs, inputs, strict=True):
            buffer.copy_(given, non_blocking=True)
        self._graph.replay()
        return self._outputs

    def _capture(self, inputs: tuple[torch.Tensor, ...]) -> None:
        self._inputs = [given.clone() for given in inputs]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(_WARM_UPS):
                self._run(*self._inputs)
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            # Another thread may load the next bundle onto the card meanwhile: its calls are no fault of this capture.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._outputs = self._run(*self._inputs)
        except RuntimeError as error:
            self._by_steps = True
            logger.warning("graph_not_captured", shape=self._name, reason=str(error).splitlines()[0])
            return
        self._graph = graph
