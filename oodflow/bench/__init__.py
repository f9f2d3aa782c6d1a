"""What an update of a training costs on a device, and the floor that the device sets."""
