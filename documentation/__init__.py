"""The documentation site: the pages that are made from the code, the pictures, and what holds the site together.

A tool of whoever works on sidstream, as ``benchmarks`` is: nothing of sidstream imports it, and no wheel has it.
"""
