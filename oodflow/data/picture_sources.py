"""What real pictures are composed of: clip art, emoji, glyphs and photographs, split by source.

A clip art belongs to one fold together with those whose file names begin with the same word, since
makers number variants of one drawing. A character belongs to one fold in all fonts, with all that
are derived from it. Photographs are split by region. Nothing that shows a number is taken: digits
are the outliers that a general set is to be tested with.
"""

import hashlib
import re
import unicodedata
import warnings
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFont, ImageStat

from oodflow.data.sketch_photos import MORE_PHOTOS, PHOTOS, photo, regions
from oodflow.errors import UserError

__all__ = ["TILE", "Sources", "gather", "is_number", "shows_numbers"]

TILE = 96
"""Longest side of a clip art in memory, in pixels."""
LARGEST = 30_000_000
"""Pixels of the largest file that is decoded."""
FAINT_COVER = 24
"""Mean opacity, of 255, below which a clip art is left out: hair lines that vanish when reduced."""
GLYPH = 72
"""Size of the glyphs in pixels per em."""
EMOJI = "NotoColorEmoji.ttf"
CORE = re.compile(r"(?!.*(Mono|UI)-)\w+-(Regular|Bold|Italic|BoldItalic)\.ttf")
"""Fonts of the package fonts-noto-core; other packages put more weights into the same folder."""
EMOJI_SIZE = 109
"""The one size at which the emoji are stored, in pixels per em."""
TEST_SHARE = 1 / 12

FORBIDDEN = re.compile(
    r"(?<![a-z])(zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|eighteen|twenty|"
    r"thirty|hundred|thousand|first|second|third|fractions?|digits?|numbers?|numerals?|numeric|"
    r"numero|cards|dates?|o?clocks?|watch|calendar|calculator|dice|money|banknote|coin|roadsigns|"
    r"speed|limit|highway|interstate|k?ruler|(onetwo)?matrix|billiards|pool|slot|medal|timer|score|"
    r"lottery|price|euro|stamp|age|years|days?|highscore|enumlist|prec(minus|plus)|viewmag\d|g8|"
    r"\d_?ball|dartboard|for_sale|knot|gkrellm|kalzium|kbiff|kbruch|kdevelop|knotes|kodo)(?![a-z])"
)
"""Words of file and character names that speak of numbers, and of things that bear them."""

LOOKALIKES = frozenset("ƧƨƻƼƽȜȝƷʒɜЗзӠӡбϐꝪꝫⳌⳍꞫ𐐚𑊖𝈆𞤒𞤴𑋊𑚙ᜂᏎꮞꜮꜯ𑢻ỼỽᦆᏮꮾⳒⳓ⹒⁊𐠐𐤱ᲽᲷჽვႽ𐐝ꕶȢȣ𐌚ꝮꝯⳊⳋշ")
"""Letters whose glyphs are those of 2 to 9 or nearly so (correlation with a digit of Noto Sans or
Noto Serif, both in a common box, above about 0.86). Circles and bars, as 0 and 1, are left."""


def shows_numbers(name: str) -> bool:
    """Whether the name of a file or of a character speaks of numbers.

    >>> shows_numbers("signs/clocks/blue.png"), shows_numbers("LATIN SMALL LETTER TONE TWO")
    (True, True)
    >>> shows_numbers("animals/cat_01.png")
    False
    """
    return bool(FORBIDDEN.search(name.lower()))


def is_number(character: str) -> bool:
    """Whether a character is a number of any script, has one, is named for one or looks like one.

    >>> [is_number(each) for each in "7٣④Ⅷ½一㍘A"]
    [True, True, True, True, True, True, True, False]
    """
    parts = unicodedata.normalize("NFKD", character)
    return shows_numbers(unicodedata.name(character, "")) or any(
        unicodedata.category(part).startswith("N")
        or unicodedata.numeric(part, None) is not None
        or part in LOOKALIKES
        for part in parts
    )


def in_test(source: str) -> bool:
    """Whether a source belongs to the test fold, by the SHA-256 of its name."""
    lowest = int.from_bytes(hashlib.sha256(source.encode()).digest()[:4], "big")
    return lowest < TEST_SHARE * 2**32


@dataclass(frozen=True)
class Sources:
    """All sources of one fold."""

    clips: tuple[Image.Image, ...]
    """Clip art with transparency, RGBA or LA, the longest side at most 96."""
    clip_bounds: NDArray[np.float64]
    """Sums of the shares of the first 1, 2, … clip arts."""
    emoji: tuple[str, ...]
    emoji_font: ImageFont.FreeTypeFont
    fonts: tuple[tuple[Path, str], ...]
    """Fonts with the characters that they have."""
    photos: tuple[Image.Image, ...]
    """Regions of photographs, RGB or L."""


