"""The folders and files under a root, links followed, and what of them can be used as images."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from var_scaling.text import one_line

IMAGE_SUFFIXES = (
    ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe",
    ".jpeg", ".jpg", ".jpx", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff",
    ".webp",
)  # fmt: skip
# Files that are never images. They do not count as damaged images; the survey lists them.
OTHER_SUFFIXES = (
    ".cfg", ".csv", ".db", ".htm", ".html", ".ini", ".json", ".jsonl", ".lnk", ".log", ".md",
    ".mat", ".npy", ".npz", ".pdf", ".pkl", ".py", ".rst", ".sh", ".toml", ".tsv", ".txt",
    ".url", ".xml", ".yaml", ".yml",
)  # fmt: skip
# Folders that operating systems and network disks add: never a class, never images of one.
SYSTEM_FOLDERS = (
    "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__",
)  # fmt: skip


class DataError(ValueError):
    """The data is not there or not as it must be; the message says what was looked for."""


@dataclass
class Folder:
    """A folder of the tree. Hidden entries and SYSTEM_FOLDERS are left out."""

    path: str  # below the root; "" for the root itself
    real: str  # the same, links resolved, absolute
    linked: bool = False  # whether the folder itself is a symbolic link
    folders: "list[Folder]" = field(default_factory=list)  # sorted by name, by code point
    files: list[str] = field(default_factory=list)  # names, sorted
    links: set[str] = field(default_factory=set)  # those of `files` that are symbolic links
    faults: list[str] = field(default_factory=list)  # entries that could not be read

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def walk(self) -> "Iterator[Folder]":
        """This folder and all below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()

    def file_paths(self) -> list[str]:
        """All files below, as paths from the root, sorted. Raises DataError for a fault."""
        self.refuse_faults()
        return sorted(
            os.path.join(folder.path, name) for folder in self.walk() for name in folder.files
        )

    def has_links(self) -> bool:
        """Whether a symbolic link leads to the folder or to something below it."""
        return any(folder.linked or folder.links for folder in self.walk())

    def first_image(self) -> str | None:
        """The path of some image file below, known by its suffix; None where there is none."""
        for folder in self.walk():
            for name in folder.files:
                if is_image(name):
                    return os.path.join(folder.path, name)
        return None

    def refuse_faults(self) -> None:
        """Raise DataError if something below could not be read: it would be lost in silence."""
        for folder in self.walk():
            if folder.faults:
                raise DataError(folder.faults[0])

    def real_paths(self) -> dict[str, str]:
        """The path from the root of each file below, by its path with links resolved.

        Raises DataError where a file is reached in two ways.
        """
        found: dict[str, str] = {}
        for folder in self.walk():
            for name in folder.files:
                path, real = os.path.join(folder.path, name), os.path.join(folder.real, name)
                if name in folder.links:
                    real = os.path.realpath(real)
                known = found.setdefault(real, path)
                if known != path:
                    raise DataError(
                        f"{real}: is read twice, as {one_line(known)} and as {one_line(path)}, "
                        "because of a symbolic link; remove one of the two"
                    )
        return found


def read_tree(root: Path) -> Folder:
    """All that lies under `root`; what cannot be read stands in `faults`, nothing is raised."""
    return _read(str(root), "", (os.path.realpath(root),))


def _read(root: str, path: str, above: tuple[str, ...], linked: bool = False) -> Folder:
    """`above`: the real paths of the folder itself, last, and of those that lead to it."""
    folder = Folder(path, above[-1], linked)
    try:
        with os.scandir(os.path.join(root, path)) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        folder.faults.append(f"{os.path.join(root, path)}: cannot be read ({error.strerror})")
        return folder
    for entry in entries:
        if entry.name[0] == "." or entry.name in SYSTEM_FOLDERS:
            continue
        try:
            _add(folder, entry, root, above)
        except OSError as error:
            folder.faults.append(f"{one_line(entry.path)}: cannot be read ({error.strerror})")
    return folder


def _add(folder: Folder, entry: os.DirEntry[str], root: str, above: tuple[str, ...]) -> None:
    path, shown = os.path.join(folder.path, entry.name), one_line(entry.path)
    if entry.is_dir():
        real = os.path.join(above[-1], entry.name)
        if entry.is_symlink():
            real = os.path.realpath(real)
            if any(one == real or one.startswith(real.rstrip("/") + "/") for one in above):
                folder.faults.append(
                    f"{shown}: is a symbolic link to {one_line(real)}, a folder that contains it; "
                    "following it has no end. Remove the link"
                )
                return
        folder.folders.append(_read(root, path, (*above, real), entry.is_symlink()))
    elif entry.is_file() or (entry.is_symlink() and is_image(entry.name)):
        folder.files.append(entry.name)  # of a broken link the survey says so, as of any image
        if entry.is_symlink():
            folder.links.add(entry.name)
    elif entry.is_symlink():
        folder.faults.append(
            f"{shown}: is a symbolic link to {one_line(os.readlink(entry.path))}, which is not "
            "there. Restore that, or remove the link"
        )
    else:
        folder.faults.append(f"{shown}: is neither a file nor a folder; remove it")


def is_image(name: str) -> bool:
    """Whether the name's suffix is that of an image file."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
