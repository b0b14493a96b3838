"""Prints what pyproject.toml requires for the extras named as arguments, for a layer of dependencies below the code."""

import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
for requirement in (
    *project["dependencies"],
    *(line for extra in sys.argv[1:] for line in project["optional-dependencies"][extra]),
):
    print(requirement)
