"""Write the figures and the table for a paper into a folder of the user's choice."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from var_scaling.disk import atomic_write, read_json, write_json

if TYPE_CHECKING:
    from analysis.study import Study

LIST = "paper.json"  # names the files of a folder that this module wrote
_FORMAT = 1
COLUMNS = ("one", "two")


@dataclass(frozen=True)
class PaperOptions:
    """The options of `fit --paper`, parsed."""

    folder: Path  # --paper
    rows: tuple[str, ...] = ()  # --rows; empty: the rows that the report announces
    columns: str | None = None  # --columns; None: by the number of rows


def refuse_unwritable(option: str, folder: Path) -> None:
    """Raise ValueError, which names the option, if `folder` can neither be written to nor made."""
    existing = next(each for each in (folder, *folder.absolute().parents) if each.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ValueError(f"{option} {folder}: {existing} is not a folder that can be written to")


def paper_options(
    folder: Path | None, rows: str | None, columns: str | None
) -> PaperOptions | None:
    """The options as given on a command line; None without --paper. Raises ValueError."""
    if folder is None:
        if given := [name for name, value in (("--rows", rows), ("--columns", columns)) if value]:
            raise ValueError(f"{', '.join(given)}: only with --paper FOLDER")
        return None
    refuse_unwritable("--paper", folder)
    names = split_rows(rows or "")
    if rows is not None and not names:
        raise ValueError('--rows: give names of laws, such as "L(N), L(C)"')
    return PaperOptions(folder, names, columns)


def split_rows(text: str) -> tuple[str, ...]:
    """The names in a list such as "L(N), E(N, D)": a comma between brackets separates nothing."""
    names, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth <= 0:
            names.append("")
        else:
            names[-1] += character
    return tuple(name.strip() for name in names if name.strip())


def write_paper(
    options: PaperOptions | None,
    studies: "Mapping[str, Study]",
    report: Path,
    processes: int = 1,
) -> None:
    """Write the files for a paper; a table of several groups has a subfolder for each.

    Everything is drawn before the first file is written, and each file is replaced atomically.
    Files of an earlier call that no longer have content are removed; other files of the folder
    stay. Raises ValueError, before anything is drawn, for unknown rows, for the folder of the
    `report`, and where a file of the user has the name of a new one.
    """
    if options is None:
        return
    from analysis.report.pages import slug
    from analysis.report.paper import choose_rows, file_names, paper_files

    folder = options.folder
    rows = choose_rows(studies, options.rows)
    prefixes = {group: f"{slug(group)}/" if group else "" for group in studies}
    planned = [
        prefixes[group] + name
        for group, study in studies.items()
        for name in file_names(study, rows[group])
    ]
    if folder.resolve() == report.resolve():
        raise ValueError(f"--paper {folder}: it is the folder of the report; give another one")
    earlier = _written_before(folder)
    refuse_files_of_the_user(folder, planned, earlier)
    contents: dict[str, bytes] = {}
    for group, study in studies.items():
        files = paper_files(study, rows[group], options.columns, processes)
        contents |= {prefixes[group] + name: content for name, content in files.items()}
    # First the list, so that after an interruption the files still count as written here.
    write_json(folder / LIST, _list_of([*contents, *earlier]))
    for name, content in contents.items():
        with atomic_write(folder / name) as temporary_path:
            temporary_path.write_bytes(content)
    for name in set(earlier) - set(contents):
        (folder / name).unlink(missing_ok=True)
    write_json(folder / LIST, _list_of(contents))


def refuse_files_of_the_user(folder: Path, planned: Sequence[str], earlier: Sequence[str]) -> None:
    """Raise ValueError if a planned file exists and was not written by an earlier call."""
    theirs = [name for name in planned if name not in earlier and (folder / name).exists()]
    if theirs:
        raise ValueError(
            f"--paper {folder}: {', '.join(theirs)} would be overwritten, and was not written by "
            "--paper; give another folder, or move the file"
        )


def _written_before(folder: Path) -> list[str]:
    """The files that earlier calls wrote into `folder`, relative to it."""
    path = folder / LIST
    if not path.exists():
        return []
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != _FORMAT:
        raise ValueError(f"{path}: not written by --paper; give another folder, or move the file")
    # A changed list must not delete anything outside the folder.
    inside = (path.parent / Path(name) for name in map(str, content["files"]))
    root = folder.resolve()
    return [
        str(each.resolve().relative_to(root)) for each in inside
        if each.is_file() and each.resolve().is_relative_to(root)
    ]  # fmt: skip


def _list_of(names: Sequence[str] | Mapping[str, bytes]) -> dict[str, Any]:
    return {"format": _FORMAT, "written_by": "var-scaling fit --paper", "files": sorted(set(names))}
