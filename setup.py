"""What pyproject.toml cannot say: a wheel brings MLproject, which lies outside of the package."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithProject(build_py):
    """Puts MLproject into the package, where `fnostab mlproject` looks for it if there is no clone."""

    def run(self) -> None:
        """Build the package, then copy the file."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "fnostab" / "mlproject"
            self.copy_file("MLproject", str(target / "MLproject"))


setup(cmdclass={"build_py": BuildWithProject})
