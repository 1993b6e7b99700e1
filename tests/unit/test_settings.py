"""Settings: every one can be given by its variable, is listed by --help, and is named when it is wrong."""

import resource
from pathlib import Path
from typing import Any, get_args

import pytest
from fastapi.routing import APIRoute
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from structlog.testing import capture_logs

from millstream.protocol.messages import SOCKET
from millstream.settings import Settings, explain, mistyped, settings_table, warn_of_mistyped
from millstream.store.limits import Limits
from millstream.store.scripts import load_scripts
from millstream_api.app import connections_possible, create_app
from millstream_api.settings import FIRST_PARTS, ApiSettings
from millstream_worker.settings import WorkerSettings

EVERY = [(tier, name, field) for tier in (ApiSettings, WorkerSettings) for name, field in tier.model_fields.items()]
ANOTHER = {
    "root_path": "/else/where", "trusted_proxies": "10.0.0.0/8", "redis_url": "unix:///run/valkey.sock",
    "origins": "https://a.example", "cors_origins": "https://a.example",
}  # fmt: skip
IDS = [f"{tier.__name__}.{name}" for tier, name, _ in EVERY]


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variables of this machine's, and no .env file."""
    for _, name, _ in EVERY:
        monkeypatch.delenv(f"MILLSTREAM_{name.upper()}", raising=False)
    monkeypatch.chdir(tmp_path)


def another(name: str, field: FieldInfo) -> tuple[str, Any]:
    """A value other than the default, as a variable and as what it means."""
    if name in ANOTHER:
        return ANOTHER[name], ANOTHER[name]
    kinds = get_args(field.annotation) or (field.annotation,)
    for kind, text, value in ((bool, "true", True), (Path, "/else/where", Path("/else/where")), (str, "else", "else")):
        if kind in kinds:
            return text, value
    if "debug" in kinds:
        return "debug", "debug"
    number = (field.default or 0) + 1
    return str(number), number


