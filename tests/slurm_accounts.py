"""Accounting for a temporary Slurm: MariaDB in a folder, and slurmdbd, which sacct queries.

MariaDB has no port and no password: it listens on a socket in our folder and accepts only the same
user on this host. slurmdbd can only listen on all addresses (Slurm 22.05).
"""

from pathlib import Path

from slurm_daemons import Daemons

SLURM_CONF = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={root}/munge.socket
AccountingStorageTRES={resources}
"""  # settings of accounting in the cluster's slurm.conf
SLURMDBD_CONF = """
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={port}
SlurmUser={user}
LogFile={root}/slurmdbd.log
PidFile={root}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser={user}
StorageLoc=accounting
"""


def start_database(daemons: Daemons, user: str) -> Path:
    """Start MariaDB; return its socket once it answers."""
    root = daemons.root
    data = ("--no-defaults", f"--datadir={root}/database", f"--user={user}")
    daemons.start(
        *("mariadb-install-db", *data, "--skip-test-db"),
        *("--auth-root-authentication-method=socket", f"--auth-root-socket-user={user}"),
    )
    daemons.start(
        *("setsid", "--fork", "mariadbd", *data),  # otherwise it would stay in the foreground
        *("--skip-networking", f"--socket={root}/database.socket"),
        *(f"--pid-file={root}/mariadbd.pid", f"--log-error={root}/mariadbd.log"),
        *("--innodb-buffer-pool-size=64M", "--innodb-flush-log-at-trx-commit=0"),
    )
    return root / "database.socket"
