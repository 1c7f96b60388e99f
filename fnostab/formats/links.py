"""The links of HDF5 files, followed one by one: none leaves the file, and none is followed for ever."""

from collections import deque
from typing import Any, Final

#: A file of more groups, arrays and links is refused: listing them takes seconds.
MAX_LINKS: Final = 50_000
#: Soft links that are followed on the way to one array, as many as Linux follows.
_MOST_SOFT_LINKS: Final = 40


class Elsewhere(Exception):
    """A link leads to another file, `file`."""

    def __init__(self, file: str) -> None:
        super().__init__(file)
        self.file = file


class TooManyLinks(Exception):
    """A file has more than `MAX_LINKS` links."""


def arrays_in(root: Any) -> list[str]:
    """List the paths of all arrays of an open file, breadth first; those in other files are among them.

    A group that a link makes a part of itself is entered once. Raises `TooManyLinks` beyond `MAX_LINKS`.
    """
    import h5py

    found: list[str] = []
    waiting: deque[tuple[str, Any, tuple[Any, ...]]] = deque([("", root, (h5py.h5o.get_info(root.id).addr,))])
    seen = 0
    while waiting:
        prefix, group, above = waiting.popleft()
        names: list[bytes] = []
        group.id.links.iterate(lambda name, names=names: len(names) > MAX_LINKS or names.append(name))
        seen += len(names)
        if seen > MAX_LINKS:
            raise TooManyLinks
        for raw in names:
            try:
                name = raw.decode()
                path = f"{prefix}/{name}"
                thing = followed(group, name)
            except Elsewhere:
                found.append(path)
                continue
            except (KeyError, UnicodeError):
                continue  # a soft link to nothing, or a name that nobody can write
            if isinstance(thing, h5py.Dataset):
                found.append(path)
            elif isinstance(thing, h5py.Group):
                place = h5py.h5o.get_info(thing.id).addr
                if place not in above:
                    waiting.append((path, thing, (*above, place)))
    return found


def followed(start: Any, path: str) -> Any:
    """What `path` leads to from the group `start` on, links followed one by one so that none leaves the file.

    Raises `Elsewhere` where one does, and KeyError for a path to nothing and for links in a circle.
    """
    import h5py

    root = start.file
    thing = root if path.startswith("/") else start
    parts = deque(path.split("/"))
    soft_links = 0
    while parts:
        part = parts.popleft()
        if part in ("", "."):
            continue
        if not isinstance(thing, h5py.Group):
            raise KeyError(path)
        try:
            link = thing.get(part, getlink=True)
        except (TypeError, UnicodeError):  # a kind of link that its writer made up, or no text
            raise KeyError(path) from None
        if isinstance(link, h5py.ExternalLink):
            raise Elsewhere(link.filename)
        if isinstance(link, h5py.SoftLink):
            soft_links += 1
            if soft_links > _MOST_SOFT_LINKS:
                raise KeyError(path)
            thing = root if link.path.startswith("/") else thing
            parts.extendleft(reversed(link.path.split("/")))
        else:
            thing = thing[part]
    return thing
