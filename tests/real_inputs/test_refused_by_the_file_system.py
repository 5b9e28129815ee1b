"""Network and FUSE mounts that refuse what a local disk does."""

import errno
import os
import stat
from pathlib import Path

import pytest


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_folder_that_cannot_be_flushed_keeps_checkpoints(number, train, dpok, monkeypatch):
    flush = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    assert train("train-rl", "--name=run").code == 0
    assert sorted(os.listdir("runs/run/checkpoints")) == ["000001", "000002"]
    assert dpok("train-rl", "--resume=run", "--rounds=3").code == 0


def test_a_disk_that_fails_is_not_taken_for_one(train, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    result = train("train-rl", "--name=run")
    assert result.code == 1
    assert "Input/output error" in result.err
    assert os.listdir("runs/run/checkpoints") == []


def test_an_old_checkpoint_that_cannot_be_removed_ends_no_run(train, monkeypatch):
    """NFS keeps what another process has open under another name, so the folder stays."""
    remove = os.rmdir

    def busy(path, *rest, **options):
        if "00000" in str(path):
            raise OSError(errno.ENOTEMPTY, "Directory not empty")
        remove(path, *rest, **options)

    monkeypatch.setattr(os, "rmdir", busy)
    assert train("train-rl", "--name=run", "--keep=1").code == 0
    assert Path("runs/run/checkpoints/000002/manifest.json").is_file()
