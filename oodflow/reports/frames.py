"""What a tidy frame of numbers has to hold before a table or figure is made of it."""

from collections.abc import Collection, Mapping

import pandas as pd

__all__ = ["check_frame"]


def check_frame(
    frame: pd.DataFrame,
    place: list[str],
    value: str,
    known: Mapping[str, Collection[str]] | None = None,
) -> None:
    """Raise ValueError unless the frame has one number for each place, and known names only.

    ``place`` are the columns that say what the number in the column ``value`` belongs to;
    ``known`` maps some of them to the names that they may hold.
    """
    missing = [name for name in [*place, value] if name not in frame]
    if missing:
        raise ValueError(f"the frame lacks the columns {', '.join(missing)}")
    for column, names in (known or {}).items():
        unknown = sorted(set(frame[column]) - set(names))
        if unknown:
            raise ValueError(f"unknown {column} {unknown[0]!r}; known: {', '.join(names)}")
    twice = frame[frame.duplicated(place, keep=False)]
    if len(twice):
        first = ", ".join(f"{name} {twice.iloc[0][name]}" for name in place)
        raise ValueError(f"{len(twice)} rows share their place, such as {first}; pass the newest")
