"""Images: the catalogue (``catalog``), reading (``images``), training batches (``batches``).

``torchvision_sets`` reads the published datasets, ``sketch`` makes the embedded ones from the
photographs (``sketch_photos``) and outlines (``sketch_masks``) that the dependencies ship.
"""
