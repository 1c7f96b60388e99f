"""Far-field optics: propagation, probes, photon counts.

One convention everywhere: the exit wave is probe times object patch, the far field its orthonormal FFT, and patterns
are stored with zero frequency at the array centre, index N // 2.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Complex, Complex64, Float, Float32, Float64, Inexact, Shaped
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf

from fnostab.formats.probe import read_probe

Probe = Complex64[NDArray[np.complex64], "N N"]


def far_field_amplitude(
    patches: Inexact[torch.Tensor, "... N N"], probe: Inexact[torch.Tensor, "..."]
) -> Float[torch.Tensor, "... N N"]:
    """Propagate exit waves `probe * patches` to the far field and return the amplitude.

    `patches` is complex, or real where it has no phase; `probe` (N, N) or anything that broadcasts against it. Returns
    `|FFT2(probe * patch)|` with orthonormal scaling and zero frequency at the centre, so that the energy of exit wave
    and pattern agree (Parseval). Differentiable in both arguments.
    """
    amplitude = torch.fft.fft2(probe * patches, norm="ortho").abs()
    centred: torch.Tensor = torch.fft.fftshift(amplitude, dim=(-2, -1))  # half the bytes of the complex field
    return centred


@dataclass(frozen=True, eq=False)
class Beam:
    """What lights the object and what sees it: the modes of the probe, and the good pixels of the detector.

    `modes` are complex (N, N), the strongest first as a rule, or (n, N, N) if they are shifted for each of n patches;
    `mask` is bool (N, N), zero frequency at N // 2, False at pixels that count nowhere, or None if all count. Modelled
    amplitudes are 0 there, as measured ones are: so nothing that compares the two needs to know of the mask.
    """

    modes: tuple[Inexact[torch.Tensor, "*n N N"], ...]
    mask: Bool[torch.Tensor, "N N"] | None = None

    @classmethod
    def of(cls, probe: "Illumination", mask: Bool[NDArray[np.bool_], "N N"] | None = None) -> "Beam":
        """Make a beam of a probe (N, N), or of its modes (k, N, N); a `Beam` is taken as it is."""
        if isinstance(probe, Beam):
            return probe
        modes = probe if isinstance(probe, torch.Tensor) else torch.from_numpy(np.array(probe))
        return cls(
            tuple(modes) if modes.ndim == 3 else (modes,), None if mask is None else torch.from_numpy(np.array(mask))
        )

    @property
    def probe(self) -> Inexact[torch.Tensor, "..."]:
        """The first mode."""
        return self.modes[0]

    @property
    def weight(self) -> Inexact[torch.Tensor, "..."]:
        """The probe that patches are stitched with, complex (N, N): of several modes sqrt(sum_k |P_k|^2).

        The least-squares object of the exit waves P_k O_j of all modes k and patches j, sum conj(P_k) P_k O_j over sum
        |P_k|^2, is that of this one.
        """
        if len(self.modes) == 1:
            return self.modes[0]
        total: torch.Tensor = torch.linalg.vector_norm(torch.stack(self.modes), dim=0)
        return total.to(self.probe.dtype)

    def amplitude(self, patches: Inexact[torch.Tensor, "... N N"]) -> Float[torch.Tensor, "... N N"]:
        """Propagate patches to the detector and return the amplitude there: sqrt(sum_k |FFT2(P_k O)|^2).

        The intensities of modes add up (Thibault and Menzel 2013, Nature 494, 68); that of one is
        `far_field_amplitude`. Masked pixels are 0. Differentiable in patches and modes, also where there is no light.
        """
        each = [far_field_amplitude(patches, mode) for mode in self.modes]
        total: torch.Tensor = each[0] if len(each) == 1 else torch.linalg.vector_norm(torch.stack(each), dim=0)
        return total if self.mask is None else total.masked_fill(~self.mask, 0)

    def alone(self) -> Float[torch.Tensor, "N N"]:
        """The amplitude (N, N) at the detector without an object."""
        return self.amplitude(torch.ones_like(self.probe))

    def detached(self, device: torch.device | str = "cpu") -> "Beam":
        """Return this beam on `device`, without gradients."""
        modes = tuple(mode.detach().to(device) for mode in self.modes)
        return Beam(modes, None if self.mask is None else self.mask.to(device))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """What files hold: `probe` (N, N), `modes` (k, N, N) if there are several, and `mask`, if there is one."""
        beam = self.detached()
        found = {"probe": beam.probe.numpy()}
        if len(beam.modes) > 1:
            found["modes"] = torch.stack(beam.modes).numpy()
        return found if beam.mask is None else found | {"mask": beam.mask.numpy()}


#: A `Beam`; or a probe, complex (N, N), or its modes, (k, N, N), before a detector without bad pixels.
Illumination = Beam | Inexact[NDArray[Any], "*k _ _"] | Inexact[torch.Tensor, "*k _ _"]


def fourier_shift(
    field: Complex[torch.Tensor, "... N M"], shift_px: Float[torch.Tensor, "... 2"]
) -> Complex[torch.Tensor, "... N M"]:
    """Shift periodic fields by any fraction of a pixel; the content moves by `+shift_px`.

    `shift_px` is in (row, column); leading axes broadcast. Multiplies the spectrum by exp(-2 pi i k.s) (Fourier shift
    theorem): unitary, undone exactly by the opposite shift, equal to `torch.roll` for whole pixels and exact
    interpolation of band-limited fields. Differentiable in both arguments.
    """
    shift = shift_px.to(device=field.device, dtype=field.real.dtype)
    rows, cols = (_phase_ramp(shift[..., axis], field.shape[axis - 2]) for axis in (0, 1))
    shifted: torch.Tensor = torch.fft.ifft2(torch.fft.fft2(field) * rows[..., :, None] * cols[..., None, :])
    return shifted


def _phase_ramp(shift_px: torch.Tensor, length: int) -> torch.Tensor:
    """exp(-2 pi i k s) of shifts (...) at the `length` FFT frequencies k, in FFT order: (..., length)."""
    k = torch.fft.fftfreq(length, dtype=shift_px.dtype, device=shift_px.device)
    angle = -2 * torch.pi * shift_px[..., None] * k
    return torch.polar(torch.ones_like(angle), angle)


def disk(N: int, radius_px: float | None = None) -> Probe:
    """Make a flat disk with a smooth edge, the probe that leaves the twin image possible.

    It is real and at most 1, half of it at `radius_px` (default 15 px at N = 64, in proportion) from the middle, with
    an error-function edge of N / 64 px. Raises ValueError unless 0 < radius_px <= N / 4: beyond that the pattern no
    longer samples the exit wave's autocorrelation (Miao, Sayre and Chapman 1998, oversampling at least 2 along each
    axis).
    """
    radius, edge = _radius(N, radius_px), N / 64
    amplitude = 0.5 * (1 - erf((_distance_px(N) - radius) / (np.sqrt(2) * edge)))
    return np.asarray(amplitude, dtype=np.complex64)


def curved_disk(N: int, radius_px: float | None = None, curvature_rad: float = 8.0) -> Probe:
    """Make the default probe: the smooth `disk` with a quadratic phase, as a defocused lens gives.

    The phase is `curvature_rad * (r / radius_px)**2`, zero in the middle and `curvature_rad` at the rim. The curvature
    tells an object from its twin, which a real centrosymmetric probe cannot. Raises ValueError as `disk` does.
    """
    radius = _radius(N, radius_px)
    phase = curvature_rad * (_distance_px(N) / radius) ** 2
    return np.asarray(disk(N, radius) * np.exp(1j * phase), dtype=np.complex64)


def defocused(
    N: int,
    radius_px: float | None = None,
    curvature_rad: float = 8.0,
    aperture: Literal["annular", "square"] = "annular",
) -> Probe:
    """Make the beam of an aperture propagated out of focus: structured amplitude, nearly quadratic phase.

    The aperture is the beam's spectrum: `annular`, a zone plate with a central stop of half its diameter, or `square`,
    a pair of slits or mirrors. A quadratic phase over it, exp(i pi D q^2) (Fresnel propagation, paraxial; q in cycles
    per pixel), spreads the focus: by geometric optics the wave of frequency q comes to lie at D q, so the beam reaches
    `radius_px` (default 15 px at N = 64, in proportion), with a phase of about `curvature_rad` there, where the
    aperture's radius is curvature_rad / (pi radius_px) and D = radius_px / that. Diffraction rings lie inside, and weak
    ones outside. The largest amplitude is 1. Raises ValueError as `disk` does, and unless the aperture lies within the
    grid's frequencies, 0 < |curvature_rad| < pi radius_px / 2.
    """
    radius = _radius(N, radius_px)
    limit = np.pi * radius / 2
    if not 0 < abs(curvature_rad) < limit:
        rule = f"must be between 0 and {limit:.3g} in magnitude at a radius of {radius:g} px"
        raise ValueError(f"`curvature_rad` (={curvature_rad:g}) {rule}")
    largest = abs(curvature_rad) / (np.pi * radius)
    q = np.fft.fftfreq(N)
    rows, columns = q[:, None], q[None, :]
    if aperture == "annular":
        distance = np.hypot(rows, columns)
        open_to = _soft_edge(largest - distance, N) * _soft_edge(distance - largest / 2, N)
    else:
        open_to = _soft_edge(largest - np.maximum(abs(rows), abs(columns)), N)
    # The focus lies in the middle of the array, (N - 1) / 2, as that of the other probes.
    middle = np.exp(-2j * np.pi * (rows + columns) * (N - 1) / 2)
    spread = np.exp(1j * np.pi * np.sign(-curvature_rad) * (radius / largest) * (rows**2 + columns**2))
    beam = np.fft.ifft2(open_to * spread * middle)
    return np.asarray(beam / abs(beam).max(), dtype=np.complex64)


def _soft_edge(distance: NDArray[Any], N: int) -> NDArray[Any]:
    """0 to 1 over about a frequency step of an N x N grid, where `distance`, in cycles per pixel, passes 0."""
    return np.asarray(0.5 * (1 + erf(distance * N)))


def from_npz(path: str | Path) -> Probe:
    """Read a probe, complex64 (N, N), from a file; `formats.probe.read_probe` says from which keys, and raises."""
    return read_probe(path)


def energy(fields: Complex64[NDArray[np.complex64], "*shape N N"]) -> Float64[NDArray[np.float64], "*shape"]:
    """Sum |field|^2 over the last two axes of complex (..., N, N)."""
    return np.asarray(np.square(np.abs(fields), dtype=np.float64).sum(axis=(-2, -1)))


def photon_scale(amplitudes: ArrayLike | torch.Tensor, nphotons: float) -> float:
    """Find the scale s at which the mean pattern holds `nphotons` counts.

    `amplitudes` is real (..., N, N), the leading axes counting patterns; the mean over patterns of sum (s A)^2 becomes
    `nphotons`. Raises ValueError if `nphotons` is not positive, or the amplitudes are not finite or all zero.
    """
    if not nphotons > 0:
        raise ValueError(f"`nphotons` (={nphotons}) must be > 0")
    amplitudes = np.asarray(amplitudes)
    patterns = amplitudes.size // (amplitudes.shape[-2] * amplitudes.shape[-1])
    mean = float(np.square(amplitudes, dtype=np.float64).sum()) / patterns
    if not np.isfinite(mean) or mean <= 0:
        raise ValueError(f"`amplitudes` (=mean energy {mean:g}) must be finite and not zero everywhere")
    return float(np.sqrt(nphotons / mean))


def measured_scale(counts: Float32[NDArray[np.float32], "n N N"], probe: Illumination) -> float:
    """Find the scale at which an object of ones gives as many counts as measured patterns (n, N, N) hold on average.

    Counts at masked pixels are 0, and only the light that the good ones would see is compared with them.
    """
    beam, mean = Beam.of(probe), float(counts.sum(dtype=np.float64)) / len(counts)
    if beam.mask is not None:
        return photon_scale(beam.alone(), mean)
    # By Parseval the exit waves hold the pattern's energy; `photon_scale` takes the mean over the modes.
    return photon_scale(np.abs(torch.stack(beam.modes).numpy()), mean / len(beam.modes))


def poisson_counts(
    amplitudes: ArrayLike | torch.Tensor, scale: float, rng: np.random.Generator
) -> Float32[NDArray[np.float32], "..."]:
    """Draw photon counts, Poisson distributed with mean `(scale * amplitudes)**2`.

    Rates and draws are 64-bit, and counts above 2^24 in one pixel are rounded to float32 (a relative error of at most
    6e-8, far under the photon noise there).
    """
    rates = np.square(np.asarray(amplitudes, dtype=np.float64) * scale)
    return rng.poisson(rates).astype(np.float32)


def crop_probe(probe: Shaped[NDArray[Any], "M M"], N: int) -> Probe:
    """Resample a probe to the coarser grid that goes with the central N x N of its patterns.

    Returns the central N x N of its orthonormal spectrum, with no further factor, transformed back; M >= N. The field
    of view stays, pixels grow by M / N, so positions in pixels shrink by N / M. In real space the value at pixel n is M
    / N times the band-limited probe at pixel n M / N of the old grid; with that, the N x N model of an object sampled
    at those points gives the cropped patterns themselves (exactly, if the exit wave's band fits the crop).
    """
    rows, cols = _central(probe.shape, N)
    spectrum = np.fft.fftshift(np.fft.fft2(np.asarray(probe, dtype=np.complex128), norm="ortho"))
    cropped = np.fft.ifftshift(spectrum[rows, cols])
    return np.asarray(np.fft.ifft2(cropped, norm="ortho"), dtype=np.complex64)


def resample_probe(probe: Shaped[NDArray[Any], "M M"], N: int) -> Complex64[NDArray[np.complex64], "{N} {N}"]:
    """Bring a probe to N x N pixels over the same field of view: `crop_probe`, or its inverse where N > M."""
    M = len(probe)
    if N <= M:
        return crop_probe(probe, N)
    rows, cols = _central((N, N), M)
    spectrum = np.zeros((N, N), np.complex128)
    spectrum[rows, cols] = np.fft.fftshift(np.fft.fft2(np.asarray(probe, dtype=np.complex128), norm="ortho"))
    return np.asarray(np.fft.ifft2(np.fft.ifftshift(spectrum), norm="ortho"), dtype=np.complex64)


def crop_patterns(counts: Shaped[NDArray[Any], "*n M M"], N: int) -> Shaped[NDArray[Any], "*n {N} {N}"]:
    """Cut the central N x N out of centred patterns (..., M, M), as a view, keeping zero frequency at N // 2."""
    rows, cols = _central(counts.shape[-2:], N)
    return counts[..., rows, cols]


def _central(shape: tuple[int, ...], N: int) -> tuple[slice, slice]:
    """Slices of the central N x N, index M // 2 going to N // 2."""
    if not 1 <= N <= min(shape):
        raise ValueError(f"`N` (={N}) must be between 1 and {min(shape)}, the size of the patterns")
    rows, cols = (slice(M // 2 - N // 2, M // 2 - N // 2 + N) for M in shape)
    return rows, cols


def _distance_px(N: int) -> NDArray[np.float64]:
    """Distance of every pixel from the middle of the array, which is also the middle of the stitched tile."""
    axis = np.arange(N) - (N - 1) / 2
    return np.asarray(np.hypot(axis[:, None], axis[None, :]))


def _radius(N: int, radius_px: float | None) -> float:
    radius = 15 / 64 * N if radius_px is None else float(radius_px)
    if not 0 < radius <= N / 4:
        raise ValueError(f"`radius_px` (={radius:g}) must be > 0 and <= {N / 4:g}, a quarter of N={N}")
    return radius
