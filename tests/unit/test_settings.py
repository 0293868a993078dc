from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tasks.core.errors import DmucError
from tasks.core.settings import Settings, arguments, load, remember, remember_given, remembered


def read(
    tmp_path: Path,
    text: str | None = None,
    environment: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
) -> Settings:
    file = tmp_path / "cluster.toml"
    if text is not None:
        file.write_text(text)
    programs, tasks = ("etcd", "kube-apiserver"), ("etcd", "kubelet")
    return load(file, environment or {}, words or {}, programs=programs, daemons=programs, tasks=tasks)


def refused(
    tmp_path: Path,
    text: str | None = None,
    environment: Mapping[str, str] | None = None,
    words: Mapping[str, str] | None = None,
) -> DmucError:
    with pytest.raises(DmucError) as error:
        read(tmp_path, text, environment, words)
    return error.value


# Where they come from


def test_without_anything_said_they_are_the_walk_throughs(tmp_path: Path) -> None:
    settings = read(tmp_path)
    assert (settings.machine, settings.kubernetes, settings.on_host) == ("dmuc1", "auto", False)
    assert settings == Settings()


def test_each_layer_overrides_the_one_below_it(tmp_path: Path) -> None:
    text = 'machine = "file"\npod_range = "10.1.0.0/24"\nregistry = "local"\n'
    environment = {"DMUC_MACHINE": "environment", "DMUC_POD_RANGE": "10.2.0.0/24", "PATH": "/bin", "DMUCX": "not ours"}
    settings = read(tmp_path, text, environment, {"machine": "command-line"})
    assert (settings.machine, settings.pod_range, settings.registry) == ("command-line", "10.2.0.0/24", "local")


@pytest.mark.parametrize("given", ["file", "environment", "command line"])
def test_flags_of_a_program_are_read_as_by_a_shell(tmp_path: Path, given: str) -> None:
    text = "--v=6 --labels='a=b, c=d'"
    settings = read(
        tmp_path,
        f'kube_apiserver_flags = "{text}"\n' if given == "file" else None,
        {"DMUC_KUBE_APISERVER_FLAGS": text} if given == "environment" else None,
        {"kube_apiserver_flags": text} if given == "command line" else None,
    )
    assert settings.flags == {"kube-apiserver": ("--v=6", "--labels=a=b, c=d")}
    assert settings.sources["kube_apiserver_flags"] == (str(tmp_path / "cluster.toml") if given == "file" else given)


def test_flags_that_are_not_quoted_as_for_a_shell_are_refused(tmp_path: Path) -> None:
    error = refused(tmp_path, words={"etcd_flags": "--name='a"})
    assert "etcd_flags" in str(error) and "no closing quotation" in str(error)


def test_programs_and_deadlines_are_layered_one_by_one(tmp_path: Path) -> None:
    text = 'etcd_bin = "/file/etcd"\nkube_apiserver_bin = "/file/api"\ndeadline = 5\ndeadline_etcd = 1.5\n'
    settings = read(tmp_path, text, {"DMUC_DEADLINE_KUBELET": "60"}, {"etcd_bin": "/mine/etcd"})
    assert settings.programs == {"etcd": "/mine/etcd", "kube-apiserver": "/file/api"}
    assert {task: settings.deadline_of(task) for task in ("etcd", "kubelet", "images")} == {
        "etcd": 1.5,
        "kubelet": 60.0,
        "images": 5.0,
    }


def test_paths_may_begin_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read(tmp_path, words={"cache": "~/c"}).cache == tmp_path / "c"


def test_the_default_cache_is_where_caches_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert read(tmp_path).cache == tmp_path / "dmuc"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/ada")
    assert read(tmp_path).cache == Path("/home/ada/.cache/dmuc")


def test_the_addresses_follow_from_the_ranges(tmp_path: Path) -> None:
    settings = read(tmp_path, words={"link_range": "192.168.5.8/30", "service_range": "172.20.0.0/20"})
    assert (settings.host_address, settings.address) == ("192.168.5.9", "192.168.5.10")
    assert settings.service_address(1) == "172.20.0.1"
    assert read(tmp_path, words={"machine": "host"}).address == "127.0.0.1"


