"""The tree of folders and files under a root, with symbolic links followed."""

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
# Files that are never images. The survey lists them, but not as damaged images.
OTHER_SUFFIXES = (
    ".cfg", ".csv", ".db", ".htm", ".html", ".ini", ".json", ".jsonl", ".lnk", ".log", ".md",
    ".mat", ".npy", ".npz", ".pdf", ".pkl", ".py", ".rst", ".sh", ".toml", ".tsv", ".txt",
    ".url", ".xml", ".yaml", ".yml",
)  # fmt: skip
# Folders that operating systems and network disks add; never classes, never read.
SYSTEM_FOLDERS = (
    "__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "lost+found", "__pycache__",
)  # fmt: skip


class DataError(ValueError):
    """The data is missing or has the wrong layout; the message says what is expected."""


@dataclass
class Folder:
    """A folder of the tree. Hidden entries and SYSTEM_FOLDERS are left out."""

    path: str  # relative to the root; "" for the root itself
    real: str  # the absolute path with links resolved
    linked: bool = False  # whether the folder itself is a symbolic link
    folders: "list[Folder]" = field(default_factory=list)  # sorted by name, by code point
    files: list[str] = field(default_factory=list)  # names, sorted
    links: set[str] = field(default_factory=set)  # those of `files` that are symbolic links
    faults: list[str] = field(default_factory=list)  # messages about entries that cannot be used

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    def walk(self) -> "Iterator[Folder]":
        """This folder and all folders below it."""
        yield self
        for folder in self.folders:
            yield from folder.walk()

    def file_paths(self) -> list[str]:
        """The sorted relative paths of all files in and below it. Raises DataError on faults."""
        self.refuse_faults()
        return sorted(
            os.path.join(folder.path, name) for folder in self.walk() for name in folder.files
        )

    def has_links(self) -> bool:
        """Whether this folder, or a file or folder below it, is a symbolic link."""
        return any(folder.linked or folder.links for folder in self.walk())

    def first_image(self) -> str | None:
        """The relative path of an image file below, recognized by its suffix; None without any."""
        for folder in self.walk():
            for name in folder.files:
                if is_image(name):
                    return os.path.join(folder.path, name)
        return None

    def refuse_faults(self) -> None:
        """Raise DataError for the first fault; its files would be omitted without a message."""
        for folder in self.walk():
            if folder.faults:
                raise DataError(folder.faults[0])

    def real_paths(self) -> dict[str, str]:
        """Map from the real path of each file below to its path relative to the root.

        Raises DataError if two paths lead to one file.
        """
        paths: dict[str, str] = {}
        for folder in self.walk():
            for name in folder.files:
                # folder.real is resolved already, so only a file that is a link needs a system
                # call.
                path, real = os.path.join(folder.path, name), os.path.join(folder.real, name)
                if name in folder.links:
                    real = os.path.realpath(real)
                first = paths.setdefault(real, path)
                if first != path:
                    raise DataError(
                        f"{real}: would be read twice, as {one_line(first)} and {one_line(path)}, "
                        "because of a symbolic link; remove one of the two"
                    )
        return paths


def read_tree(root: Path) -> Folder:
    """The tree under `root`. Entries that cannot be read are recorded in `faults`, not raised."""
    return _read(str(root), "", (os.path.realpath(root),))


def _read(root: str, path: str, ancestors: tuple[str, ...], linked: bool = False) -> Folder:
    """`ancestors`: the real paths from the root down to this folder, which is the last."""
    folder = Folder(path, ancestors[-1], linked)
    try:
        with os.scandir(os.path.join(root, path)) as scan:
            # Sorted: the order of scandir differs between file systems, and the rows follow from
            # it.
            entries = sorted(scan, key=lambda entry: entry.name)
    except OSError as error:
        folder.faults.append(f"{os.path.join(root, path)}: cannot be read ({error.strerror})")
        return folder
    for entry in entries:
        if entry.name[0] == "." or entry.name in SYSTEM_FOLDERS:
            continue
        try:
            _add(folder, entry, root, ancestors)
        except OSError as error:
            folder.faults.append(f"{one_line(entry.path)}: cannot be read ({error.strerror})")
    return folder


def _add(folder: Folder, entry: os.DirEntry[str], root: str, ancestors: tuple[str, ...]) -> None:
    path, shown = os.path.join(folder.path, entry.name), one_line(entry.path)
    # is_dir and is_file follow symbolic links.
    if entry.is_dir():
        real = os.path.join(ancestors[-1], entry.name)
        if entry.is_symlink():
            real = os.path.realpath(real)
            prefix = real.rstrip("/") + "/"
            if any(ancestor == real or ancestor.startswith(prefix) for ancestor in ancestors):
                folder.faults.append(
                    f"{shown}: is a symbolic link to {one_line(real)}, a folder that contains it, "
                    "which makes an endless loop. Remove the link"
                )
                return
        folder.folders.append(_read(root, path, (*ancestors, real), entry.is_symlink()))
    elif entry.is_file() or (entry.is_symlink() and is_image(entry.name)):
        folder.files.append(entry.name)  # a broken link too: the survey reports it as unreadable
        if entry.is_symlink():
            folder.links.add(entry.name)
    elif entry.is_symlink():
        folder.faults.append(
            f"{shown}: is a symbolic link to {one_line(os.readlink(entry.path))}, which does "
            "not exist. Restore the target, or remove the link"
        )
    else:
        folder.faults.append(f"{shown}: is neither a file nor a folder; remove it")


def is_image(name: str) -> bool:
    """Whether the name's suffix is that of an image file."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES
