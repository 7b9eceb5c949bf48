"""Which paths exist, read under a layout."""
