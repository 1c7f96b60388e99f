"""Pictures on their way to a run: files until the store has them, and there once."""

import tempfile
from collections import deque
from pathlib import Path
from typing import Final

import mlflow
import numpy as np
from mlflow.tracking.multimedia import compress_image_size, convert_to_pil_image
from mlflow.utils.mlflow_tags import MLFLOW_LOGGED_IMAGES
from numpy.typing import NDArray

from fnostab.io.files import atomic_write, remove_partial

#: Where MLflow keeps pictures: each as it is, and as a small copy, in names that join key, step, time and a number.
_FOLDER: Final = "images"


class PictureQueue:
    """Pictures of one run that wait in `folder` until they are written, over kills and restarts."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str, folder: Path, *, resumed: bool) -> None:
        self._client = client
        self._run_id = run_id
        self._folder = folder
        self._resumed = resumed
        remove_partial(folder)  # pathlib finds hidden files, too
        self._waiting = deque(sorted(folder.glob("*.npy")))
        #: Names without endings of the pictures that are there, by key and step; None until they were looked up.
        self._stored: dict[str, str] | None = None if resumed else {}

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, image: NDArray[np.uint8], key: str, step: int) -> None:
        """Let an (H, W, 3) picture wait."""
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{step:09d}+{key}.npy"
        with atomic_write(path) as partial:
            np.save(partial, image)
        if path not in self._waiting:
            self._waiting.append(path)

    def write(self) -> None:
        """Write all of them; raises what the client raises, and those that are left go on waiting."""
        while self._waiting:
            self._write(self._waiting[0])
            self._waiting.popleft().unlink()

    def _write(self, path: Path) -> None:
        step, _, key = path.stem.partition("+")
        image = np.load(path, allow_pickle=False)
        there = self._there().get(f"{key}+step+{int(step)}")
        if there is None:
            known, self._stored = self._stored, None  # if this fails, a part of it may be there
            self._client.log_image(self._run_id, image, key=key, step=int(step), synchronous=True)
            if not self._resumed:  # else it may be drawn again: it waited here, and belongs to the end of the run
                self._stored = known
            return
        # It is there, or a part of it: written again as MLflow would, but under its name, else it would be there twice.
        picture = convert_to_pil_image(image)
        with tempfile.TemporaryDirectory() as folder:
            for ending, version in ((".png", picture), ("+compressed.webp", compress_image_size(picture))):
                file = Path(folder) / (there + ending)
                version.save(file)
                self._client.log_artifact(self._run_id, str(file), _FOLDER)
        self._client.set_tag(self._run_id, MLFLOW_LOGGED_IMAGES, True)

    def _there(self) -> dict[str, str]:
        if self._stored is None:
            names = (Path(entry.path).name for entry in self._client.list_artifacts(self._run_id, _FOLDER))
            stems = (name.removesuffix(".png") for name in names if name.endswith(".png"))
            self._stored = {stem.partition("+timestamp")[0]: stem for stem in stems}
        return self._stored
