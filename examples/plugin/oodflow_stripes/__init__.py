"""An own model, dataset and score for oodflow; each module registers one when it is imported."""
