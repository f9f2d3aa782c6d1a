"""What becomes of the files of a folder, counted: no file is left out without a word."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["REMARKS", "Account"]

READ_BY: Mapping[str, str] = dict.fromkeys(
    (".heic", ".heif", ".hif"), " (install pillow-heif to read them)"
)
"""Endings that Pillow reads once another library is installed."""

REMARKS: Mapping[str, str] = {
    "dim": "images that use little of their range and become nearly black (scale their values)",
    "turned": "images that EXIF asks to turn, read as they are stored",
}
"""What is worth a line of an image that was read."""


@dataclass
class Account:
    """Counts of what was left out and of what is odd, for a line each."""

    left_out: Counter[str] = field(default_factory=Counter)
    """By an ending with its dot, or by words such as ``hidden``."""
    odd: dict[str, tuple[int, str]] = field(default_factory=dict)
    """By a key of :data:`REMARKS`: how many images, and the first one."""

    def remark(self, kind: str, name: str) -> None:
        """Count an image of which there is something to say."""
        count, first = self.odd.get(kind, (0, name))
        self.odd[kind] = count + 1, first

    def lines(self) -> list[str]:
        """One line about all files left out, and one for each kind of remark.

        >>> Account(Counter({".heic": 30, "hidden": 2})).lines()
        ['32 left out: 30 .heic (install pillow-heif to read them), 2 hidden']
        """
        said = []
        if self.left_out:
            parts = ", ".join(
                f"{count} {why}{READ_BY.get(why, '')}" for why, count in self.left_out.most_common()
            )
            said.append(f"{self.left_out.total()} left out: {parts}")
        for kind, (count, first) in sorted(self.odd.items()):
            said.append(f"{REMARKS[kind]}: {count}, such as {first}")
        return said
