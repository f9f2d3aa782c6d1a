"""Score tables of a model on a dataset, and everything that is arithmetic on them."""
