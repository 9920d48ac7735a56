"""Packaging: metadata, dependencies, and the extras that parts of the project need."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="reasoning",
    version="0.1.0",
    description="Train language models that reason in several ways and choose the right one.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["reasoning", "reasoning.*", "experiments", "experiments.*"]),
    install_requires=[
        "jax>=0.10.2,!=0.11.1",  # 0.11.1: a small in-place update in a loop costs the whole buffer
        "flax>=0.12.8",
        "optax>=0.2.8",
        "sentencepiece>=0.2.1",
        "grain>=0.2.18",
        "absl-py>=2.3",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "scipy>=1.14",
        "tqdm>=4.67",
        "matplotlib>=3.10",
    ],
    extras_require={
        "test": ["pytest>=8.4", "pytest-xdist>=3.8", "hypothesis>=6.140", "ruff>=0.14"],
        # The TPU's compiler, which experiments.plan calls without a TPU. Where it is installed jax
        # looks for a TPU in every program: give it a virtual environment of its own.
        "tpu": ["jax[tpu]"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
