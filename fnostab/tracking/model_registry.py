"""The model registry: a study's best runs as versions of one model, the best of them under the alias `champion`."""

import hashlib
import json
import math
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

import mlflow
from mlflow.entities import LoggedModel, LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.protos import databricks_pb2 as codes
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS

from fnostab.config import ConfigError
from fnostab.io.cache import cache_folder
from fnostab.io.locks import file_lock
from fnostab.study.champion import (
    CHAMPION,
    PREVIOUS,
    ROLLED_BACK,
    Candidate,
    RegisteredModel,
    RegistryVersion,
    choose_champion,
)
from fnostab.tracking.errors import HOW_TO_REPEAT, has_code, is_unknown, redacted, translated_store_errors
from fnostab.tracking.store import LOCK_TIMEOUT_S, all_pages, open_store, sqlite_file, sqlite_lock

_PREFIX: Final = "fnostab-"
#: MLflow's databases hold no longer description.
_MAX_DESCRIPTION: Final = 5000
_LOOK_AGAIN_S: Final = 1.0
_MAX_LOOKS: Final = 10
_PAGE: Final = 100


@dataclass(frozen=True)
class Registration:
    """What `register_winner` did; `text` says it, and why `champion` moved or did not, in words and numbers."""

    model: str
    version: int
    is_new: bool
    is_champion: bool
    text: str


def model_name(study: str) -> str:
    """The registered model of `study`: `fnostab-stage-a` for `stage_a`.

    Underscores, and whatever MLflow or a `models:/NAME@champion` URI does not take, become hyphens.
    """
    return _PREFIX + re.sub(r"[^\w.-]|_", "-", study)


def ensemble_name(model: str) -> str:
    """The registered model of the ensembles beside the winners of `model`."""
    return f"{model}-ensemble"


def register_winner(
    candidate: Candidate, description: str, *, promote: bool = False, model: str | None = None
) -> Registration:
    """Register the logged `model` of a run, once, and move the alias `champion` to it if it is better.

    It becomes a version of the registered model `model`, or of that of its study, `model_name`.

    Better is a strictly lower value, on the same dataset, of the column that the arms were ranked by. `promote` also
    moves it from a champion of another dataset, from one without the tags to compare by, and to a version that was
    rolled back; a champion that is not worse on the same dataset stays. The alias `previous` goes to the version that
    was champion. `description`, cut to 5000 characters, is put on the version, also on one that is there already.

    Processes of one machine wait for each other. From several machines the same run leaves one version too, the first,
    and who has `champion` on a server looks again after a second whether another machine moved it, and then decides
    again. Raises `ConfigError` if there is no such run or it has no logged model, and `StoreUnavailable` if the store
    stops answering.
    """
    if not math.isfinite(candidate.best_val_loss):
        raise ConfigError(f"`best_val_loss` (={candidate.best_val_loss}) of run {candidate.run_id} must be finite")
    open_store()
    with translated_store_errors(HOW_TO_REPEAT), _locked_model(model or model_name(candidate.study)) as home:
        numbers = home.versions_of_run(candidate.run_id)
        number, is_new = (numbers[0], False) if numbers else home.create_version(candidate)
        home.describe(number, candidate, description)
        is_champion, reason = home.compete(number, candidate, promote=promote)
        looks = 0 if _is_sqlite() else _MAX_LOOKS
        while is_champion and looks and home.is_overtaken(number):
            is_champion, reason = home.compete(number, candidate, promote=False)
            looks -= 1
    state = "is registered as" if is_new else "was registered already as"
    run = f"run {candidate.run_id} ({candidate.label})"
    text = f"{run} {state} {home.name} version {number}; {reason}"
    return Registration(home.name, number, is_new, is_champion, text)


@translated_store_errors(HOW_TO_REPEAT)
def has_logged_model(run_id: str) -> bool:
    """Whether `register_winner` finds a model of this run."""
    return bool(_whole_models(mlflow.MlflowClient(), run_id))


def read_registry(name: str | None = None) -> list[RegistryVersion]:
    """Every version of the model `name`, or of all models of this package, by model and number.

    Raises `ConfigError` if there is no such model or store, and `StoreUnavailable` if it stops answering.
    """
    with _existing_registry():
        names = _our_models() if name is None else [name]
        return [version for each in names for version in _Model(each).read_if_there().versions.values()]


