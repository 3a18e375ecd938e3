"""Package metadata of solo-minent."""

import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "solo_minent" / "__init__.py").read_text(), re.MULTILINE
).group(1)

EXTRAS = {
    # Before 2.3 an image may overflow a buffer of DALI's (CVE-2026-65148).
    "dali": ["nvidia-dali-cuda130>=2.3; platform_system == 'Linux'"],
    "umap": ["umap-learn>=0.5.5"],
    "h5": ["h5py>=3.10"],
    "detect": ["pycocotools>=2.0.7"],
    "dev": [
        "hypothesis>=6.100",
        "pytest>=8",
        "pytest-timeout>=2.3.1",
        "pytest-xdist>=3.6",
        "ruff>=0.6",
        "selenium>=4.20",
    ],
}
EXTRAS["all"] = sorted({package for packages in EXTRAS.values() for package in packages})


class BuildWithZoo(build_py):
    """Puts the zoo into the package; an editable install reads it in its place."""

    KEPT = ("models.yaml", "checkpoints/**/*", "results/zoo-*.csv")

    def run(self) -> None:
        super().run()
        for source, copy in self._files().items():
            self.mkpath(str(Path(copy).parent))
            shutil.copyfile(ROOT / source, copy)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *self._files().values()]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), *self._sources()]

    def _sources(self) -> list[str]:
        found = [path for pattern in self.KEPT for path in sorted((ROOT / "zoo").glob(pattern))]
        return [str(path.relative_to(ROOT)) for path in found if path.is_file()]

    def _files(self) -> dict[str, str]:
        """What is copied, and where to."""
        if getattr(self, "editable_mode", False):
            return {}
        built = Path(self.build_lib) / "solo_minent"
        return {path: str(built / path) for path in self._sources()}


setup(
    name="solo-minent",
    version=VERSION,
    description="MinEnt, MEC, TWIST and CorInfoMax as solo-learn methods",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.10",
    packages=find_packages(include=["solo_minent", "solo_minent.*"]),
    package_data={"solo_minent": ["recipes/**/*.yaml", "data/class_lists/*.txt", "report/*.html"]},
    # scripts/test.sh --oldest runs on these lower bounds. Some are advisories, in full in
    # scripts/advisories.csv: before torch 2.10, weights_only can be made to run code or to corrupt
    # memory (CVE-2025-32434, CVE-2026-24747); before Pillow 13, which Python 3.10 has not got, a
    # JPEG may overflow its decoder's buffer (CVE-2026-112403); lightning 2.6.2 and 2.6.3 steal
    # credentials (GHSA-w37p-236h-pfx3). timm 1.0.9 has ResNets of any width,
    # torchmetrics 1.2 names the backend of detection metrics, scipy 1.12 has sparse.diags_array,
    # rich 14.3 leaves a log without bars empty, safetensors 0.6.2 calls a full disk an OSError.
    # Before urllib3 2.7 a server may make its client unpack without end (CVE-2026-44432).
    # solo-learn itself pins torch 1.9.1 and is installed with --no-deps; what it imports is here.
    install_requires=[
        "torch>=2.10",
        "torchvision>=0.25",
        "lightning>=2.6.1,!=2.6.2,!=2.6.3",
        "torchmetrics>=1.2",
        "timm>=1.0.9",
        "hydra-core>=1.3.7",
        "numpy>=1.24",
        "pillow>=13.0; python_version >= '3.11'",
        "pillow>=12.3; python_version < '3.11'",
        "pandas>=2.0",
        "scipy>=1.12",
        "scikit-learn>=1.3",
        "threadpoolctl>=3.1",
        "matplotlib>=3.7",
        "jinja2>=3.1.6",
        "psutil>=5.9",
        "rich>=14.3",
        "safetensors>=0.6.2",
        "einops>=0.6",
        "urllib3>=2.7",
    ],
    extras_require=EXTRAS,
    cmdclass={"build_py": BuildWithZoo},
    entry_points={"console_scripts": ["solo-minent = solo_minent.cli:main"]},
)
