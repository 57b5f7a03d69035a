"""Settings: defaults < file < environment < flags, and errors that name where they stand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from herd.core.fleet import Hardware
from herd.ops import settings
from herd.ops.settings import NodeSettings, RouterSettings, SettingsError


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "herd.toml"


def router(text: str, path: Path, **flags: Any) -> RouterSettings:
    path.write_text(text)
    return settings.load_router(flags, env={}, file=path)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings file of whoever runs the tests has no say."""
    monkeypatch.setattr(settings, "default_config_file", lambda: tmp_path / "nobody" / "herd.toml")


# Where a value comes from


def test_nothing_needs_to_be_set() -> None:
    assert settings.load_router({}, env={}) == RouterSettings()
    assert settings.load_node({}, env={}) == NodeSettings()


def test_each_source_comes_before_the_one_below_it(file: Path) -> None:
    file.write_text("[router]\nport = 2\npatience = 2.0\nmax_attempts = 2\n")
    env = {"HERD_ROUTER_PATIENCE": "3", "HERD_ROUTER_MAX_ATTEMPTS": "3"}
    found = settings.load_router({"max_attempts": 4}, env=env, file=file)
    assert found.max_waiting == RouterSettings().max_waiting
    assert (found.port, found.patience, found.max_attempts) == (2, 3.0, 4)


def test_a_flag_that_is_not_given_says_nothing(file: Path) -> None:
    assert router("[router]\nport = 7\n", file, port=None).port == 7


def test_a_flag_of_zero_is_given(file: Path) -> None:
    assert router("[router]\nport = 7\n", file, port=0).port == 0


def test_each_program_reads_its_own_section(file: Path) -> None:
    file.write_text('[router]\nfleet = "a"\n[node]\nfleet = "b"\nrouter = "http://r"\n')
    assert settings.load_router({}, env={}, file=file).fleet == "a"
    assert settings.load_node({}, env={}, file=file).fleet == "b"


def test_the_file_at_the_usual_place_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "usual.toml"
    path.write_text("[router]\nport = 7\n")
    monkeypatch.setattr(settings, "default_config_file", lambda: path)
    assert settings.load_router({}, env={}).port == 7


def test_the_file_may_be_named_by_the_environment(file: Path) -> None:
    file.write_text("[router]\nport = 7\n")
    assert settings.load_router({}, env={"HERD_CONFIG": str(file)}).port == 7


def test_the_environment_of_the_process_serves_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HERD_ROUTER_PORT", "4711")
    assert settings.load_router({}).port == 4711


def test_the_usual_places_are_the_systems() -> None:
    assert settings.default_data_dir().name == "herd"
    assert RouterSettings().data_dir == settings.default_data_dir()


# What the environment can say


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("http://a:1", ("http://a:1",)),
        ("http://a:1,http://b:2", ("http://a:1", "http://b:2")),
        ("http://a:1 http://b:2", ("http://a:1", "http://b:2")),
        (" http://a:1, http://b:2 ,", ("http://a:1", "http://b:2")),
        ("", ()),
    ],
)
def test_lists(text: str, value: tuple[str, ...]) -> None:
    assert settings.load_router({}, env={"HERD_ROUTER_ENGINES": text}).engines == value


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("1", True), ("false", False), ("0", False)]
)
def test_switches(text: str, value: bool) -> None:
    assert settings.load_router({}, env={"HERD_ROUTER_DISCOVERY": text}).discovery is value


def test_objects_are_json() -> None:
    env = {"HERD_NODE_SLOTS": '{"ollama": 4}', "HERD_NODE_HARDWARE": '{"bandwidth": 4e11}'}
    found = settings.load_node({}, env=env)
    assert found.slots == {"ollama": 4}
    assert found.hardware == Hardware(bandwidth=4e11)


def test_pins_are_models_with_their_nodes(file: Path) -> None:
    pins = {"qwen3:8b": ("studio", "mini"), "embedder": ("mini",)}
    text = '[router.pins]\n"qwen3:8b" = ["studio", "mini"]\nembedder = ["mini"]\n'
    env = {"HERD_ROUTER_PINS": '{"qwen3:8b": ["studio", "mini"], "embedder": ["mini"]}'}
    assert router(text, file).pins == pins
    assert settings.load_router({}, env=env).pins == pins
    with pytest.raises(SettingsError, match="pins"):
        router('[router.pins]\nembedder = "mini"\n', file)


