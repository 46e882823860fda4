"""Package metadata of ncf; requirements-cpu.txt pins a set for machines without an NVIDIA GPU."""

import os
import re
from itertools import chain
from pathlib import Path

from setuptools import Extension, find_packages, setup

here = Path(__file__).parent
version = re.search(
    r'__version__ = "(.+)"', (here / "ncf/utils/version.py").read_text(encoding="utf-8")
).group(1)

extras = {
    "plots": ["matplotlib>=3.8"],
    "als": ["implicit>=0.7.2"],
    "serve": ["fastapi>=0.115", "uvicorn[standard]>=0.40", "prometheus-client>=0.20"],
    "tune": ["optuna>=4.4"],
    "onnx": ["onnx>=1.19", "onnxscript>=0.5", "onnxruntime>=1.22"],
    "test": [
        "pytest>=8",
        "pytest-benchmark>=5",
        "pytest-cov>=5",
        "pytest-randomly>=3",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "pandas>=2.2",
        "polars>=1",
        "scipy>=1.11",
        "httpx>=0.27",
        "playwright>=1.48",
        "triton>=3.4; platform_system == 'Linux'",
    ],
    "docs": ["sphinx>=8", "myst-parser>=4", "furo>=2024.8"],
}
# Without a C compiler ncf works too, and trains and ranks more slowly.
kernel = Extension(
    "ncf.kernels._native",
    ["ncf/kernels/native.c"],
    depends=[
        f"ncf/kernels/{name}.h"
        for name in ("crew", "draw", "lanes", "learn", "rank", "rows", "score", "sift", "train")
    ],
    extra_compile_args=["-O3", "-fno-math-errno", "-Wno-psabi", "-pthread"],
    extra_link_args=["-pthread"],
    libraries=["m"] if os.name == "posix" else [],
    py_limited_api=True,  # the library uses nothing of Python: one wheel for all versions
    optional=True,
)
extras["dev"] = [
    *chain.from_iterable(extras.values()),
    "mypy>=1.14",
    "import-linter>=2.3",
    "pyright>=1.1.390",
    "build>=1.2",
    "ruff>=0.9",
    "pre-commit>=4",
]

setup(
    name="ncf",
    version=version,
    description="Neural Collaborative Filtering over TorchRec embedding tables",
    long_description=(here / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-3-Clause",
    python_requires=">=3.10",
    packages=find_packages(include=["ncf", "ncf.*"]),
    package_data={"ncf": ["py.typed", "serve/page/*"]},
    ext_modules=[kernel],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
    install_requires=[
        "torch==2.13.*",
        # TorchRec asks for fbgemm-gpu, the CUDA build, which exists for Linux alone.
        "torchrec==1.8.*; platform_system == 'Linux'",
        "fbgemm-gpu==1.8.*; platform_system == 'Linux'",
        "numpy>=1.26",
        "pyarrow>=17",
        "safetensors>=0.5",
        "tqdm>=4.66",
    ],
    extras_require=extras,
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
