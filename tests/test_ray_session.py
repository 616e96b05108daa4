"""Other users cannot access the Ray of a user, and no files of it remain."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pipelines.cli import main as cli
from pipelines.execution import ray_session
from pipelines.execution.ray_session import RayNotStarted, local_ray

OTHER = 65534  # a user id without rights
ATTACK = Path(__file__).with_name("ray_attack.py")


@pytest.fixture
def place(monkeypatch):
    """A directory with a short path in which sessions are made."""
    with tempfile.TemporaryDirectory(prefix="vs-t-", dir="/tmp") as folder:
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


def attacked(folder: Path) -> dict[str, str]:
    """Results of the attacks of another user's process on the running Ray, by attack."""
    if os.getuid() != 0:
        pytest.skip("only root can start a process of another user")
    import ray

    address = ray.get_runtime_context().gcs_address
    mine = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    done = subprocess.run(
        [sys.executable, str(ATTACK), address, str(folder), str(OTHER)],
        capture_output=True, text=True, timeout=120, env=mine,
    )  # fmt: skip
    return dict(json.loads(line) for line in done.stdout.splitlines() if line.startswith("["))


TRIED = {
    "list keys", "write a key", "read a key", "overwrite a function", "look into the directory",
    "read the token",
}  # fmt: skip


@pytest.mark.slow
def test_another_user_can_neither_read_nor_write_nor_submit(place):
    with local_ray(1):
        import ray

        @ray.remote
        def answer() -> int:
            return 42

        assert ray.get(answer.remote()) == 42  # so that a pickled function exists to overwrite
        (folder,) = place.glob("vs-ray-*")
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert stat.S_IMODE((folder / "token").stat().st_mode) == 0o600
        place.chmod(0o755)
        found = attacked(folder)
        assert set(found) == {*TRIED, "submit work"}
        for what in ("list keys", "write a key", "read a key", "overwrite a function"):
            assert found[what].startswith("AuthenticationError"), found
        for what in ("look into the directory", "read the token"):
            assert found[what].startswith("PermissionError"), found
        assert found["submit work"].startswith("ConnectionError"), found
        assert ray.get(answer.remote()) == 42
    assert list(place.iterdir()) == []
    assert not any(name.startswith("RAY_AUTH") for name in os.environ)


@pytest.mark.thorough
@pytest.mark.slow
def test_the_same_attack_succeeds_on_a_ray_without_token(place):
    """So the attacks of the test above are effective."""
    program = f"""
import json, os, sys, tempfile
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parent.parent)]!r}
tempfile.tempdir = {str(place)!r}
from pipelines.execution import ray_session
start = ray_session._init
def without_token(folder, cpus):
    os.environ["RAY_AUTH_MODE"] = "disabled"
    folder.chmod(0o755)
    (folder / "token").chmod(0o644)
    start(folder, cpus)
ray_session._init = without_token
from test_ray_session import attacked
import ray
with ray_session.local_ray(1):
    ray.get(ray.remote(lambda: 42).remote())
    (folder,) = Path(tempfile.tempdir).glob("vs-ray-*")
    print("FOUND", json.dumps(attacked(folder)))
"""
    place.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=200, check=False
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("FOUND"))
    found = json.loads(line.removeprefix("FOUND"))
    assert all(found[what].startswith("DONE") for what in TRIED), found


@pytest.mark.slow
def test_leftovers_of_a_killed_run_are_removed_at_the_next_start(place):
    program = f"""
import sys, tempfile, time
sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
tempfile.tempdir = {str(place)!r}
from pipelines.execution.ray_session import local_ray
with local_ray(1):
    print("started", flush=True)
    time.sleep(600)
"""
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "started\n"
    (left,) = place.glob("vs-ray-*")
    with ray_session._private_directory() as own:
        assert left.exists()  # its process is running
        assert own != left
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    with ray_session._private_directory():
        assert not left.exists()
    message = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
    assert str(left) not in message


def test_only_abandoned_directories_of_this_user_are_removed(place, tmp_path):
    (place / "vs-ray-abandoned" / "r").mkdir(parents=True)
    (place / "vs-other").mkdir()
    (tmp_path / "kept").mkdir()
    (place / "vs-ray-link").symlink_to(tmp_path / "kept")
    with ray_session._private_directory() as first, ray_session._private_directory() as second:
        there = {path.name for path in place.iterdir()}
        assert there == {"vs-other", "vs-ray-link", first.name, second.name}
    assert (tmp_path / "kept").exists()


