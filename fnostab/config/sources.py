"""The source files of code that a config names, by their hash: they decide numbers as its values do."""

from fnostab.config.arm import ArmConfig
from fnostab.config.networks import import_name
from fnostab.io.endings import ConfigError
from fnostab.io.foreign import Foreign, absolute, load_foreign


def foreign_network(arch: str) -> Foreign | None:
    """Import the network that `arch` names; None if it is built in. Raises `ConfigError`."""
    try:
        name = import_name(arch)
    except ValueError as error:
        raise ConfigError(f"`model.arch` (={arch}) {error}") from None
    try:
        return load_foreign(name, "model.arch") if name else None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def with_sources(config: ArmConfig) -> ArmConfig:
    """`config` with the hashes of the source files that it names, and their paths whole.

    Imports what it names. Raises `ConfigError` if that cannot be done, and if a hash that the config has already is
    another: a file has changed between the runs of a study, or since a config was printed.
    """
    network = foreign_network(config.model.arch)
    keys = {"arch": absolute(config.model.arch), "source_sha256": network.sha256 if network else ""}
    _check("model", config.model.source_sha256, keys["source_sha256"], config.model.arch)
    return config.model_copy(update={"model": config.model.model_copy(update=keys)})


def _check(section: str, given: str, found: str, name: str) -> None:
    if given and given != found:
        rule = f"be the hash of the source of {name}, which is {found}: the file has changed" if found else "be empty"
        raise ConfigError(f"`{section}.source_sha256` (={given}) must {rule}")
