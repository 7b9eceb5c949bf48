"""``sidstream fit``, ``train`` and ``towers``, thin."""
