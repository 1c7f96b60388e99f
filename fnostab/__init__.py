"""Find out which Fourier-neural-operator network trains stably on X-ray ptychography data, and ship the winner."""

__version__ = "0.1.0"