# What is refused


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("kubernets", "kubernetes"),
        ("machin", "machine"),
        ("etcd-bin", "etcd_bin"),
        ("apiserver_bin", "kube_apiserver_bin"),
        ("deadline_kublet", "deadline_kubelet"),
    ],
)
def test_a_near_miss_is_answered_with_what_was_meant(tmp_path: Path, word: str, meant: str) -> None:
    error = refused(tmp_path, words={word: "1"})
    assert error.tried == "reading the settings (command line)"
    assert error.seen == f"there is no setting called {word!r}"
    assert error.do == f"Did you mean {meant}?"


def test_something_else_entirely_is_answered_with_what_there_is(tmp_path: Path) -> None:
    error = refused(tmp_path, environment={"DMUC_XYZZY": "1"})
    assert error.tried == "reading the settings (environment)"
    assert "'xyzzy'" in error.seen
    assert error.do.startswith("Settings: bin_dir, cache, deadline, ")
    assert "programs" not in error.do  # what the dataclass holds, but cannot be set by that name


def test_an_unknown_setting_in_the_file_names_the_file(tmp_path: Path) -> None:
    assert str(tmp_path / "cluster.toml") in refused(tmp_path, 'kubernetess = "1.20"').tried


@pytest.mark.parametrize("text", ["machine = \n", "machine dmuc2", 'machine = "a"\nmachine = "b"', "\xe9 = 1"])
def test_a_malformed_file_is_said(tmp_path: Path, text: str) -> None:
    (tmp_path / "cluster.toml").write_bytes(text.encode("latin-1"))
    error = refused(tmp_path)
    assert str(tmp_path / "cluster.toml") in error.tried
    assert error.seen.startswith("not valid TOML: ")


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").mkdir()
    assert "cluster.toml" in refused(tmp_path).tried


@pytest.mark.parametrize(
    "text", ["machine = true", "[machine]\nname = 1", "machine = []", 'machine = " "', "deadline = []"]
)
def test_what_is_no_plain_value_is_refused(tmp_path: Path, text: str) -> None:
    assert "must be a plain value" in refused(tmp_path, text).seen


def test_a_release_without_quotes_in_the_file_is_not_taken_for_another(tmp_path: Path) -> None:
    # For TOML 1.20 is the number 1.2.
    assert "quote" in str(refused(tmp_path, "kubernetes = 1.20"))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("link_range", "10.95.0.0/31", "a /30 or larger is needed"),
        ("link_range", "10.95.0.0", "a /30 or larger is needed"),
        ("service_range", "10.96.0.0/25", "a /24 or larger is needed"),
        ("pod_range", "10.244.0.0/30", "a /24 or larger is needed"),
        ("pod_range", "10.244.0.1/24", "host bits set"),
        ("service_range", "10.96.0.0/33", "10.96.0.0/33"),
        ("service_range", "nonsense", "nonsense"),
        ("service_range", "fd00::/108", "fd00::/108"),
    ],
)
def test_a_range_that_cannot_be_is_refused(tmp_path: Path, name: str, value: str, says: str) -> None:
    error = refused(tmp_path, words={name: value})
    assert error.seen.startswith(f"{name}={value}: ")
    assert says in error.seen


@pytest.mark.parametrize(
    "name",
    [
        " ",
        "Dmuc",
        "1st",
        "-a",
        "a-",
        "a.b",
        "a/b",
        "../up",
        "a b",
        "fourteen-chars",
        "é",
        "a\n",
    ],
)
def test_a_machine_name_that_cannot_be_is_refused(tmp_path: Path, name: str) -> None:
    error = refused(tmp_path, words={"machine": name})
    assert "plain value" in error.seen if not name.strip() else "not a valid name" in error.seen


