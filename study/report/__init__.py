"""The page of the study: tables, figures, findings."""
