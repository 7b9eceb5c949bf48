"""Feeds: the live catalogue as (SID, items) in the files of other engines, at a snapshot, and what changes then."""
