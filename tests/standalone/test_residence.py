"""Where root's PostgreSQL lives, and that nothing of it is left once it is not wanted."""

import os
import shutil
from pathlib import Path

import pytest

from services.standalone.postgres import EmbeddedPostgres

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
