"""Write the numbers of results into README and docs, from committed tables: `make docs`.

Every number of a result is in one of two lists:

- docs/tables/quotes.toml: pieces of sentences. `{name}` stands for a value that
  `result_values.py` computes from the tables; `{.81}` is a number that was only recorded, and
  `source` says where and when it was measured.
- tables of Markdown, found on their page by their header: computed by `result_values.py`, or
  recorded in docs/tables/recorded/*.csv, whose first lines say where and when.

docs/tables/not_results.toml lists the other numbers: definitions, settings, published figures.

    python docs/results.py record docs/laws.md "| design |" NAME "when and where" "source"

records a table that stands on a page and cannot be computed again.
`tests/test_results_in_docs.py` fails if a number differs, or is in none of the lists.
"""

import csv
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

DOCS = Path(__file__).parent
ROOT = DOCS.parent
TABLES = DOCS / "tables"
# Pages that other commands write whole, from code or from their own simulation.
GENERATED = ("docs/cli.md", "docs/settings.md", "docs/coverage.md", "docs/published_laws.md")

# A number as the pages write it: .058, −.9991, 64,000, 2.7e12. It ends with a digit.
NUMBER = r"[−+-]?(?:\d[\d,]*)?\.?\d+(?:e[-+]?\d+)?½?"
# What looks like a result: a number with a decimal point, or with a unit of measurement.
_UNITS = r"%|dB|ms|s|min|minutes|seconds|hours|GPU-hours|GB|TFLOP/s|times|×"
RESULT = re.compile(rf"(?<![\w.-])(?:\d*\.\d+|\d[\d,]*½?(?=\s(?:{_UNITS})(?!\w)))")


