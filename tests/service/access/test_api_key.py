"""What a key is, what is kept of it, and that its file is read again."""

import hashlib
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.access.api_key import KEY_PATTERN, ApiKey, CostLimit, KeysError, Scope, new_key, parse_keys
from service.access.key_ring import LOOK_S, KeyRing

LIMITS = st.none() | st.builds(CostLimit, worker_s=st.integers(1, 10**6), window_s=st.integers(1, 10**6))
MOMENTS = st.none() | st.datetimes(timezones=st.just(UTC))
NAMES = st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", fullmatch=True)


@given(name=NAMES, scope=st.sampled_from(Scope), expires_at=MOMENTS, limit=LIMITS)
def test_a_line_holds_all_of_a_key_but_its_secret(
    name: str | None, scope: Scope, expires_at: datetime | None, limit: CostLimit | None
) -> None:
    key, kept = new_key(name, scope, expires_at, limit)
    line = kept.line()
    assert parse_keys(f"# keys\n\n{line} # whose\n") == {kept.prefix: kept}
    assert key[13:] not in line
    assert kept.digest == hashlib.sha256(key.encode()).digest()
    assert kept.name == (name or kept.prefix)


def test_no_two_keys_are_alike() -> None:
    assert len({new_key(None, Scope.READ)[0][13:] for _ in range(1000)}) == 1000


def test_scopes_include_the_ones_before_them() -> None:
    assert [[one.includes(other) for other in Scope] for one in Scope] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


GOOD = f"rvr_00000000 sha256={'0' * 64} name=alice scope=read"


@pytest.mark.parametrize(
    ("line", "rule"),
    [
        ("alice", "begin with a key's prefix"),
        ("rvr_00000000", "needs sha256="),
        ("rvr_00000000 sha256=12", "64 hexadecimal"),
        (GOOD + " sha256=00", "each once"),
        (GOOD + " colour=red", "unknown field"),
        (GOOD.replace("name=alice", "name=a/b"), "a name has"),
        (GOOD.replace("scope=read", "scope=root"), "a scope is one of"),
        (GOOD + " expires=tomorrow", "expires at a day"),
        (GOOD + " limit=5", "a limit is"),
        (GOOD + " limit=0/5", "a limit is"),
        (GOOD + "\n" + GOOD, "prefix is taken"),
        (f"rvr_00000000_{'A' * 43} name=alice", "holds a key itself"),
    ],
)
def test_a_bad_line_is_named_by_its_number_and_not_shown(line: str, rule: str) -> None:
    with pytest.raises(KeysError, match=rule) as caught:
        parse_keys(line)
    assert "line " in str(caught.value)
    for word in line.split():
        assert word not in str(caught.value)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 2 * LOOK_S
        return self.now_s


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def test_a_key_that_is_added_or_withdrawn_counts_at_once(file: Path) -> None:
    (first, kept), (second, added) = new_key("a", Scope.READ), new_key("b", Scope.ADMIN)
    file.write_text(kept.line())
    ring = KeyRing(str(file), clock=Clock())
    assert ring.find(first) == kept
    assert ring.find(second) is None
    file.write_text(f"{kept.line()}\n{added.line()}\n")
    assert ring.find(second) == added
    replaced = file.with_suffix(".new")
    replaced.write_text(added.line())
    replaced.rename(file)
    assert ring.find(first) is None
    assert ring.find(second) == added


@pytest.mark.parametrize("damage", ["gone", "broken", "bytes"])
def test_a_file_that_breaks_changes_nothing_until_it_is_whole_again(
    file: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    key, kept = new_key("a", Scope.READ)
    file.write_text(kept.line())
    ring = KeyRing(str(file), clock=Clock())
    if damage == "gone":
        file.unlink()
    elif damage == "broken":
        file.write_text(key)
    else:
        file.write_bytes(b"\xff\xfe")
    assert ring.find(key) == kept
    assert "stay as they were" in caplog.text
    assert key not in caplog.text
    file.write_text("# nobody\n")
    assert ring.find(key) is None


def test_a_key_ends_at_its_moment() -> None:
    moment = datetime(2027, 1, 1, tzinfo=UTC)
    key, kept = new_key("a", Scope.READ, expires_at=moment)
    now = [moment - timedelta(microseconds=1)]
    ring = KeyRing(kept.line(), now=lambda: now[0])
    assert ring.find(key) == kept
    now[0] = moment
    assert ring.find(key) is None


@given(st.text() | st.from_regex(KEY_PATTERN, fullmatch=True))
def test_what_is_not_the_key_is_refused(guess: str) -> None:
    key, kept = new_key("a", Scope.READ)
    ring = KeyRing(kept.line())
    assert ring.find(guess) is None
    for change in (key[:-1], key + "A", key.upper(), key.replace("rvr", "rvs"), key + "\n", " " + key):
        assert ring.find(change) is None


def test_a_refusal_takes_as_long_for_a_known_prefix_as_for_an_unknown_one() -> None:
    key, kept = new_key("a", Scope.READ)
    ring = KeyRing(kept.line())

    def once_s(guess: str) -> float:
        began = time.perf_counter()
        ring.find(guess)
        return time.perf_counter() - began

    wrong_secret = key[:13] + "A" * 43
    wrong_end = key[:-1] + ("A" if key[-1] != "A" else "B")
    unknown = f"rvr_{(int(kept.prefix, 16) ^ 1):08x}_{'A' * 43}"
    guesses = (wrong_secret, wrong_end, unknown)
    # In turns, and the least of each: what others do on the machine meets all three alike.
    least = [min(times) for times in zip(*([once_s(guess) for guess in guesses] for _ in range(3000)), strict=True)]
    assert max(least) < 2 * min(least), least


def test_an_api_key_shows_no_secret() -> None:
    key, kept = new_key("a", Scope.READ)
    assert key not in repr(kept)
    assert isinstance(kept, ApiKey)
