"""Where settings come from, and which source wins."""

from argparse import Namespace
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest

from server.settings import Settings

FLAGS = {
    "home": ("/flag", Path("/flag")),
    "database_url": ("sqlite:////flag.db", "sqlite:////flag.db"),
    "max_body_bytes": ("100", 100),
    "key_cache_seconds": ("1.5", 1.5),
    "constraint_seconds": ("2.5", 2.5),
    "observe_requests": ("0", 0),
    "observe_days": ("0.5", 0.5),
    "interactions": ("all", "all"),
    "interaction_rows": ("5", 5),
    "interaction_days": ("0.25", 0.25),
    "accounts": ("open", "open"),
    "adaptive_seconds": ("0", 0),
    "embeddings_url": ("http://flag:1/v1/", "http://flag:1"),
    "embeddings_model": ("flag", "flag"),
    "embeddings_seconds": ("5", 5.0),
    "embeddings_at_once": ("3", 3),
    "metric_tenants": ("lab,shop lab", ("lab", "shop")),
    "requests_per_minute": ("60", 60),
    "tokens_per_minute": ("5000", 5000),
    "concurrent_requests": ("4", 4),
    "max_queue": ("32", 32),
    "max_queue_seconds": ("2.5", 2.5),
}
VARIABLES = {
    "home": ("/variable", Path("/variable")),
    "database_url": ("postgresql://variable/db", "postgresql://variable/db"),
    "max_body_bytes": ("200", 200),
    "key_cache_seconds": ("3", 3.0),
    "constraint_seconds": ("4", 4.0),
    "observe_requests": ("6", 6),
    "observe_days": ("30", 30.0),
    "interactions": ("none", "none"),
    "interaction_rows": ("6", 6),
    "interaction_days": ("60", 60.0),
    "accounts": ("closed", "closed"),
    "adaptive_seconds": ("90", 90.0),
    "embeddings_url": ("https://variable/under", "https://variable/under"),
    "embeddings_model": ("variable", "variable"),
    "embeddings_seconds": ("6.5", 6.5),
    "embeddings_at_once": ("4", 4),
    "metric_tenants": ("lab", ("lab",)),
    "requests_per_minute": ("61", 61),
    "tokens_per_minute": ("5001", 5001),
    "concurrent_requests": ("5", 5),
    "max_queue": ("33", 33),
    "max_queue_seconds": ("3.5", 3.5),
}


@pytest.mark.parametrize("name", FLAGS)
def test_flags_win_over_variables_and_those_over_defaults(name):
    """Each of these settings is read from its flag, else from its variable, else has its default."""
    flag, from_flag = FLAGS[name]
    variable, from_variable = VARIABLES[name]
    environ = {f"STEERSMAN_{name.upper()}": variable}
    args = Namespace(**{f"steersman_{name}": flag})
    default = getattr(Settings.read(environ={}), name)
    assert getattr(Settings.read(args, environ), name) == from_flag
    assert getattr(Settings.read(Namespace(**{f"steersman_{name}": None}), environ), name) == from_variable
    assert getattr(Settings.read(Namespace(), environ), name) == from_variable
    assert default not in (from_flag, from_variable)


def test_the_database_lives_in_the_home_folder_unless_named():
    """Moving the home moves the default database with it."""
    settings = Settings.read(environ={"STEERSMAN_HOME": "/srv/steersman"})
    assert settings.database_url == "sqlite+aiosqlite:////srv/steersman/steersman.db"


def test_the_home_is_absolute():
    """A relative home or one with `~` means the same folder wherever the process goes later."""
    assert Settings.read(environ={"STEERSMAN_HOME": "~/x"}).home == Path.home() / "x"
    assert Settings.read(environ={"STEERSMAN_HOME": "x"}).home == Path.cwd() / "x"


def test_a_number_that_is_none_is_refused():
    """Text where a number belongs stops the start instead of being ignored."""
    with pytest.raises(ValueError, match="many"):
        Settings.read(environ={"STEERSMAN_MAX_BODY_BYTES": "many"})


def test_which_interactions_are_stored_is_one_of_three():
    with pytest.raises(ValueError, match="asked, all, none"):
        Settings.read(environ={"STEERSMAN_INTERACTIONS": "some"})


def test_patterns_are_read_from_their_file(tmp_path):
    """At the start, so that one that cannot be compiled stops it."""
    path = tmp_path / "patterns"
    path.write_text("a+\n")
    assert Settings.read(environ={"STEERSMAN_REDACT": str(path)}).redact == ("a+",)
    assert Settings.read(environ={}).redact == ()
    path.write_text("(\n")
    with pytest.raises(ValueError, match="line 1"):
        Settings.read(environ={"STEERSMAN_REDACT": str(path)})


def test_accounts_are_off_open_or_closed():
    """Off unless asked for; another word stops the start and lists the three."""
    assert not Settings.read(environ={}).has_accounts
    assert not Settings.read(environ={"STEERSMAN_ACCOUNTS": "off"}).has_accounts
    assert Settings.read(environ={"STEERSMAN_ACCOUNTS": "closed"}).has_accounts
    with pytest.raises(ValueError, match="off, closed, open"):
        Settings.read(environ={"STEERSMAN_ACCOUNTS": "yes"})


def test_log_lines_are_text_or_json():
    """The flag wins over the variable; another word stops the start and lists the two."""
    json = {"STEERSMAN_LOG_FORMAT": "json"}
    assert Settings.read(environ={}).log_format == "text"
    assert Settings.read(environ=json).log_format == "json"
    assert Settings.read(Namespace(steersman_log_format="text"), json).log_format == "text"
    with pytest.raises(ValueError, match="text, json"):
        Settings.read(environ={"STEERSMAN_LOG_FORMAT": "xml"})


@pytest.mark.parametrize(
    "url",
    ["embed:8000", "ftp://embed", "http://", "http://embed:x", "http://u:p@embed", "http://embed/?key=k"],
)
def test_the_server_that_embeds_is_named_by_its_root(url):
    """What is no such URL stops the start."""
    with pytest.raises(ValueError, match="--embeddings-url"):
        Settings.read(environ={"STEERSMAN_EMBEDDINGS_URL": url})


def test_the_key_of_the_server_that_embeds_is_a_variable_alone():
    """A flag would show it to whoever lists processes, and a log would keep it."""
    settings = Settings.read(environ={"STEERSMAN_EMBEDDINGS_KEY": "secret"})
    assert settings.embeddings_key == "secret"
    assert "secret" not in repr(settings)


@pytest.mark.parametrize(
    "text", ["ada@example.org", "a" * 65, 'x"y', ",".join(f"project-{number}" for number in range(51))]
)
def test_tenants_that_metrics_name_are_few_and_plain(text):
    """What can be neither a key nor an id, or is more than fifty, stops the start."""
    with pytest.raises(ValueError, match="--metric-tenants"):
        Settings.read(environ={"STEERSMAN_METRIC_TENANTS": text})


def test_settings_do_not_change():
    """Settings are frozen: what was read at the start holds until the end."""
    settings = Settings.read(environ={})
    for field in fields(settings):
        with pytest.raises(FrozenInstanceError):
            setattr(settings, field.name, None)
