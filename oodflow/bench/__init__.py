"""The cost of a training update on a device, and the device's lower bound for it."""
