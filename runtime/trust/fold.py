"""How a text reads to somebody who looks for words in it: letters that look alike, digits for letters, marks, spaces.

Three readings, each applied to a policy's words as well as to the text. `plain` is what any search should see: NFKC,
without case, accents and what isn't seen. `latin` reads letters of other scripts as the Latin ones that they look like.
`leet` reads digits and signs as letters too, and l as i, since 1 may be either; it is for tokens that hold such signs.
"""

from __future__ import annotations

import re
import unicodedata

_UNSEEN = ("Mn", "Me", "Cf", "Cc", "Cs")
_FILLERS = "\u115f\u1160\u3164\uffa0"  # letters by category, and blank
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
# Letters in circles, squares and flags that NFKC leaves as they are.
_ENCLOSED = {start + i: letter for start in (0x1F150, 0x1F170, 0x1F1E6) for i, letter in enumerate(_LETTERS)}
_CAPITALS = str.maketrans("ΗΝΜΥ", "hnmy")  # their small letters look like others
_LOOKALIKES = {
    ord(other): latin
    for others, latins in (
        ("авгекмнопрстухіјѕԁһԛԝѵшия", "abrekmhonpctyxijsdhqwvwur"),
        ("αβγδεζηικμνορστυχω", "abydeznikuvopotuxw"),
        ("ıłøđħɑɡɩʋօսոհ", "ilodhagivounh"),
        ("ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ", "abcdefghijklmnoprstuvwyz"),
    )
    for other, latin in zip(others, latins, strict=True)
}
_LEET = str.maketrans("0123456789@$!|+€¡l", "oizeasgtbgasiiteii")
_SIGNS = frozenset("0123456789@$!|+€¡")
_ENDS = "!|+¡"  # at a token's end these are marks, not letters
_DIRECT = re.compile(r"[\x20-\x7e\s]*")


def plain(text: str) -> str:
    """Lower case, NFKC, no accents, nothing that isn't seen."""
    if _DIRECT.fullmatch(text):
        return text.casefold()
    text = unicodedata.normalize("NFKC", text.translate(_ENCLOSED)).casefold()
    seen = (
        char
        for char in unicodedata.normalize("NFKD", text)
        if char.isspace() or (unicodedata.category(char) not in _UNSEEN and char not in _FILLERS)
    )
    return unicodedata.normalize("NFC", "".join(seen))


def latin(text: str) -> str:
    """The same, in the Latin letters that it looks like."""
    return text if text.isascii() and text.islower() else plain(text.translate(_CAPITALS)).translate(_LOOKALIKES)


def readings(text: str) -> tuple[str, str]:
    """A text as `plain` and as `latin`, with single spaces."""
    return " ".join(plain(text).split()), " ".join(latin(text).split())


def leet(token: str) -> str:
    """A token in `latin`, with digits and signs as letters."""
    return token.translate(_LEET)


def may_be_leet(token: str) -> bool:
    """Whether a token mixes letters with signs that may stand for some."""
    return not _SIGNS.isdisjoint(token) and any(char.isalpha() for char in token)


def without_ends(token: str) -> str:
    """A token without the marks that end it, or begin it."""
    return token.strip(_ENDS)