@pytest.mark.parametrize("name", ["a", "dmuc2", "thirteen-char", "host"])
def test_a_machine_name_that_can_be_is_taken(tmp_path: Path, name: str) -> None:
    assert read(tmp_path, words={"machine": name}).machine == name


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "inf", "1e7"])
@pytest.mark.parametrize("name", ["deadline", "deadline_kubelet"])
def test_a_deadline_is_a_number_of_seconds(tmp_path: Path, name: str, value: str) -> None:
    assert refused(tmp_path, words={name: value}).seen == f"{name}={value}: this must be a number of seconds above 0"


def test_there_is_no_deadline_for_what_is_no_task(tmp_path: Path) -> None:
    assert "'deadline_coffee'" in refused(tmp_path, words={"deadline_coffee": "5"}).seen


@pytest.mark.parametrize(
    ("name", "value"), [("obtain", "beg"), ("registry", "docker.io"), ("registry", "https://registry.example/path")]
)
def test_a_choice_that_is_none_is_answered_with_the_choices(tmp_path: Path, name: str, value: str) -> None:
    assert f"{name}={value}: must be" in refused(tmp_path, words={name: value}).seen


@pytest.mark.parametrize(
    "value", ["dl.k8s.io", "ftp://mirror.example", "https://", "https://mirror.example/?x=1", "http://a b"]
)
def test_a_site_that_is_no_url_is_refused(tmp_path: Path, value: str) -> None:
    for name in ("kubernetes_site", "github_site"):
        assert (
            f"{name}={value}: must be the URL of a site such as https://" in refused(tmp_path, words={name: value}).seen
        )


@pytest.mark.parametrize("value", ["http://127.0.0.1:8000", "https://mirror.example/a/path"])
def test_a_mirror_may_have_a_path_and_a_slash_at_its_end(tmp_path: Path, value: str) -> None:
    for given in (value, f"{value}/"):
        words = {"kubernetes_site": given}
        assert load(tmp_path / "cluster.toml", {}, words, programs=(), tasks=()).kubernetes_site == value


# The command line


def test_the_words_with_an_equals_sign_are_settings() -> None:
    argv = ["list", "kubernetes=1.20", "--sort=name", "-x=1", "etcd", "bin_dir=/a=b"]
    assert arguments(argv) == {"kubernetes": "1.20", "bin_dir": "/a=b"}


def test_what_comes_after_two_dashes_belongs_to_another_program() -> None:
    assert arguments(["machine=a", "shell", "--", "machine=b", "dd", "if=/dev/zero"]) == {"machine": "a"}


def test_the_last_of_two_words_counts() -> None:
    assert arguments(["machine=a", "machine=b"]) == {"machine": "b"}


# Choices, and what a cluster was made with


@pytest.mark.parametrize("name", ["obtain", "service_account", "scheduling", "insecure_port"])
def test_a_choice_that_there_is_not_is_answered_with_those_that_there_are(tmp_path: Path, name: str) -> None:
    error = refused(tmp_path, words={name: "nonsense"})
    assert error.seen.startswith(f"{name}=nonsense: must be one of {getattr(Settings, name)}, ")


def test_the_insecure_port_is_not_opened_on_the_host(tmp_path: Path) -> None:
    error = refused(tmp_path, words={"machine": "host", "insecure_port": "on"})
    assert "every process" in error.seen and "machine=NAME" in error.do


def test_what_a_cluster_was_made_with_is_the_default(tmp_path: Path) -> None:
    remember(tmp_path, {"insecure_port": "on", "scheduling": "manual"})
    remember(tmp_path, {"service_account": "no-mount"})
    settings = load(
        tmp_path / "cluster.toml",
        {"DMUC_INSECURE_PORT": "off"},
        {},
        programs=(),
        tasks=(),
        remembered=remembered(tmp_path),
    )
    assert (settings.insecure_port, settings.scheduling, settings.service_account) == ("off", "manual", "no-mount")