@dataclass(frozen=True)
class Quote:
    """A piece of a page with numbers of results."""

    page: str
    text: str
    source: str = ""

    @property
    def names(self) -> list[str]:
        """What stands in braces: names of values, or recorded numbers."""
        return re.findall(r"\{(.*?)\}", self.text)

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches the piece with any numbers, however its lines are broken."""
        pieces = re.split(r"\{.*?\}", self.text)
        return re.compile(f"({NUMBER})".join(_spaced(piece) for piece in pieces))

    def numbers(self, values: Mapping[str, str]) -> list[str]:
        """The numbers that must stand on the page."""
        return [self._number(name, values) for name in self.names]

    def _number(self, name: str, values: Mapping[str, str]) -> str:
        if re.fullmatch(NUMBER, name):
            if not self.source:
                raise ValueError(f"{self.page}: {{{name}}} is recorded, but has no source")
            return name
        if name not in values:
            raise ValueError(f"{self.page}: no value {{{name}}} in {self.text!r}")
        return values[name]


@dataclass(frozen=True)
class Table:
    """A table of Markdown; its first row, the header, tells where it stands on its page."""

    page: str
    rows: tuple[tuple[str, ...], ...]
    source: str
    name: str = ""  # of the file of a recorded table

    @property
    def text(self) -> str:
        lines = [markdown_row(row) for row in self.rows]
        return "\n".join([lines[0], "|" + "---|" * len(self.rows[0]), *lines[1:]])

    @property
    def pattern(self) -> re.Pattern[str]:
        return table_pattern(markdown_row(self.rows[0]))


def markdown_row(cells: tuple[str, ...]) -> str:
    return "".join(f"| {cell} " if cell else "| " for cell in cells) + "|"


def table_pattern(header: str) -> re.Pattern[str]:
    """Matches the table with this header row."""
    return re.compile(rf"^{re.escape(header)}$(?:\n\|.*$)*", re.MULTILINE)


def quotes() -> list[Quote]:
    return [Quote(**one) for one in _toml("quotes.toml")["quote"]]


def recorded_tables() -> list[Table]:
    """Tables whose numbers were measured once; their files say where and when."""
    tables = []
    for path in sorted((TABLES / "recorded").glob("*.csv")):
        lines = path.read_text().splitlines()
        head = [line for line in lines if line.startswith("#")]
        notes = dict(line[2:].split(": ", 1) for line in head)
        rows = tuple(tuple(row) for row in csv.reader(lines[len(head) :]))
        source = f"{notes['measured']}; {notes['source']}"
        tables.append(Table(notes["page"], rows, source, path.stem))
    return tables


def record(page: str, header: str, name: str, measured: str, source: str) -> Path:
    """Write a table of a page, whose header starts with `header`, to docs/tables/recorded."""
    text = (ROOT / page).read_text()
    found = re.search(rf"^{re.escape(header)}.*\|$(?:\n\|.*$)*", text, re.MULTILINE)
    if found is None:
        raise ValueError(f"{page} has no table that starts with {header!r}")
    lines = found[0].splitlines()
    path = TABLES / "recorded" / f"{name}.csv"
    with path.open("w") as file:
        print(
            f"# page: {page}", f"# measured: {measured}", f"# source: {source}", sep="\n", file=file
        )
        for line in (lines[0], *lines[2:]):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            csv.writer(file, lineterminator="\n").writerow(cells)
    return path


def renewed(
    page: str, text: str, values: Mapping[str, str], tables: list[Table]
) -> tuple[str, list[str]]:
    """The page with the numbers of the tables, and the pieces that are not on it exactly once."""
    missing = []
    for table in tables:
        if table.page == page:
            text, count = table.pattern.subn(lambda _, table=table: table.text, text)
            missing += [f"{count} tables {table.rows[0]}"] if count != 1 else []
    for quote in quotes():
        if quote.page == page:
            found = list(quote.pattern.finditer(text))
            if len(found) != 1:
                missing.append(f"{len(found)} times {quote.text!r}")
                continue
            for group, number in reversed(list(enumerate(quote.numbers(values), 1))):
                start, end = found[0].span(group)
                text = text[:start] + number + text[end:]
    return text, [f"{page}: {one}" for one in missing]


def unlisted_numbers(page: str, text: str, tables: list[Table]) -> list[str]:
    """Numbers that look like results and are in no list; list entries that are not on the page."""
    shown = _without_code(text)
    spans = [m.span() for q in quotes() if q.page == page for m in q.pattern.finditer(text)]
    spans += [m.span() for t in tables if t.page == page for m in t.pattern.finditer(text)]
    lists = _toml("not_results.toml")
    problems = []
    for piece in lists.get(page, []):
        known = table_pattern(piece) if piece.startswith("|") else re.compile(_spaced(piece))
        found = [match.span() for match in known.finditer(text)]
        problems += [] if found else [f"{page}: not_results.toml has {piece!r}, the page does not"]
        spans += found
    for piece in lists["every page"]:
        spans += [match.span() for match in re.finditer(_spaced(piece), text)]
    for match in RESULT.finditer(shown):
        if not any(start <= match.start() and match.end() <= end for start, end in spans):
            line = text.count("\n", 0, match.start())
            problems.append(f"{page}:{line + 1}: {match[0]} in {text.splitlines()[line]!r}")
    return problems


def pages() -> Iterator[tuple[str, str]]:
    """Name and text of README and every page that is not generated whole."""
    for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md"))):
        name = str(path.relative_to(ROOT))
        if name not in GENERATED:
            yield name, path.read_text()


def _without_code(text: str) -> str:
    """The page with blanks for code, targets of links and numbers of papers."""
    code = r"^```.*?^```|`[^`\n]*`|\]\([^)\s]*\)|arXiv[: ][\d.v]+\d|arxiv\.org\S+|Python 3\.\d+"
    blank = re.compile(code, re.DOTALL | re.MULTILINE)
    return blank.sub(lambda match: re.sub(r"\S", " ", match[0]), text)


def _spaced(piece: str) -> str:
    """A pattern for words in which any white space may be a line break."""
    return r"\s+".join(re.escape(word) for word in re.split(r"\s+", piece))


def _toml(name: str) -> dict:
    return tomllib.loads((TABLES / name).read_text())


def main() -> None:
    if sys.argv[1:2] == ["record"]:
        print(record(*sys.argv[2:]))
        return
    import published_laws
    import result_figures
    from result_values import computed_tables, values

    page = DOCS / "published_laws.md"
    page.write_text(published_laws.page())
    problems: list[str] = []
    for page, text in pages():
        new, missing = renewed(page, text, values(), [*recorded_tables(), *computed_tables()])
        problems += missing
        if new != text:
            (ROOT / page).write_text(new)
            print(f"renewed {page}")
    problems += result_figures.renew()
    if problems:
        sys.exit("\n".join(["Mend docs/tables, or the page:", *problems]))


if __name__ == "__main__":
    main()
