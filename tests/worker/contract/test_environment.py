"""The rules of settings, the same in the worker, the gateway and the launcher."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.launcher.up import UpSettings
from service.settings import Settings
from worker.contract.environment import EnvironmentSettings, SettingsError
from worker.contract.redis_address import without_password
from worker.settings import WorkerSettings

A_URL = "redis://localhost:6379/0"
EVERY = pytest.mark.parametrize("settings", [WorkerSettings, Settings, UpSettings])


@EVERY
def test_an_empty_variable_is_as_good_as_none(settings: type[EnvironmentSettings]) -> None:
    every_empty = {f"REVERIE_{field.upper()}": "" for field in settings.model_fields}
    assert settings.read({**every_empty, "REVERIE_REDIS_URL": A_URL}) == settings.read({"REVERIE_REDIS_URL": A_URL})


@EVERY
def test_variables_of_the_other_processes_are_ignored(settings: type[EnvironmentSettings]) -> None:
    others = {"REVERIE_MAX_BATCH": "8", "REVERIE_PORT": "1", "REVERIE_STREAM_S": "5", "REVERIE_UNKNOWN": "x"}
    read = settings.read({"REVERIE_REDIS_URL": A_URL, **others})
    assert read.model_fields_set <= {"redis_url", "max_batch", "port", "stream_s"}


@pytest.mark.parametrize(
    ("settings", "variable", "value", "rule"),
    [
        (WorkerSettings, "REVERIE_REDIS_URL", "http://localhost", "need redis://, rediss:// or unix://"),
        (Settings, "REVERIE_REDIS_URL", "redis://", "need redis://, rediss:// or unix://"),
        (UpSettings, "REVERIE_REDIS_URL", "localhost:6379", "need redis://, rediss:// or unix://"),
        (WorkerSettings, "REVERIE_MAX_BATCH", "0", "input should be greater than or equal to 1"),
        (WorkerSettings, "REVERIE_MAX_BATCH", "many", "input should be a valid integer"),
        (WorkerSettings, "REVERIE_DEVICE", "abacus", "string should match pattern"),
        (WorkerSettings, "REVERIE_DTYPE", "int8", "input should be 'auto', 'float32'"),
        (Settings, "REVERIE_MAX_QUEUE", "0", "input should be greater than or equal to 1"),
        (UpSettings, "REVERIE_GRACE_S", "-1", "input should be greater than or equal to 0"),
    ],
)
def test_a_bad_value_is_one_line_with_variable_value_and_rule(
    settings: type[EnvironmentSettings], variable: str, value: str, rule: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.read({"REVERIE_REDIS_URL": A_URL, variable: value})
    assert str(caught.value).startswith(f"{variable}={value}: {rule}")
    assert "\n" not in str(caught.value)


def test_each_bad_value_has_its_line_and_a_missing_one_says_what_is_needed() -> None:
    with pytest.raises(SettingsError) as caught:
        WorkerSettings.read({"REVERIE_MAX_BATCH": "0"})
    assert str(caught.value).splitlines() == [
        "REVERIE_REDIS_URL is not set: need the address of Redis, for example redis://localhost:6379/0",
        "REVERIE_MAX_BATCH=0: input should be greater than or equal to 1",
    ]


def test_an_option_comes_before_its_variable_and_is_named_as_an_option() -> None:
    assert UpSettings.read({"REVERIE_PORT": "1"}, port="2").port == 2
    with pytest.raises(SettingsError, match=r"^--data-dir=3: "):
        UpSettings.read({}, data_dir=3)


@EVERY
def test_a_password_is_not_repeated(settings: type[EnvironmentSettings]) -> None:
    with pytest.raises(SettingsError) as caught:
        settings.read({"REVERIE_REDIS_URL": "http://user:secret@host/0"})
    assert "secret" not in str(caught.value)
    assert "***@host" in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("rediss://user:pa:ss@host:6379/1", "rediss://***@host:6379/1"),
        ("redis://:pa@ss@host/0", "redis://***@host/0"),
        ("redis://u:pa/ss@host/0", "redis://***@host/0"),
        ("unix://user:pass@/run/valkey.sock?db=1", "unix://***@/run/valkey.sock?db=1"),
        ("unix:///run/a@b/valkey.sock?password=pass&db=1", "unix:///run/a@b/valkey.sock?password=***&db=1"),
        ("redis://localhost:6379/0", "redis://localhost:6379/0"),
        ("unix:///run/valkey.sock", "unix:///run/valkey.sock"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert without_password(url) == shown


@given(password=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="?"), min_size=1))
def test_no_password_is_shown_whatever_is_in_it(password: str) -> None:
    assert without_password(f"redis://me:{password}@host:6379/0") == "redis://***@host:6379/0"
