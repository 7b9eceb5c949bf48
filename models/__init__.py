"""Embedding → codes → SID, query → SID. Knows no Kafka and no LMDB."""

from __future__ import annotations

import os

# Must be set before torch or faiss load OpenMP. Its threads otherwise spin at every barrier, and where cores are
# shared (a broker, an indexer and a retriever on one machine) they spin against the very thread that they wait for:
# training ran 5-10 times slower so.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
