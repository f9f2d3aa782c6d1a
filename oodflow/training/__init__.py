"""Training: losses, stabilisation, the loop and its checkpoints. Returns plain values."""