def rollback(name: str) -> str:
    """Make the version of the model `name` that has the alias `previous` champion again, and say so in a sentence.

    The version that was champion becomes `previous` and is tagged `rolled_back`: registering its run again does not
    make it champion. A second rollback puts everything back, the tag too. Raises `ConfigError` if there is no such
    model or if no version that is there is `previous`, and `StoreUnavailable` if the registry does not answer.
    """
    with _existing_registry(), _locked_model(name) as model:
        before = model.read_if_there()
        champion, target = before.holder(CHAMPION), before.holder(PREVIOUS)
        if target is None or target == champion:
            raise ConfigError(f"`model` (={name}) must have a version to go back to: {before.why_no_previous()}")
        model.roll_back(champion, target)
    text = f"the champion of {name} is version {target.version} again"
    if champion is None:
        return f"{text}; there was none before"
    text += f", version {champion.version} is `previous`"
    if target.is_rolled_back:
        return f"{text}: the rollback is undone"
    return f"{text} and tagged {ROLLED_BACK}: only --promote or a second rollback makes it champion again"


class _Model:
    """A registered model, by its name; whether there is one shows when it is read."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._client = mlflow.MlflowClient()

    def read(self) -> RegisteredModel:
        """Read versions and aliases; a search gives versions without their aliases."""
        aliases = {key: int(of) for key, of in self._client.get_registered_model(self.name).aliases.items()}
        versions = {}
        for found in all_pages(self._client.search_model_versions, f"name = '{self.name}'", _PAGE):
            number = int(found.version)
            own = tuple(sorted(alias for alias, of in aliases.items() if of == number))
            created = datetime.fromtimestamp(found.creation_timestamp / 1000, timezone.utc)
            versions[number] = RegistryVersion(self.name, number, own, dict(found.tags), created, found.run_id or None)
        return RegisteredModel(dict(sorted(versions.items())), aliases)

    def read_if_there(self) -> RegisteredModel:
        """Read it; raises `ConfigError` with the names of those that are there if it is not."""
        try:
            return self.read()
        except MlflowException as error:
            if not is_unknown(error):
                raise
            there = ", ".join(_our_models()) or "none of this package"
            registry = redacted(mlflow.get_registry_uri())
            raise ConfigError(
                f"`model` (={self.name}) must be a model in the registry {registry}: it has {there}"
            ) from None

    def versions_of_run(self, run_id: str) -> list[int]:
        """The numbers of the versions that a run was registered as, ascending; deleted ones do not count."""
        query = f"name = '{self.name}' and run_id = '{run_id}'"
        return sorted(int(found.version) for found in all_pages(self._client.search_model_versions, query, _PAGE))

    def compete(self, number: int, candidate: Candidate, *, promote: bool) -> tuple[bool, str]:
        """Move `champion` to version `number` if the rule says so; tells whether it has it now, and the reason."""
        model = self.read()
        own, old = model.versions[number], model.holder(CHAMPION)
        moves, reason = choose_champion(own, candidate, model, promote=promote)
        if moves:
            if old is not None:
                self._set_alias(old, PREVIOUS)
            self._crown(own)
        return moves or CHAMPION in own.aliases, reason

    def is_overtaken(self, number: int) -> bool:
        """Whether a moment later another version is champion: a machine that decided when we did wrote after us."""
        time.sleep(_LOOK_AGAIN_S)
        return self.read().aliases.get(CHAMPION) != number

    def roll_back(self, champion: RegistryVersion | None, target: RegistryVersion) -> None:
        """Make `target` champion and `champion` previous, with a tag unless `target` had it."""
        if champion is not None and not target.is_rolled_back:
            self._client.set_model_version_tag(self.name, str(champion.version), ROLLED_BACK, "true")
        self._crown(target)
        if champion is None:
            self._client.delete_registered_model_alias(self.name, PREVIOUS)
        else:
            self._set_alias(champion, PREVIOUS)

    def _crown(self, own: RegistryVersion) -> None:
        """Move `champion` to a version, which then is not rolled back any more."""
        self._set_alias(own, CHAMPION)
        if ROLLED_BACK in own.tags:
            self._client.delete_model_version_tag(self.name, str(own.version), ROLLED_BACK)

    def _set_alias(self, version: RegistryVersion, alias: str) -> None:
        """Give a version an alias; of two machines that add one at once, MLflow's database refuses one, but once."""
        try:
            self._client.set_registered_model_alias(self.name, alias, str(version.version))
        except MlflowException:
            self._client.set_registered_model_alias(self.name, alias, str(version.version))

    def create_version(self, candidate: Candidate) -> tuple[int, bool]:
        """Register the run as a new version; gives its number, or the lower one that another machine made meanwhile."""
        client = self._client
        logged = _logged_model(client, candidate.run_id)
        what = "Ensembles of the first arm" if candidate.members else "The best runs"
        try:
            client.create_registered_model(self.name, description=f"{what} of the fnostab study {candidate.study}.")
        except MlflowException as error:
            if not has_code(error, codes.RESOURCE_ALREADY_EXISTS, codes.ALREADY_EXISTS):
                raise
        is_same_store = mlflow.get_registry_uri() == mlflow.get_tracking_uri()
        created = client.create_model_version(
            self.name,
            # A registry of its own does not know the tracking store's logged models, only where their files lie.
            source=f"models:/{logged.model_id}" if is_same_store else logged.artifact_location,
            run_id=candidate.run_id,
            tags=candidate.tags(),
            model_id=logged.model_id if is_same_store else None,
        )
        number = int(created.version)
        first = min([number, *self.versions_of_run(candidate.run_id)])
        if first < number:
            client.delete_model_version(self.name, str(number))
            return first, False
        # As `mlflow.register_model` does, so that the UI leads from the logged model to its versions.
        links = json.loads(logged.tags.get(MLFLOW_MODEL_VERSIONS, "[]"))
        links.append({"name": self.name, "version": number})
        client.set_logged_model_tags(logged.model_id, {MLFLOW_MODEL_VERSIONS: json.dumps(links)})
        return number, True

    def describe(self, number: int, candidate: Candidate, description: str) -> None:
        """Put the description and the tags on a version, also on one that was registered by hand or long ago."""
        if len(description) > _MAX_DESCRIPTION:
            description = description[: _MAX_DESCRIPTION - 1] + "…"
        self._client.update_model_version(self.name, str(number), description)
        there = self._client.get_model_version(self.name, str(number)).tags
        for key, value in candidate.tags().items():
            if there.get(key) != value:
                self._client.set_model_version_tag(self.name, str(number), key, value)


