"""Text of users where a terminal or a spreadsheet would take it for something else than text."""

import re
import unicodedata

# What a spreadsheet takes for the beginning of a formula, also behind blanks; the last four are
# full-width forms, which some take for the same.
_FORMULA = re.compile(r"^\s*[=+\-@＝＋－＠]|^[\t\r\n]")
# A terminal obeys control characters, and turns the direction of what follows a bidirectional one.
_OBEYED = frozenset(("Cc", "Cs"))
_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """`text` with everything that a terminal would obey spelt out: a real escape becomes `\\x1b`.

    Line breaks and tabs stay.
    """
    return "".join(map(_spelt, text)) if not text.isprintable() else text


def one_line(text: str) -> str:
    """`text` for a line of a message: line breaks, tabs and odd blanks are spelt out too."""
    shown = text.encode(errors="backslashreplace").decode()
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in shown)


def _spelt(character: str) -> str:
    if character in "\n\t":
        return character
    if unicodedata.category(character) in _OBEYED or character in _DIRECTIONS:
        return (
            character.encode("ascii", "backslashreplace").decode()
            if character > "\x7f"
            else (f"\\x{ord(character):02x}")
        )
    return character


def cell(value: object) -> str:
    """`value` as a cell of a CSV file that no spreadsheet takes for a formula.

    A number stays a number. Other text that would be a formula gets an apostrophe in front, which
    spreadsheets do not show.
    """
    text = str(value)
    return f"'{text}" if _FORMULA.match(text) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
