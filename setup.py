"""The packages: all of dnc/, and the folders beside it that are packaged inside it (dnc.passes, dnc.targets, ...)."""

from setuptools import find_packages, setup

BESIDE = {"dnc.passes": "passes", "dnc.targets": "targets", "dnc.cfg": "cfg", "dnc.embed": "embed"}

packages = [name for name in find_packages(include=["dnc", "dnc.*"]) if name.partition(".")[0] == "dnc"]
for package, folder in BESIDE.items():
    inner = [] if package == "dnc.cfg" else find_packages(folder)
    packages += [package, *(f"{package}.{name}" for name in inner)]

setup(packages=packages, package_dir=BESIDE)
