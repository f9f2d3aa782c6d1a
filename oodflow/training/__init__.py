"""Training: losses, stabilisation, the loop and its checkpoints. Hands plain values upward."""
