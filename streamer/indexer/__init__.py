"""Codes and layouts → LMDB, exactly once; absolute counts → the monitor."""
