"""The type checker of the tests: beartype, which takes a whole number where a float is asked for, as Python does."""

from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
