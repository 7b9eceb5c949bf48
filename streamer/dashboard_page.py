"""The dashboard's one page."""

PAGE = "<h1>sidstream</h1>"
