"""A folder for `mlflow run`, for whoever installed this package and has no clone of its repository."""

from pathlib import Path
from typing import Final

import fnostab
from fnostab.config import ConfigError
from fnostab.io.files import atomic_write_text
from fnostab.io.untrusted import shown

_NAME: Final = "MLproject"
#: What MLproject says of an environment: a clone's. Here it is the one in which this package is installed.
_ENVIRONMENT: Final = "conda_env: conda.yaml\n\n"


def write_project(out: Path) -> Path:
    """Write MLproject, whose entry points need this package and nothing beside them, into the folder `out`.

    Returns the file's path. The file says nothing of an environment, so `mlflow run` must be told `--env-manager
    local`. Raises `ConfigError`, and writes nothing, if `out` is no folder and cannot become one, cannot be written to,
    or has another MLproject, or anything that MLflow could take for one.
    """
    if not (out.is_dir() or (not out.exists() and out.parent.is_dir())):
        raise ConfigError(f"`out` (={shown(str(out))}) must be a folder, or a new one in a folder that exists")
    text = project_text()
    for entry in out.iterdir() if out.is_dir() else ():
        # MLflow takes the first entry of that name in lower case (docs/decisions/0001).
        same = entry.name == _NAME and entry.is_file() and entry.read_bytes() == text.encode()
        if entry.name.lower() == _NAME.lower() and not same:
            raise ConfigError(
                f"`out` (={shown(str(out))}) must have no {shown(entry.name)} yet, or the one of this version"
            )
    try:
        out.mkdir(exist_ok=True)
        atomic_write_text(out / _NAME, text)
    except PermissionError as error:
        raise ConfigError(
            f"`out` (={shown(str(out))}) must be a folder that can be written to: {error.strerror}"
        ) from None
    return out / _NAME


def project_text() -> str:
    """Return the text of MLproject without its environment: of the wheel, or of the clone that this package is in."""
    package = Path(fnostab.__file__).parent
    of_wheel = package / "mlproject" / _NAME
    path = of_wheel if of_wheel.is_file() else package.parent / _NAME
    return path.read_text(encoding="utf-8").replace(_ENVIRONMENT, "")
