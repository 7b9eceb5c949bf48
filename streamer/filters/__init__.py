"""What a query asks of an item's attributes: the forms of a filter, its canonical form, and what it means."""
