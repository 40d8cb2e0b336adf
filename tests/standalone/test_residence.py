"""Where root's PostgreSQL lives, and that nothing of it is left once it is not wanted."""

import os
import shutil
import stat
from pathlib import Path

import pytest

from services.standalone import postgres
from services.standalone.postgres import EmbeddedPostgres
from services.standalone.residence import Residence
from services.standalone.wheels import postgres_home

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="others' clusters are where they say")


def test_a_cluster_whose_data_directory_is_gone_is_cleared_by_the_next_start(
    tmp_path: Path,
) -> None:
    abandoned = EmbeddedPostgres(tmp_path / "abandoned")
    abandoned.data_dir.mkdir()
    abandoned.initialise()
    assert tmp_path not in abandoned.cluster_dir.parents
    shutil.rmtree(abandoned.data_dir)

    following = EmbeddedPostgres(tmp_path / "following", durable=False)
    following.data_dir.mkdir()
    following.initialise()

    assert not abandoned.cluster_dir.exists()
    assert following.cluster_dir.exists()
    following.destroy()


def test_a_cluster_stays_in_a_data_directory_that_the_unprivileged_user_can_reach() -> None:
    # Beside the sources every folder is open in most checkouts; the temporary folder always is.
    open_folder = Path(os.path.realpath("/tmp")) / f"cogni-open-{os.getpid()}"
    open_folder.mkdir(mode=0o755)

    cluster = EmbeddedPostgres(open_folder / "data", durable=False)

    assert cluster.cluster_dir == open_folder / "data" / "postgres"
    open_folder.rmdir()


def test_programs_that_the_unprivileged_user_cannot_reach_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a clone below `mktemp -d`, with an environment of its own.
    package = postgres_home().parent
    for part in (package, package.with_name(f"{package.name}.libs")):
        if part.is_dir():
            shutil.copytree(part, tmp_path / part.name, symlinks=True)
    tmp_path.chmod(stat.S_IRWXU)
    home = tmp_path / package.name / postgres_home().name
    monkeypatch.setattr(postgres, "postgres_home", lambda: home)
    cluster = EmbeddedPostgres(tmp_path / "data", durable=False)
    cluster.data_dir.mkdir()

    cluster.initialise()

    assert (cluster.cluster_dir / "PG_VERSION").exists()
    cluster.destroy()
    brought = Residence.choose(tmp_path / "data", home, durable=False).home
    assert brought.exists()
    shutil.rmtree(home)
    Residence.choose(tmp_path / "next", postgres_home(), durable=False).prepare()
    assert not brought.exists(), "nobody needs them any more"
