"""What people ask for, a file each."""

from collections.abc import Callable

#: Called with a line for people.
PrintLine = Callable[[str], None]