@pytest.mark.parametrize("name", ["", "[lab]", "{lab}", '"lab"', "7"])
def test_a_text_is_taken_as_it_is(name: str) -> None:
    assert settings.load_node({}, env={"HERD_NODE_NAME": name}).name == name


def test_one_variable_moves_the_state_of_both_programs(tmp_path: Path) -> None:
    env = {"HERD_DATA_DIR": str(tmp_path)}
    assert settings.load_router({}, env=env).data_dir == tmp_path
    assert settings.load_node({}, env=env).data_dir == tmp_path
    env["HERD_NODE_DATA_DIR"] = str(tmp_path / "node")
    assert settings.load_node({}, env=env).data_dir == tmp_path / "node"


def test_a_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    found = settings.load_router({}, env={"HERD_DATA_DIR": "~/state"})
    assert found.data_dir == Path("/home/somebody/state")


def test_variables_of_other_programs_are_no_concern() -> None:
    env = {"HERD_NODE_NAME": "x", "HERD_ROUTER_SERVICE_HOST": "10.0.0.1", "PORT": "1"}
    assert settings.load_router({}, env=env) == RouterSettings()


# What the file can say


def test_hardware_is_a_table(file: Path) -> None:
    file.write_text(
        '[node]\nengines = ["11434"]\n[node.hardware]\nbandwidth = 4e11\nmemory_bytes = 64\n'
        "[node.slots]\nollama = 4\n"
    )
    found = settings.load_node({}, env={}, file=file)
    assert found.hardware == Hardware(bandwidth=4e11, memory_bytes=64)
    assert (found.slots, found.engines) == ({"ollama": 4}, ("11434",))


# Errors


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("[router]\nprot = 1\n", ["`prot`"]),
        ('[router]\nport = "many"\n', ["`$.port`", "int"]),
        ("[router]\nport = 1.5\n", ["`$.port`"]),
        ("[router]\nengines = 5\n", ["`$.engines`"]),
        ("[router]\ndiscovery = 5\n", ["`$.discovery`"]),
        ("[router]\ndata_dir = 5\n", ["`$.data_dir`"]),
        ('[router]\nlog_level = "loud"\n', ["`$.log_level`"]),
        ("[ruter]\nport = 1\n", ["'ruter'"]),
        ("port = 1\n", ["'port'"]),
        ("router = 5\n", ["'router'", "[router]"]),
        ("[router\n", ["cannot be read"]),
    ],
)
def test_a_mistake_in_the_file_names_the_file_and_the_key(
    file: Path, text: str, names: list[str]
) -> None:
    with pytest.raises(SettingsError) as caught:
        router(text, file)
    for name in [str(file), *names]:
        assert name in str(caught.value)


def test_a_misspelt_piece_of_hardware_is_a_mistake(file: Path) -> None:
    file.write_text("[node.hardware]\nbandwith = 4e11\n")
    with pytest.raises(
        SettingsError, match=r"unknown field `bandwith` - at `\$.hardware`"
    ) as caught:
        settings.load_node({}, env={}, file=file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "names"),
    [
        ("HERD_NODE_DOOR_PORT", "many", "door_port"),
        ("HERD_NODE_DOOR_PORT", "", "door_port"),
        ("HERD_NODE_DOOR", "sometimes", "door"),
        ("HERD_NODE_SLOTS", "{", "HERD_NODE_SLOTS"),
        ("HERD_NODE_SLOTS", "4", "slots"),
        ("HERD_NODE_HARDWARE", "", "HERD_NODE_HARDWARE"),
        ("HERD_NODE_HARDWARE", '{"fans": 3}', "fans"),
    ],
)
def test_a_mistake_in_the_environment_names_it(name: str, value: str, names: str) -> None:
    with pytest.raises(SettingsError, match="the environment") as caught:
        settings.load_node({}, env={name: value})
    assert names in str(caught.value)


def test_a_mistake_on_the_command_line_is_not_blamed_on_the_file(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"the command line: .*port"):
        router("[router]\nport = 1\n", file, port="many")


def test_a_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    with pytest.raises(SettingsError, match=r"there is no settings file .*missing"):
        settings.load_router({}, env={}, file=missing)
    with pytest.raises(SettingsError, match=r"there is no settings file .*missing"):
        settings.load_router({}, env={"HERD_CONFIG": str(missing)})


def test_a_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        settings.load_router({}, env={}, file=tmp_path)
    (tmp_path / "latin.toml").write_bytes(b'[router]\nfleet = "\xe9"\n')
    with pytest.raises(SettingsError, match="cannot be read"):
        settings.load_router({}, env={}, file=tmp_path / "latin.toml")
