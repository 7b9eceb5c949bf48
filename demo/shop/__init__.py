"""The demo's made-up shop: its products, its shoppers and the fad."""
