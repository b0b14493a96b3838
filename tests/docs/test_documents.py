"""What the documents name is there: files, Redis keys, settings, make targets."""

import re
from pathlib import Path

import pytest
from pydantic_core import PydanticUndefined

from service.launcher.up import UpSettings
from service.settings import Settings
from training.configuration import TrainingConfiguration
from worker.contract import keys
from worker.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
ROOMS = ("service", "worker", "training", "tests")
SOURCES = [path.as_posix() for room in ROOMS for path in (ROOT / room).rglob("*.py")]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/architecture.md"]


def text_of(document: str) -> str:
    return (ROOT / document).read_text()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_file_that_a_document_names_is_there(document: str) -> None:
    named = set(re.findall(r"`((?:[\w]+/)*\w+\.py)`", text_of(document)))
    assert named or document == "README.md"
    assert [name for name in named if not any(source.endswith(f"/{name}") for source in SOURCES)] == []
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text_of(document))
    assert [link for link in links if not (ROOT / document).parent.joinpath(link).exists()] == []


def test_every_redis_key_of_ours_has_its_row_in_the_table() -> None:
    ours = {
        value.format("<id>", "<i>").partition("<")[0].rstrip(":")
        for name, value in vars(keys).items()
        if isinstance(value, str) and value.startswith("reverie:") and not name.startswith("LUA")
    }
    assert len(ours) > 10
    table = text_of("docs/architecture.md")
    assert {key for key in ours if f"`{key}" not in table} == set()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_setting_that_a_document_names_is_read_by_a_process_or_by_compose(document: str) -> None:
    fields = {field for settings in (Settings, WorkerSettings, UpSettings) for field in settings.model_fields}
    fields |= {f"train_{field}" for field in TrainingConfiguration.model_fields}
    others = {"REVERIE_URL", "REVERIE_API_KEY"}  # of the command line alone
    for file in ("docker-compose.yml", "docker/worker.yaml"):
        others |= set(re.findall(r"\$\{(REVERIE_[A-Z_]+)", text_of(file)))
    named = set(re.findall(r"REVERIE_[A-Z_]+", text_of(document)))
    assert named - others - {f"REVERIE_{field.upper()}" for field in fields} - {"REVERIE_"} == set()


def test_the_defaults_that_the_readme_tells_are_those_of_the_code() -> None:
    fields = {
        f"REVERIE_{name.upper()}": field.default
        for settings in (UpSettings, WorkerSettings, Settings)
        for name, field in settings.model_fields.items()
    }
    rows = re.findall(r"^\| (`REVERIE_\w+`(?:, `REVERIE_\w+`)*) \| ([^|]*) \|", text_of("README.md"), re.MULTILINE)
    assert len(rows) > 30
    told = {
        name: default.strip()
        for names, cell in rows
        for name, default in zip(
            re.findall(r"\w+", names),
            cell.split(",") if "," in cell else [cell] * (names.count(",") + 1),
            strict=True,
        )
    }
    units = {"": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
    for name, default in told.items():
        if number := re.fullmatch(r"(\d+) ?([KMG]iB|)", default):
            assert float(fields[name]) == int(number[1]) * units[number[2]], name
        elif literal := re.fullmatch(r"`(.+)`", default):
            assert str(fields[name]) == literal[1], name
        else:
            assert not fields[name] or fields[name] is PydanticUndefined, f"{name}: {default}"


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_that_a_document_names_is_there(document: str) -> None:
    targets = set(re.findall(r"^([\w-]+):", text_of("Makefile"), re.MULTILINE))
    assert set(re.findall(r"`make ([\w-]+)`", text_of(document))) <= targets
