"""A detector: a score, its calibration, and the decisions that follow from them."""
