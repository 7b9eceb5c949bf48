"""Catalogues as people have them: tables in files of many kinds, here or at an address, read some rows at a time."""
