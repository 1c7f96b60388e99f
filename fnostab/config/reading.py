"""How a measured scan's file is read: what it leaves open, and what is wrong in it."""

import re
from typing import Final, Literal

from pydantic import Field, field_validator

from fnostab.config.section import Section, checked_file_name, newer

#: The eight orientations in which positions can lie to the patterns; axes are swapped first.
Orientation = Literal[
    "as_given",
    "flip_rows",
    "flip_columns",
    "flip_both",
    "swap",
    "swap+flip_rows",
    "swap+flip_columns",
    "swap+flip_both",
]

#: Metres in a unit of length.
METRES: Final = {"m": 1.0, "mm": 1e-3, "um": 1e-6, "nm": 1e-9, "angstrom": 1e-10}


class ReadingConfig(Section):
    """What is said of a scan's file besides its name. The defaults take the file at its word."""

    format: str = Field(
        "auto", description="the file's format; `fnostab data formats` lists them", json_schema_extra=newer("auto")
    )
    paths: str = Field(
        "",
        description="names in any HDF5 or NPZ file, patterns=NAME,x=NAME,y=NAME,..., a preset's name or a YAML file",
        json_schema_extra=newer(""),
    )
    positions: str = Field(
        "",
        description="file with positions and probe, where the patterns lie alone in theirs",
        json_schema_extra=newer(""),
    )
    unit: Literal["auto", "px", "m", "mm", "um", "nm", "angstrom"] = Field(
        "auto", description="what the positions are in; auto: as the format says", json_schema_extra=newer("auto")
    )
    orient: Orientation = Field(
        "as_given",
        description="how the positions' axes are turned to the patterns': swap, then flip",
        json_schema_extra=newer("as_given"),
    )
    object_pixel_m: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="pixel of the object in metres at the file's pattern size; else from energy, distance and detector",
        json_schema_extra=newer(None),
    )
    energy_keV: float | None = Field(
        None, gt=0, lt=1e6, description="photon energy, where the file has none", json_schema_extra=newer(None)
    )
    distance_m: float | None = Field(
        None, gt=0, lt=1e6, description="object to detector, where the file has none", json_schema_extra=newer(None)
    )
    detector_pixel_m: float | None = Field(
        None, gt=0, lt=1, description="detector pixel, where the file has none", json_schema_extra=newer(None)
    )
    fft_order: Literal["auto", "centred", "corner"] = Field(
        "auto",
        description="where the patterns have zero frequency; auto: as the format says",
        json_schema_extra=newer("auto"),
    )
    center: str = Field(
        "",
        description="row,column of zero frequency on the detector, or auto: the light's centre; empty: the middle",
        json_schema_extra=newer(""),
    )
    bin: int = Field(
        1, ge=1, le=64, description="so many by so many detector pixels are added up", json_schema_extra=newer(1)
    )
    mask: str = Field("", description="file with the detector's mask (NPY, NPZ or HDF5)", json_schema_extra=newer(""))
    mask_value: float | None = Field(None, description="counts that mean a bad pixel", json_schema_extra=newer(None))
    bad_pixels: Literal["refuse", "mask", "clip"] = Field(
        "refuse",
        description="NaN, negative counts and an integer type's largest value: refuse or mask them; clip: as mask, but"
        " negative counts are 0",
        json_schema_extra=newer("refuse"),
    )
    skip_frames: str = Field(
        "", description="frames to leave out, counted from 0: 3,10-12", json_schema_extra=newer("")
    )
    scan_index: int | None = Field(
        None,
        ge=0,
        le=10**9,
        description="which of a file's several scans, where its scan_index tells them apart",
        json_schema_extra=newer(None),
    )
    modes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="probe modes that are used; null: all that hold over a hundredth of the light",
        json_schema_extra=newer(None),
    )
    photons_per_pattern: float | None = Field(
        None,
        gt=0,
        le=1e15,
        description="counts that the mean pattern of the whole detector holds, for normalised patterns",
        json_schema_extra=newer(None),
    )

    @field_validator("format", "paths", "positions", "mask")
    @classmethod
    def _named_file(cls, value: str) -> str:
        return checked_file_name(value)

    @field_validator("center")
    @classmethod
    def _center(cls, value: str) -> str:
        if value not in ("", "auto") and not re.fullmatch(r"\d{1,6},\d{1,6}", value):
            raise ValueError("must be auto, or row,column in whole pixels")
        return value

    @field_validator("skip_frames")
    @classmethod
    def _skip_frames(cls, value: str) -> str:
        if value and not re.fullmatch(r"\d{1,9}(-\d{1,9})?(,\d{1,9}(-\d{1,9})?)*", value):
            raise ValueError("must be numbers and ranges of frames, as 3,10-12")
        return value

    def skipped(self, n: int) -> list[int]:
        """The frames of `n` to leave out; raises ValueError for one that is not there."""
        frames: set[int] = set()
        for part in filter(None, self.skip_frames.split(",")):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            if not numbers or numbers[-1] >= n:
                raise ValueError(f"`data.skip_frames` (={part}) must be among the frames 0 to {n - 1}")
            frames.update(numbers)
        return sorted(frames)
