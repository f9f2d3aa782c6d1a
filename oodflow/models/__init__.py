"""Models: log p(x) of images. PyTorch only; nothing here trains, stores or reports."""