@pytest.mark.parametrize("where", ["file", "environment", "words"])
def test_a_setting_by_its_old_name_counts_and_says_the_new_one(tmp_path: Path, where: str) -> None:
    said: list[str] = []
    if where == "file":
        (tmp_path / "cluster.toml").write_text('front_door = "on"\n')
    settings = load(
        tmp_path / "cluster.toml",
        {"DMUC_FRONT_DOOR": "on"} if where == "environment" else {},
        {"front_door": "on"} if where == "words" else {},
        programs=(),
        tasks=(),
        remembered={"front_door": "off"},  # of a cluster that was made before: its user has said nothing
        warn=said.append,
    )
    assert settings.insecure_port == "on"
    (line,) = said
    assert line.startswith("deprecated: the setting front_door is now called insecure_port (")


def again(tmp_path: Path, environment: Mapping[str, str] | None = None, **words: str) -> list[str]:
    """What a run with these settings says of those that the cluster had before."""
    settings = load(
        tmp_path / "cluster.toml",
        environment or {},
        words,
        programs=("etcd",),
        tasks=("kubelet",),
        remembered=remembered(tmp_path),
    )
    return remember_given(tmp_path, settings)


def test_a_cluster_remembers_what_is_set_and_says_what_changes(tmp_path: Path) -> None:
    assert again(tmp_path, engine="containerd", etcd_bin="/opt/etcd") == []  # the first run
    assert again(tmp_path) == []
    assert remembered(tmp_path) == {"engine": "containerd", "etcd_bin": "/opt/etcd"}
    assert again(tmp_path, engine="docker") == ["engine: docker from now on (before: containerd)"]
    assert again(tmp_path, {"DMUC_POD_RANGE": "10.1.0.0/24"}) == [
        "pod_range: 10.1.0.0/24 from now on (before: 10.244.0.0/24)"
    ]
    (tmp_path / "cluster.toml").write_text('engine = "auto"')
    assert again(tmp_path) == ["engine: auto from now on (before: docker)"]
    assert again(tmp_path, engine="", etcd_bin="", pod_range="") == [
        "etcd_bin: not set from now on (before: /opt/etcd)",
        "pod_range: 10.244.0.0/24 from now on (before: 10.1.0.0/24)",
    ]
    assert remembered(tmp_path) == {}


def test_what_is_said_of_one_run_is_not_remembered(tmp_path: Path) -> None:
    again(tmp_path, machine="two", deadline="5", deadline_kubelet="6", patience="2")
    assert remembered(tmp_path) == {"patience": "2.0"}


def test_a_relative_path_is_remembered_as_the_whole_path(tmp_path: Path) -> None:
    again(tmp_path, {"CALLER_PWD": str(tmp_path / "there")}, bin_dir="bin", share="a:b")
    assert again(tmp_path, {"CALLER_PWD": "/elsewhere"}) == []
    assert remembered(tmp_path) == {
        "bin_dir": f"{tmp_path}/there/bin",
        "share": f"{tmp_path}/there/a:{tmp_path}/there/b",
    }


def test_an_empty_value_is_the_default(tmp_path: Path) -> None:
    (tmp_path / "cluster.toml").write_text('engine = "docker"\nmachine = "two"')
    settings = read(tmp_path, environment={"DMUC_ENGINE": ""}, words={"machine": ""})
    assert (settings.engine, settings.machine) == ("auto", "dmuc1")
    assert settings.given == {}


def test_nothing_is_remembered_of_a_cluster_that_is_not_there(tmp_path: Path) -> None:
    assert remembered(tmp_path / "nowhere") == {}
    (tmp_path / "settings.json").write_text("{ half")
    assert remembered(tmp_path) == {}


def test_a_commands_own_words_are_no_settings() -> None:
    own = {"user": ("name", "namespace")}
    words = ["machine=two", "user", "name=ada", "namespace=a", "kubernetes=1.20", "--", "x=y"]
    assert arguments(words, own) == {"machine": "two", "kubernetes": "1.20"}
    assert arguments(["name=ada", "status"], own) == {"name": "ada"}  # said to be no setting
    assert arguments(["name=ada", "user"], own) == {}
