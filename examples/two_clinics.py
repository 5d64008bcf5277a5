"""Two clinics train a population together, and keep their records: three processes, mutual TLS.

`python examples/two_clinics.py [FOLDER]` is the server's organisation and starts the clinics, too;
each of them is `g2d federated client` with a task of its own records, as below. About a minute of
CPU; settings are small so that it is quick: quote no number from it. Needs `g2d[federated]`.
"""

import dataclasses
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

from g2d import Split, Task, load_task
from g2d.vault.vault import Vault

SETTINGS = """
[population]
members = 2
basins = 1
batch = 32
pool = 60
pool_steps = 2

[harden]
recipe = []

[federated]
rule = "mean"
root = 40
alpha = 0.0
rounds = 24
early_rounds = 0
fork_rounds = 6
local_rate = 0.3
momentum = 0.3
member_drop = 0.5
"""


def own_records(half: int) -> Task:
    """What a clinic has: the model of all, and of the digits those that lie in its own half."""
    task = load_task("digits")
    train = task.splits.train
    own = Split(train.x[half::2], train.y[half::2])
    return dataclasses.replace(task, splits=dataclasses.replace(task.splits, train=own))


def north() -> Task:
    """The task of one clinic: `g2d federated client KIT two_clinics:north`."""
    return own_records(0)


def south() -> Task:
    """The task of the other."""
    return own_records(1)


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "g2d", "federated", *map(str, words)]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def main(folder: Path) -> None:
    (folder / "few.toml").write_text(SETTINGS)
    kits, vault = folder / "kits", folder / "vault"
    subprocess.run(
        command("provision", kits, "digits", "--server", f"localhost:{free_port()}",
                "--client", "north", "--client", "south", "--settings", folder / "few.toml"),
        check=True,
    )  # fmt: skip
    here = Path(__file__).resolve().parent
    processes = [
        subprocess.Popen(command("server", kits / "server", "digits", "--vault", vault)),
        *(
            subprocess.Popen(
                command("client", kits / name, f"two_clinics:{name}", "--task-path", here)
            )
            for name in ("north", "south")
        ),
    ]
    try:
        if any(process.wait() for process in processes):  # the server first
            sys.exit("one of the processes failed")
    finally:
        for process in processes:
            process.kill()
    with Vault.open(vault) as made:
        base, members = made.entries("base")[0], made.entries("member")
    told = base.info["federated"]
    print(
        f"{told['answers']} answers of {told['clients']} clients made a base that is right on "
        f"{base.info['accuracy']:.0%}, and {len(members)} members; next: g2d fit {vault}"
    )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as work:
            main(Path(work))
