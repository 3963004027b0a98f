"""Maps the folders integrations/ and baselines/ into the acre_rag package; all else is in pyproject.toml."""

from setuptools import find_packages, setup

FOLDERS = {"acre_rag": "acre_rag", "acre_rag.integrations": "integrations", "acre_rag.baselines": "baselines"}
packages = [
    name
    for package, folder in FOLDERS.items()
    for name in [package, *(f"{package}.{sub}" for sub in find_packages(folder))]
]
setup(packages=packages, package_dir=FOLDERS)