# Where it starts, and what it says where it cannot ------------------------------------------------


def test_a_long_tmpdir_is_not_used(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    assert ray_session._socket_folder() == Path("/tmp")
    with ray_session._private_directory() as folder:
        socket = folder / "r" / "session_2026-11-26_18-07-12_219432_4194304/sockets/plasma_store"
        assert len(os.fsencode(socket)) <= 107


def test_a_short_tmpdir_is_used(place):
    assert ray_session._socket_folder() == place


def test_the_longest_accepted_tmpdir_leaves_room_for_the_socket(monkeypatch):
    with tempfile.TemporaryDirectory(prefix="t", dir="/tmp") as base:
        for length, kept in (
            (ray_session._MAX_PATH_BYTES, True),
            (ray_session._MAX_PATH_BYTES + 1, False),
        ):
            folder = Path(base) / ("y" * (length - len(base) - 1))
            folder.mkdir()
            monkeypatch.setattr(tempfile, "tempdir", str(folder))
            assert (ray_session._socket_folder() == folder) is kept


def run_smoke(monkeypatch, capsys, home: Path) -> str:
    """The stderr of a `run smoke` that ends with exit code 1."""
    monkeypatch.setattr(sys, "argv", ["var-scaling", "run", "smoke", "--home", str(home)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_run_says_what_to_set_if_no_directory_is_suitable(monkeypatch, capsys, tmp_path):
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    monkeypatch.setattr(ray_session, "_SOCKET_FOLDERS", ())
    message = run_smoke(monkeypatch, capsys, tmp_path / "home")
    assert message.startswith("error: Ray needs a writable directory for its sockets")
    assert f"at most {ray_session._MAX_PATH_BYTES} bytes" in message
    assert "Set TMPDIR to such a directory" in message


def test_a_failed_start_is_retried_once_with_a_longer_timeout(monkeypatch, place):
    from ray._private import ray_constants

    usual = ray_constants.GCS_SERVER_REQUEST_TIMEOUT_SECONDS
    tries = []

    def init(folder: Path, cpus: int) -> None:
        allowed = ray_constants.GCS_SERVER_REQUEST_TIMEOUT_SECONDS
        tries.append((allowed, os.environ.get(ray_session._PORT_WAIT)))
        if len(tries) == 1:
            raise TimeoutError("Timed out after 30 seconds\nand 23 more lines")

    monkeypatch.setattr(ray_session, "_init", init)
    with local_ray(1):
        pass
    assert tries == [(usual, None), (180, "180")]
    assert usual == ray_constants.GCS_SERVER_REQUEST_TIMEOUT_SECONDS
    assert ray_session._PORT_WAIT not in os.environ


def test_a_second_failed_start_raises_an_error(monkeypatch, capsys, place, tmp_path):
    def init(folder: Path, cpus: int) -> None:
        raise Exception("The current node timed out during startup.\nand 23 more lines")

    monkeypatch.setattr(ray_session, "_init", init)
    message = run_smoke(monkeypatch, capsys, tmp_path / "home")
    assert message.startswith(
        "error: Ray did not start, neither with its default timeouts (The cur"
    )
    assert "Run again when the load is lower" in message
    assert "TMPDIR" in message
    assert len(message.strip().splitlines()) == 1
    assert list(place.iterdir()) == []


def test_a_node_that_registers_late_is_waited_for(monkeypatch):
    monkeypatch.setattr(ray_session.time, "sleep", lambda seconds: None)
    answers = iter([RuntimeError("not yet"), RuntimeError("not yet"), {"node": 1}])

    def ask(address: str, node: str) -> dict:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert ray_session._with_retries(ask)("127.0.0.1:1", "n") == {"node": 1}


def test_ray_settings_of_the_user_are_restored(monkeypatch, place):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "mine")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    seen = {}

    def init(folder: Path, cpus: int) -> None:
        seen.update(os.environ)

    monkeypatch.setattr(ray_session, "_init", init)
    with local_ray(1):
        pass
    assert seen["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in seen
    assert (os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"]) == ("disabled", "mine")


def test_a_failed_start_is_printed_as_an_error():
    assert issubclass(RayNotStarted, OSError)
