"""CelebA: the first 60 000 aligned faces, as outliers without labels (S5.1).

On disk: ``img_align_celeba/000001.jpg`` and so on, 178×218 pixels, in the folder as torchvision
lays it out, or that folder itself, or any folder of images; or ``img_align_celeba.zip``, in the
folder or named itself. The images are taken in the order of their file names and stretched
bilinearly to 32×32. Both folds of CelebA serve as outliers (authors' code), so all are ``test``.
"""

from oodflow.data.archives import is_image, open_shelf
from oodflow.data.decode import pieces
from oodflow.data.source import Fold, Raw, Request
from oodflow.errors import UserError

__all__ = ["read"]

FIRST = 60_000


def read(request: Request) -> Raw:
    """The fold ``test``; raises UserError where there is no image or the archive is damaged."""
    inner, archive = (request.path / name for name in ("img_align_celeba", "img_align_celeba.zip"))
    chosen = inner if inner.is_dir() else archive if archive.is_file() else request.path
    shelf = open_shelf(chosen)
    found = [name for name in shelf.names if is_image(name)]
    if not found:
        raise UserError(
            f"no image in {shelf.path}; put img_align_celeba or img_align_celeba.zip there"
        )
    names = tuple(sorted(found, key=lambda name: (name.rpartition("/")[2], name))[:FIRST])
    return Raw({"test": Fold(len(names), lambda: pieces(request, shelf, names))})