def gather(path: Path, mode: str) -> dict[str, Sources]:
    """Sources by fold, from a folder with ``openclipart`` and ``fonts``; ``mode`` is RGB or L.

    Raises UserError where a file is damaged or a folder has nothing.
    """
    clips: dict[bool, list[tuple[str, Image.Image]]] = {False: [], True: []}
    seen: set[bytes] = set()
    for name, file in _clip_files(path / "openclipart" / "png"):
        tile = _clip(file, mode)
        # Several names have the same content; the first one says which fold it is for.
        if tile is not None and (content := tile.tobytes()) not in seen:
            seen.add(content)
            clips[in_test(_stem(name))].append((name.rpartition("/")[0], tile))
    folder = path / "fonts" / "truetype" / "noto"
    fonts = {test: _fonts(folder, test) for test in (False, True)}
    try:
        emoji_font = ImageFont.truetype(str(folder / EMOJI), EMOJI_SIZE)
    except OSError as error:
        raise UserError(f"{folder / EMOJI} cannot be read ({error}); reinstall it") from error
    found = {}
    for fold, test in (("train", False), ("test", True)):
        emoji = tuple(each for each in _characters(folder / EMOJI) if in_test(_root(each)) == test)
        if not clips[test] or not fonts[test] or not emoji:
            raise UserError(f"{path} has too few clip arts, fonts or emoji for the {fold} fold")
        folders, tiles = zip(*clips[test], strict=True)
        # Half of all files are puzzle pieces, icons and flags: a folder counts by its root.
        sizes = Counter(folders)
        shares = np.array([sizes[each] ** -0.5 for each in folders])
        found[fold] = Sources(
            tiles, np.cumsum(shares / shares.sum()), emoji, emoji_font, fonts[test],
            tuple(_photos(fold, mode)),
        )  # fmt: skip
    return found


def _clip_files(folder: Path) -> list[tuple[str, Path]]:
    """Names below the folder and files, in the order of the names, but for what shows numbers."""
    files = sorted(
        (file.relative_to(folder).as_posix(), file)
        for file in folder.rglob("*.png")
        if not file.is_symlink()
    )
    return [(name, file) for name, file in files if not shows_numbers(name)]


def _stem(name: str) -> str:
    """What the variants of a clip art have in common: the first words of its file's name.

    >>> _stem("food/cone_alt1_bw.png"), _stem("computer/bb_back_.png")
    ('cone', 'bb_back')
    """
    words = re.findall(r"[^\W\d_]+", name.rsplit("/", 1)[-1].removesuffix(".png").lower())
    return "_".join(words[: 1 if words and len(words[0]) > 2 else 2])


def _clip(file: Path, mode: str) -> Image.Image | None:
    """The visible part of a clip art, reduced; None for one that is too large or shows nothing."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                if image.width * image.height > LARGEST:
                    return None
                whole = image.convert("RGBA")
    # The package has three files that are no images.
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return None
    box = whole.getchannel("A").getbbox()
    if box is None or min(box[2] - box[0], box[3] - box[1]) < 8:
        return None
    whole = whole.crop(box)
    whole.thumbnail((TILE, TILE), Image.Resampling.BOX, reducing_gap=3.0)
    if ImageStat.Stat(whole.getchannel("A")).mean[0] < FAINT_COVER:
        return None
    return whole if mode == "RGB" else whole.convert("LA")


def _root(character: str) -> str:
    """The character that a letter with accents or another form is derived from."""
    return unicodedata.normalize("NFKD", character)[0].casefold()


@lru_cache(maxsize=512)
def _characters(font: Path) -> tuple[str, ...]:
    """Letters, signs and symbols of a font that are no numbers."""
    from matplotlib.ft2font import FT2Font

    try:
        known = sorted(FT2Font(str(font)).get_charmap())
    except (OSError, RuntimeError) as error:
        raise UserError(f"{font} cannot be read ({error}); reinstall it") from error
    return tuple(
        each for each in map(chr, known)
        if unicodedata.category(each)[0] in "LPS" and not is_number(each)
    )  # fmt: skip


def _fonts(folder: Path, test: bool) -> tuple[tuple[Path, str], ...]:
    found = []
    for font in sorted(folder.glob("*.ttf")):
        if CORE.fullmatch(font.name):
            characters = [each for each in _characters(font) if in_test(_root(each)) == test]
            if characters:
                found.append((font, "".join(characters)))
    return tuple(found)


def _photos(fold: str, mode: str) -> list[Image.Image]:
    found = []
    for name, (_, _, side) in (PHOTOS | MORE_PHOTOS).items():
        whole = photo(name)
        left, top, right, bottom = regions(whole.shape[1], whole.shape[0], side)[fold]
        region = np.ascontiguousarray(whole[top:bottom, left:right])
        found.append(Image.fromarray(region).convert(mode))
    return found