@contextmanager
def _locked_model(name: str) -> Iterator[_Model]:
    """The model, which one process of this machine at a time changes: a lock beside a sqlite store, or in the cache."""
    uri = mlflow.get_registry_uri()
    if _is_sqlite():
        with sqlite_lock(uri):
            yield _Model(name)
        return
    folder = cache_folder() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(f"{uri}\n{name}".encode()).hexdigest()[:16]
    with file_lock(folder / f"registry-{key}.lock", timeout_s=LOCK_TIMEOUT_S):
        yield _Model(name)


def _logged_model(client: mlflow.MlflowClient, run_id: str) -> LoggedModel:
    """The newest whole `model` of a run: one that was resumed may have logged it twice."""
    try:
        whole = _whole_models(client, run_id)
    except MlflowException as error:
        if not has_code(error, codes.RESOURCE_DOES_NOT_EXIST):
            raise
        raise ConfigError(
            f"`run` (={run_id}) must be a run in the tracking store {mlflow.get_tracking_uri()}"
        ) from None
    if not whole:
        raise ConfigError(f"`run` (={run_id}) must have a logged model named `model` to be registered: it has none")
    return max(whole, key=lambda model: model.creation_timestamp)


def _whole_models(client: mlflow.MlflowClient, run_id: str) -> list[LoggedModel]:
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}' AND name = 'model'")
    return [model for model in found if model.status == LoggedModelStatus.READY]


def _our_models() -> list[str]:
    search = mlflow.MlflowClient().search_registered_models
    return sorted(model.name for model in all_pages(search, f"name LIKE '{_PREFIX}%'", _PAGE))


def _is_sqlite() -> bool:
    return mlflow.get_registry_uri().startswith("sqlite:")


@contextmanager
def _existing_registry() -> Iterator[None]:
    """Refuse to look into a registry that does not exist, without making one, and say so if it stops answering."""
    open_store(must_exist=True)
    uri = mlflow.get_registry_uri()
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        raise ConfigError(f"`MLFLOW_REGISTRY_URI` (={redacted(uri)}) must name a model registry: there is none yet")
    with translated_store_errors(HOW_TO_REPEAT):
        yield
