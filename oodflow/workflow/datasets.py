"""``oodflow datasets``: what there is, where it is expected, and how to get it."""

from rich.table import Table

from oodflow import console
from oodflow.data.catalog import CATALOG, data_folder, lookup
from oodflow.data.images import download, load
from oodflow.errors import UserError

__all__ = ["list_command", "prepare_command"]


def list_command(data_dir: str) -> None:
    """The catalogue as a table, with what is present in the data folder."""
    folder = data_folder(data_dir)
    table = Table("name", "role", "channels", "classes", "train", "test", "present", "expected in")
    for facts in CATALOG.values():
        present = not facts.where or (folder / facts.where).exists()
        table.add_row(
            facts.name,
            facts.role.replace("_", "-"),
            str(facts.channels),
            str(facts.classes or ""),
            f"{facts.train_size:,}",
            f"{facts.test_size:,}",
            "yes" if present else "no",
            facts.where or "(generated)",
        )
    console.show(table)
    console.say(f"data folder: {folder}")


def prepare_command(name: str, data_dir: str, may_download: bool) -> None:
    """Generate or download a dataset, then load both folds to see that they are whole."""
    facts, folder = lookup(name), data_folder(data_dir)
    if may_download or not facts.where:
        console.say(f"preparing {name} in {folder} …")
        download(name, folder)
    elif not (folder / facts.where).exists():
        raise UserError(f"{name} is expected in {folder / facts.where}; {facts.obtain}")
    for fold in ("train", "test"):
        images = load(name, fold, folder)
        console.say(f"{name} {fold}: {len(images.pixels):,} images, digest {images.digest}")
