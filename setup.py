"""Adds what pyproject.toml can't say: the folder `configs/` goes into the wheel as `tridex/configs/`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["actors*", "pipelines*", "tridex*"]), "tridex.configs"],
    package_dir={"tridex.configs": "configs"},
)
