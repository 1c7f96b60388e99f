"""The source files of code that a config names, by their hash: they decide numbers as its values do."""

from pathlib import Path

from fnostab.config.arm import ArmConfig
from fnostab.config.networks import import_name
from fnostab.io.endings import ConfigError
from fnostab.io.foreign import Foreign, absolute, is_foreign, load_foreign


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


def foreign_rule(algo: str) -> Foreign | None:
    """Import the clipping rule that `algo` names; None if it is built in. Raises `ConfigError`."""
    try:
        return load_foreign(algo, "clip.algo") if is_foreign(algo) else None
    except ValueError as error:
        raise ConfigError(str(error)) from None


def source_files(config: ArmConfig) -> list[Path]:
    """The source files of the network and of the clipping rule, where they are users' own."""
    found = (foreign_network(config.model.arch), foreign_rule(config.clip.algo))
    return list(dict.fromkeys(code.source for code in found if code and code.source))


def with_sources(config: ArmConfig) -> ArmConfig:
    """`config` with the hashes of the source files that it names, and their paths whole.

    Imports what it names. Raises `ConfigError` if that cannot be done, and if a hash that the config has already is
    another: a file has changed between the runs of a study, or since a config was printed.
    """
    network, rule = foreign_network(config.model.arch), foreign_rule(config.clip.algo)
    model = {"arch": absolute(config.model.arch), "source_sha256": network.sha256 if network else ""}
    clip = {"algo": absolute(config.clip.algo), "source_sha256": rule.sha256 if rule else ""}
    _check("model", config.model.source_sha256, model["source_sha256"], config.model.arch)
    _check("clip", config.clip.source_sha256, clip["source_sha256"], config.clip.algo)
    sections = {"model": config.model.model_copy(update=model), "clip": config.clip.model_copy(update=clip)}
    return config.model_copy(update=sections)


def _check(section: str, given: str, found: str, name: str) -> None:
    if given and given != found:
        rule = f"be the hash of the source of {name}, which is {found}: the file has changed" if found else "be empty"
        raise ConfigError(f"`{section}.source_sha256` (={given}) must {rule}")
