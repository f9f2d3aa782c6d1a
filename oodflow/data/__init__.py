"""Images: what there is (``catalog``), how it is read (``images``), how it is fed (``batches``).

``torchvision_sets`` reads the published datasets, ``sketch`` makes the embedded ones from the
photographs (``sketch_photos``) and outlines (``sketch_masks``) that the dependencies ship.
"""
