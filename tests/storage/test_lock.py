"""One writer per trait folder."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from pathlib import Path

import pytest

from traitmill.engine.errors import LockedError, UsageError
from traitmill.engine.storage import TraitFolder, lock_traits


def folders(root: Path, *names: str) -> list[TraitFolder]:
    for name in names:
        (root / name).mkdir(exist_ok=True)
    return [TraitFolder(root / name) for name in names]


def test_the_holder_is_named_while_it_holds_and_forgotten_after(tmp_path: Path) -> None:
    [folder] = folders(tmp_path, "a")
    with lock_traits([folder]):
        assert json.loads(folder.lock.read_text()) == {
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
    assert folder.lock.read_text() == ""
    with lock_traits([folder]):
        pass


def test_f24_one_held_lock_means_none_is_taken(tmp_path: Path) -> None:
    a, b, c = folders(tmp_path, "a", "b", "c")
    with (
        lock_traits([b]),
        pytest.raises(LockedError, match=f"pid {os.getpid()} on {socket.gethostname()}"),
        lock_traits([c, b, a]),
    ):
        pytest.fail("b is held")
    for folder in (a, c):
        with lock_traits([folder]):
            pass


def test_f24_a_dead_holder_of_this_host_is_taken_over(tmp_path: Path) -> None:
    [folder] = folders(tmp_path, "a")
    folder.lock.write_text(json.dumps({"pid": 1, "host": socket.gethostname()}))
    with lock_traits([folder]):
        assert json.loads(folder.lock.read_text())["pid"] == os.getpid()


def test_f24_another_hosts_lock_needs_force(tmp_path: Path) -> None:
    [folder] = folders(tmp_path, "a")
    folder.lock.write_text(json.dumps({"pid": 77, "host": "elsewhere"}))
    with (
        pytest.raises(LockedError, match="pid 77 on elsewhere.*`force_unlock`"),
        lock_traits([folder]),
    ):
        pytest.fail("held elsewhere")
    assert json.loads(folder.lock.read_text())["pid"] == 77
    with lock_traits([folder], force_unlock=True):
        assert json.loads(folder.lock.read_text())["pid"] == os.getpid()


def test_f24_force_does_not_take_a_lock_that_is_held(tmp_path: Path) -> None:
    [folder] = folders(tmp_path, "a")
    with (
        lock_traits([folder]),
        pytest.raises(LockedError),
        lock_traits([folder], force_unlock=True),
    ):
        pytest.fail("held by this very process")


@pytest.mark.parametrize("content", ["", "not json", "[]", '{"pid"'])
def test_a_lock_file_that_says_nothing_is_taken(tmp_path: Path, content: str) -> None:
    [folder] = folders(tmp_path, "a")
    folder.lock.write_text(content)
    with lock_traits([folder]):
        pass


def test_a_folder_that_moved_while_it_was_held_is_no_error_of_its_own(tmp_path: Path) -> None:
    [folder] = folders(tmp_path, "a")
    with pytest.raises(ValueError, match="what the run says"), lock_traits([folder]):
        folder.path.rename(tmp_path / "moved")
        raise ValueError("what the run says")


def test_a_lock_without_kernel_that_names_nobody_can_be_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its holder was killed between making the file and writing into it."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    [folder] = folders(tmp_path, "a")
    folder.lock.with_suffix(".held").touch()
    with pytest.raises(LockedError, match="run again with `force_unlock`"), lock_traits([folder]):
        pytest.fail("held")
    with lock_traits([folder], force_unlock=True):
        assert json.loads(folder.lock.read_text())["pid"] == os.getpid()


def test_f26_a_lock_that_is_a_link_is_refused(tmp_path: Path) -> None:
    [folder] = folders(tmp_path, "a")
    outside = tmp_path / "outside"
    folder.lock.symlink_to(outside)
    with pytest.raises(UsageError), lock_traits([folder]):
        pytest.fail("a link")
    assert not outside.exists()


def test_r19_the_lock_is_taken_on_a_descriptor_that_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS makes a POSIX lock of it, which wants that."""
    modes = []
    take = fcntl.flock

    def noting(descriptor: int, what: int) -> None:
        if what & fcntl.LOCK_EX:
            modes.append(fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE)
        take(descriptor, what)

    monkeypatch.setattr(fcntl, "flock", noting)
    with lock_traits(folders(tmp_path, "a", "b")):
        pass
    assert modes == [os.O_RDWR] * 2


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_r18_a_file_system_without_kernel_locks_gets_one_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    [folder] = folders(tmp_path, "a")
    with lock_traits([folder]):
        with pytest.raises(LockedError, match=f"pid {os.getpid()}"), lock_traits([folder]):
            pytest.fail("held")
        assert json.loads(folder.lock.read_text())["pid"] == os.getpid()
    with lock_traits([folder]):  # and its holder leaves nothing that would keep others out
        pass
