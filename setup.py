"""Package metadata. The version stands in csd_plugin/version.py."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name="csd_plugin",
    version=re.search(r'__version__ = "(.+)"', (ROOT / "csd_plugin/version.py").read_text(encoding="utf-8"))[1],
    description="Contrastive self-distillation (CSD) for BasicSR: train a teacher, ship a narrow student",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=[*find_packages(include=["csd_plugin", "csd_plugin.*"]), "csd_plugin.options"],
    package_dir={"csd_plugin.options": "options"},
    package_data={
        "csd_plugin": ["pretrained/*"],
        "csd_plugin.evaluation": ["report.html"],
        "csd_plugin.options": ["*.yml", "*/*.yml"],
    },
    python_requires=">=3.10,<3.13",
    install_requires=[
        "basicsr>=1.4.2",
        "lmdb>=1.4",
        "mmengine>=0.10",
        "numpy>=1.24",
        "opencv-python>=4.8",
        "pillow>=10.1",
        "pydantic>=2.5,<3",
        "pyyaml>=6.0",
        "ruamel.yaml>=0.18",
        "safetensors>=0.4",
        "scikit-image>=0.22",
        "setuptools",
        "torch>=2.4",
        "torchvision>=0.19",
        "tqdm>=4.60",
    ],
    extras_require={
        "dev": [
            "matplotlib",
            "mkdocs",
            "mypy",
            "onnx",
            "onnxruntime",
            "pre-commit",
            "pytest",
            "ruff",
            "selenium",
            "spandrel",
        ],
        "onnx": ["onnx", "onnxruntime"],
        "bench": ["matplotlib", "onnx", "onnxruntime"],
    },
    entry_points={
        "console_scripts": ["basicsr = csd_plugin.cli:main"],
        "basicsr.plugins": ["csd = csd_plugin"],
    },
)
