"""What a person sees of an evaluation: tables in a terminal, a page with plots."""
