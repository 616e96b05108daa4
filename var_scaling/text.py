"""Text of messages: numbers with nouns; user text that no terminal or spreadsheet interprets."""

import re
import unicodedata

# Characters at which a spreadsheet starts a formula, also after blanks. The last four are
# full-width forms, which some spreadsheets treat the same.
_FORMULA = re.compile(r"^\s*[=+\-@＝＋－＠]|^[\t\r\n]")
# Unicode categories of control characters and surrogates; bidirectional marks reorder the text.
_CONTROL = frozenset(("Cc", "Cs"))
_BIDIRECTIONAL = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)


def counted(number: int, noun: str) -> str:
    """1 run, 2 runs: `noun` takes an s."""
    return f"{number:,} {noun if number == 1 else noun + 's'}"


def printable(text: str) -> str:
    """`text` with control characters escaped: the escape character becomes `\\x1b`.

    Line breaks and tabs stay.
    """
    return "".join(map(_escape, text)) if not text.isprintable() else text


def one_line(text: str) -> str:
    """`text` for one line of a message: line breaks, tabs and special blanks are escaped too."""
    # A file name that is not UTF-8 has surrogates, which a terminal cannot print.
    valid = text.encode(errors="backslashreplace").decode()
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in valid)


def _escape(character: str) -> str:
    if character in "\n\t":
        return character
    if unicodedata.category(character) in _CONTROL or character in _BIDIRECTIONAL:
        return (
            character.encode("ascii", "backslashreplace").decode()
            if character > "\x7f"
            else (f"\\x{ord(character):02x}")
        )
    return character


def cell(value: object) -> str:
    """`value` as a cell of a CSV file that no spreadsheet interprets as a formula.

    Numbers do not change. Other text that would be a formula gets a leading apostrophe, which
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
