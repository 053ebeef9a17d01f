"""pyproject.toml describes the package, but for this: every package that is found, and one more from another folder."""

from setuptools import find_packages, setup

# `data/` lies beside the package in the repository, for people to look at; installed, it is `minicogvx/shipped`.
setup(packages=[*find_packages(include=["minicogvx", "minicogvx.*"]), "minicogvx.shipped"],
      package_dir={"minicogvx.shipped": "data"})
