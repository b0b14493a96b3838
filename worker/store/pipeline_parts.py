"""The components of a directory that is imported: where each lies, and how it is written into the store."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from worker.store.component_rules import rule_for
from worker.store.errors import BadCheckpoint
from worker.store.json_files import read_json_object
from worker.store.weight_files import WeightFiles, copy_weights, find_weights


@dataclass(frozen=True, slots=True)
class Part:
    """One component of the directory: where it lies, and what of it is taken."""

    name: str
    class_name: str
    folder: Path
    config: Mapping[str, object]
    weights: WeightFiles | None

    @property
    def further_files(self) -> list[str]:
        """Names of those that are taken beside its configuration and its weights."""
        rule = rule_for(self.name, self.class_name, self.name)
        return [name for name in rule.files if name != rule.config and (self.folder / name).is_file()]


def read_part(name: str, class_name: str, folder: Path, where: str, variant: str | None) -> Part:
    """Look at one component and check its configuration, which knows its class better than an old index does."""
    rule = rule_for(name, class_name, where)
    if not (folder / rule.config).is_file():
        raise BadCheckpoint(f"{where}: {name} lacks {rule.config}")
    config = read_json_object(folder, rule.config, f"{where}: {name}")
    if rule.library == "diffusers":
        class_name = str(config.get("_class_name", class_name))
        rule = rule_for(name, class_name, where)
    rule.check(config, where)
    weights = find_weights(folder, rule.weights, str(folder), variant) if rule.weights else None
    return Part(name, class_name, folder, config, weights)


def write_part(part: Part, target: Path) -> None:
    rule = rule_for(part.name, part.class_name, part.name)
    target.mkdir()
    (target / rule.config).write_text(json.dumps(part.config, indent=2) + "\n", encoding="utf-8")
    for name in part.further_files:
        shutil.copyfile(part.folder / name, target / name)
    if part.weights is not None and rule.weights is not None:
        copy_weights(part.weights, target, rule.weights)
