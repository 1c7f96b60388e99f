"""Lets the API reference show what `#:` comments say of attributes, above them or at the end of their line."""

import re
from typing import Any

import griffe

_COMMENT = re.compile(r"#: ?(.*)$")


class Comments(griffe.Extension):
    """Takes the comment of an attribute that has no docstring for one."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """Look at the attribute's own lines, then at those above it."""
        if attr.docstring is not None or attr.lineno is None or attr.is_alias:
            return
        lines = attr.lines_collection[attr.filepath]
        text = [found for line in lines[attr.lineno - 1 : attr.endlineno] for found in _COMMENT.findall(line)]
        if not text:
            above = attr.lineno - 1
            while above > 0 and lines[above - 1].lstrip().startswith("#:"):
                above -= 1
            text = [found for line in lines[above : attr.lineno - 1] for found in _COMMENT.findall(line)]
        if text:
            attr.docstring = griffe.Docstring(" ".join(text), lineno=attr.lineno, parent=attr)
