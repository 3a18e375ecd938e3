"""Package metadata of solo-minent."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "solo_minent" / "__init__.py").read_text(), re.MULTILINE
).group(1)

EXTRAS = {
    "dali": ["nvidia-dali-cuda130>=1.50; platform_system == 'Linux'"],
    "umap": ["umap-learn>=0.5.5"],
    "h5": ["h5py>=3.10"],
    "detect": ["pycocotools>=2.0.7"],
    "dev": ["pytest>=8", "pytest-timeout>=2.3", "ruff>=0.6", "selenium>=4.20"],
}
EXTRAS["all"] = sorted({package for packages in EXTRAS.values() for package in packages})

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
    # torch 2.6 is the first whose weights_only cannot be made to run code (CVE-2025-32434).
    # solo-learn itself pins torch 1.9.1 and is installed with --no-deps; what it imports is here.
    install_requires=[
        "torch>=2.6",
        "torchvision>=0.21",
        "lightning>=2.6",
        "torchmetrics>=1.0",
        "timm>=1.0",
        "hydra-core>=1.3",
        "numpy",
        "pillow",
        "pandas>=2.0",
        "scipy",
        "scikit-learn>=1.3",
        "threadpoolctl",
        "matplotlib>=3.7",
        "jinja2>=3.1",
        "psutil>=5.9",
        "rich>=13",
        "safetensors>=0.4",
        "einops",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["solo-minent = solo_minent.cli:main"]},
)