@pytest.mark.parametrize(("tier", "name", "field"), EVERY, ids=IDS)
def test_each_setting_can_be_given_by_its_variable(
    tier: type[Settings], name: str, field: FieldInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    text, value = another(name, field)
    assert getattr(tier(), name) == field.default != value
    monkeypatch.setenv(f"MILLSTREAM_{name.upper()}", text)
    assert getattr(tier(), name) == value


@pytest.mark.parametrize("tier", [ApiSettings, WorkerSettings])
def test_help_lists_every_setting_with_its_meaning_and_its_default(tier: type[Settings]) -> None:
    lines = settings_table(tier).splitlines()
    assert len(lines) == len(tier.model_fields)
    for line, (name, field) in zip(lines, tier.model_fields.items(), strict=True):
        assert line.split()[0] == f"MILLSTREAM_{name.upper()}"
        assert field.description
        assert field.description in line
        default = "not set" if field.default in (None, "") else str(field.default)
        assert line.endswith(f"[{default}]")


@pytest.mark.parametrize(
    ("tier", "name", "wrong", "expected"),
    [
        (WorkerSettings, "lease_s", "soon", "number"),
        (WorkerSettings, "lease_s", "0.1", "0.3"),
        (WorkerSettings, "max_jobs", "0", "1"),
        (WorkerSettings, "log_level", "loud", "'debug'"),
        (ApiSettings, "queue_depth", "1.5", "integer"),
        (ApiSettings, "max_body_bytes", "1", "1024"),
        (ApiSettings, "hosts", "https://a.example", "without scheme and port"),
        (ApiSettings, "hosts", "a.example:8000", "without scheme and port"),
        (ApiSettings, "hosts", "*", "names and addresses"),
        (ApiSettings, "hosts", "a.*.example", "names and addresses"),
        (ApiSettings, "root_path", "millstream", "/millstream"),
        (ApiSettings, "root_path", "/a/../b//c", "/millstream"),
        (ApiSettings, "root_path", "/<b>", "letters"),
        (ApiSettings, "root_path", "/files/shared", "choose another"),
        (ApiSettings, "trusted_proxies", "10.0.0.1/8", "has host bits set"),
        (ApiSettings, "trusted_proxies", "127.0.0.1, proxy.example", "10.0.0.0/8"),
        (ApiSettings, "trusted_proxies", "*", "10.0.0.0/8"),
        *((WorkerSettings, "redis_url", url, "redis://:PASSWORD@store:6379/0") for url in (
            "", "localhost:6379", "http://store", "redis://store:port/0", "redis://[store",
        )),
        *((ApiSettings, name, origin, "lower case") for name in ("origins", "cors_origins") for origin in (
            "http://x/", "x:3000", "HTTP://x", "https://X.example", "http://x:3000/path", "//x", "*.x",
        )),
        (ApiSettings, "origins", "https://x:443", "send https://x"),
        (ApiSettings, "cors_origins", "http://[::1]:80", "send http://[::1]"),
        (ApiSettings, "origins", "*", "list the origins"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_named_with_what_it_was_and_what_is_expected(
    tier: type[Settings], name: str, wrong: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"MILLSTREAM_{name.upper()}", wrong)
    with pytest.raises(ValidationError) as caught:
        tier()
    text = explain(caught.value)
    assert text.startswith(f"MILLSTREAM_{name.upper()}={wrong}: ")
    assert expected in text


@pytest.mark.parametrize(
    ("name", "given", "meant"),
    [
        ("hosts", " A.Example, *.b.example ,[FD00::1],192.0.2.1, ", "a.example,*.b.example,fd00::1,192.0.2.1"),
        ("root_path", "/", ""),
        ("root_path", "/a/b/", "/a/b"),
        ("trusted_proxies", "10.0.0.0/8, ::1", "10.0.0.0/8,::1"),
        ("trusted_proxies", "", ""),
    ],
)
def test_what_a_proxy_is_about_is_kept_in_one_form(name: str, given: str, meant: str) -> None:
    assert getattr(ApiSettings(**{name: given}), name) == meant  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("listed", "address", "trusted"),
    [
        ("127.0.0.1,::1", "127.0.0.1", True), ("127.0.0.1,::1", "::1", True), ("127.0.0.1,::1", "127.0.0.2", False),
        ("10.0.0.0/8,fd00::/8", "10.9.8.7", True), ("10.0.0.0/8,fd00::/8", "fd00::7", True),
        ("10.0.0.0/8", "127.0.0.1", False), ("", "127.0.0.1", False), ("10.0.0.0/8", "/run/socket", False),
    ],
)  # fmt: skip
def test_an_address_is_a_trusted_proxys_or_not(listed: str, address: str, trusted: bool) -> None:
    assert ApiSettings(trusted_proxies=listed).is_trusted(address) is trusted


def test_a_root_path_may_not_begin_as_the_paths_of_the_api_do(tmp_path: Path) -> None:
    app = create_app(ApiSettings(data_dir=tmp_path))
    app.state.directory.close()
    routes = [route.path for route in app.routes if isinstance(route, APIRoute)]
    paths = (*routes, *app.openapi()["paths"], str(app.openapi_url), SOCKET)
    assert {path.split("/")[1] for path in paths} == FIRST_PARTS


def test_every_wrong_setting_gets_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_LEASE_S", "x")
    monkeypatch.setenv("MILLSTREAM_MAX_JOBS", "y")
    with pytest.raises(ValidationError) as caught:
        WorkerSettings()
    assert [line.partition("=")[0] for line in explain(caught.value).splitlines()] == [
        "MILLSTREAM_LEASE_S",
        "MILLSTREAM_MAX_JOBS",
    ]


def test_settings_are_read_from_a_env_file_and_the_environment_goes_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("MILLSTREAM_MAX_JOBS=7\nMILLSTREAM_LEASE_S=3\nOTHER=1\nMILLSTREAM_UNKNOWN=1\n")
    monkeypatch.setenv("MILLSTREAM_LEASE_S", "4")
    settings = WorkerSettings()
    assert (settings.max_jobs, settings.lease_s) == (7, 4)


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        WorkerSettings().lease_s = 5  # type: ignore[misc]


def test_every_limit_of_the_store_is_a_setting_and_an_argument_of_the_scripts_that_name_it() -> None:
    arguments = WorkerSettings().arguments()
    taken = {name for script in load_scripts().values() for name in script.arguments}
    for name in Limits.model_fields:
        argument = f"{name.removesuffix('_s')}_ms" if name.endswith("_s") else name
        assert argument in taken
        changed = WorkerSettings(**{name: getattr(Limits(), name) + 1}).arguments()
        assert {key for key in arguments if arguments[key] != changed[key]} == {argument}


@pytest.mark.parametrize(
    ("descriptors", "possible"),
    [(1024, 384), (20_000, 14_744), (1_000_000, 25_000), (resource.RLIM_INFINITY, 25_000), (100, 1)],
)
def test_no_more_connections_are_taken_than_there_are_descriptors_for(
    monkeypatch: pytest.MonkeyPatch, descriptors: int, possible: int
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (descriptors, descriptors))
    assert connections_possible(25_000, streams=5000) == possible


def test_a_wait_is_over_before_a_proxys_usual_minute_and_a_quiet_stream_is_heard_of_within_it() -> None:
    settings = ApiSettings(_env_file=None)
    assert settings.wait_s <= 55
    assert settings.heartbeat_s <= 30


@pytest.mark.parametrize("name", ["origins", "cors_origins"])
def test_origins_are_kept_as_browsers_send_them(name: str) -> None:
    given = " https://a.example , http://localhost:3000,chrome-extension://abc, http://[::1]:8080,null,"
    kept = "https://a.example,http://localhost:3000,chrome-extension://abc,http://[::1]:8080,null"
    assert getattr(ApiSettings(**{name: given}), name) == kept  # type: ignore[arg-type]
    assert ApiSettings(cors_origins="*").cors_origins == "*"


@pytest.mark.parametrize(
    "url",
    ["redis://:secret@store:1/x?odd=1", "redis://:sec/secret@store", "redi://u:secret@store", "redis://u:secret?@h:x"],
)
def test_a_wrong_url_is_told_without_its_password(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        WorkerSettings(redis_url=url)
    assert "secret" not in explain(caught.value)


@pytest.mark.parametrize(
    ("tier", "name", "meant"),
    [
        (ApiSettings, "REDISURL", "REDIS_URL"), (ApiSettings, "API_KEY_FILE", "API_KEYS_FILE"),
        (ApiSettings, "ORIGIN", "ORIGINS"), (WorkerSettings, "LEASE", "LEASE_S"),
        (WorkerSettings, "MAX_JOB", "MAX_JOBS"),
    ],
)  # fmt: skip
def test_a_mistyped_setting_is_named_with_what_was_meant(
    tier: type[Settings], name: str, meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text("millstream_quue_depth=5\n")
    monkeypatch.setenv(f"MILLSTREAM_{name}", "x")
    with capture_logs() as logs:
        warn_of_mistyped(tier)
    assert {line["variable"]: line["event"].split()[-1] for line in logs} == {
        f"MILLSTREAM_{name}": f"MILLSTREAM_{meant}?", "MILLSTREAM_QUUE_DEPTH": "MILLSTREAM_QUEUE_DEPTH?",
    }  # fmt: skip


@pytest.mark.parametrize("tier", [ApiSettings, WorkerSettings])
def test_no_setting_of_either_tier_is_taken_for_a_mistyped_one(tier: type[Settings]) -> None:
    assert mistyped(tier, [f"MILLSTREAM_{name.upper()}" for _, name, _ in EVERY]) == []
