"""Models: what log p(x) is. PyTorch only; nothing here trains, stores or reports."""
