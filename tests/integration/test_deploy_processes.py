"""What the manifests run, run: the commands of the pods, on files laid out as their volumes.

The city and its secrets are made by the very commands of deploy/README.md.
"""

from __future__ import annotations

import base64
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from gridveil_services.demo.processes import first_line
from tests.support import guide, redis_servers
from tests.support.manifests import (
    K8S,
    NEEDED,
    OVERLAYS,
    Manifests,
    Pod,
    lay_out,
    mounts,
    render,
    rendered,
    secret_files,
)
from tests.support.ports import spare_port

pytestmark = NEEDED

START_S = 60.0
PORTS = ("7440", "7441", "7442", "6379", "9464")


class Made:
    """A city and its secrets, made once as the guide says."""

    def __init__(self, folder: Path, overlay: str) -> None:
        self.overlay = overlay
        self.city = folder / "city"
        guide.make_city(self.city, cluster=overlay == "cluster")
        self.secrets = guide.make_secrets(self.city)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    """By overlay."""
    return {overlay: Made(tmp_path_factory.mktemp(overlay), overlay) for overlay in OVERLAYS}


class Cluster:
    """A city's pods as processes of this machine."""

    def __init__(self, folder: Path, made: Made, patch: str | None = None) -> None:
        """``patch``: one more of the overlay's ``patchesStrategicMerge``."""
        self.folder = folder
        self.city = made.city
        self.secrets = made.secrets
        self.ports = {port: spare_port() for port in PORTS}
        self.replica_port = spare_port()
        self.manifests = self._render(made.city, made.overlay, patch)
        self._running: list[subprocess.Popen[bytes]] = []

    def _render(self, city: Path, overlay: str, patch: str | None) -> Manifests:
        tree = self.folder / "k8s"
        shutil.copytree(K8S, tree)
        for name in ("keyholder", "totals"):
            self._take(city / name / f"{name}.toml", tree / "base" / "keyholder")
        base = tree / "base" / "aggregator"
        where = tree / "overlays" / "cluster" if overlay == "cluster" else base
        self._take(city / "aggregator" / "aggregator.toml", where)
        own = tree / "overlays" / overlay
        if patch is not None:
            (own / "more.yaml").write_text(patch)
            with (own / "kustomization.yaml").open("a") as kustomization:
                kustomization.write("patchesStrategicMerge:\n  - more.yaml\n")
        return render(own)

    def _take(self, source: Path, folder: Path) -> None:
        (folder / source.name).write_text(self.here(source.read_text()))

    def here(self, text: str) -> str:
        """With addresses of this machine in place of the cluster's."""
        for host in (
            "0.0.0.0",  # noqa: S104 - replaced
            "127.0.0.1",
            "keyholder.gridveil-keyholder",
            "redis-0.redis.gridveil-aggregator",
        ):
            for port, own in self.ports.items():
                text = text.replace(f"{host}:{port}", f"127.0.0.1:{own}")
        return text

    def pod(self, name: str) -> tuple[Pod, Path]:
        """A pod and its root folder, laid out when it is first asked for."""
        pod, root = self.manifests.pods()[name], self.folder / "pods" / name
        if not root.exists():
            lay_out(pod, root, self.manifests, self.secrets, self.folder / "claims")
        return pod, root

    def words(self, name: str, command: list[str]) -> list[str]:
        """A command of a pod's container, for this machine."""
        _, root = self.pod(name)
        words = [self.here(word).replace("/city/", f"{root}/city/") for word in command]
        if words[0] == "/opt/gridveil/bin/gridveil":
            words[:1] = [sys.executable, "-m", "gridveil.cli"]
        return words

    def start(self, name: str, *more: str) -> subprocess.Popen[bytes]:
        """Run what a pod's container runs."""
        pod, root = self.pod(name)
        with (root / "log").open("wb") as log:
            process = subprocess.Popen(
                [*self.words(name, pod.command), *more], stdout=subprocess.PIPE, stderr=log
            )
        self._running.append(process)
        return process

    def serve(self, name: str) -> None:
        """Start one of our services and wait until it serves."""
        line = first_line(self.start(name), START_S)
        assert line, (self.pod(name)[1] / "log").read_text()
        assert json.loads(line)["event"] == "serving"

    def probe(self, name: str) -> int:
        """The exit code of the readiness probe: 0 if ready, 1 if not, 3 without an answer."""
        pod, _ = self.pod(name)
        command = self.words(name, pod.container["readinessProbe"]["exec"]["command"])
        return subprocess.run(command, capture_output=True, check=False).returncode

    def become_ready(self, name: str) -> None:
        """Wait for the readiness probe."""
        end = time.monotonic() + START_S
        while self.probe(name) != 0:
            assert time.monotonic() < end, (self.pod(name)[1] / "log").read_text()
            time.sleep(0.2)

    def stop(self) -> list[int]:
        """As Kubernetes does; the exit codes."""
        for process in reversed(self._running):
            process.send_signal(signal.SIGTERM)
        codes = [process.wait(timeout=60) for process in self._running]
        for process in self._running:
            assert process.stdout is not None
            process.stdout.close()
        self._running.clear()
        return codes

    def kill(self) -> None:
        for process in self._running:
            process.kill()
        self.stop()


@pytest.fixture
def embedded(tmp_path: Path, made: dict[str, Made]) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, made["embedded"])
    yield cluster
    cluster.kill()


@pytest.fixture
def cluster(tmp_path: Path, made: dict[str, Made]) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path, made["cluster"])
    yield cluster
    cluster.kill()


def test_the_embedded_citys_pods_serve_answer_their_probes_and_drain(embedded: Cluster) -> None:
    embedded.serve("keyholder")
    embedded.become_ready("keyholder")
    embedded.serve("totals")
    embedded.become_ready("totals")
    embedded.serve("aggregator")
    # There is no roster before the window after the first meter was enrolled.
    assert embedded.probe("aggregator") == 1
    published = embedded.folder / "claims" / "keyholder-published"
    assert (published / "log").is_dir()
    assert not list((embedded.pod("totals")[1] / "city" / "totals").glob("*.new"))
    assert embedded.stop() == [0, 0, 0]
    assert embedded.probe("totals") == 3


def test_a_pod_whose_configuration_is_the_committed_one_does_not_start(embedded: Cluster) -> None:
    _, root = embedded.pod("aggregator")
    path = root / "city" / "aggregator" / "aggregator.toml"
    path.chmod(0o600)
    committed = (K8S / "base" / "aggregator" / "aggregator.toml").read_text()
    path.write_text(embedded.here(committed))
    assert embedded.start("aggregator").wait(timeout=60) == 2


@redis_servers.NEEDED
def test_the_clusters_redis_is_one_that_its_aggregator_takes(cluster: Cluster) -> None:
    for name, port in (
        ("redis", cluster.ports["6379"]),
        ("redis-replica", cluster.replica_port),
    ):
        start_redis(cluster, name, port)
    redis_servers.until(lambda: has_a_good_replica(cluster))
    cluster.serve("keyholder")
    cluster.serve("aggregator")
    assert cluster.probe("aggregator") == 1
    assert cluster.stop() == [0, 0, 0, 0]


def has_a_good_replica(cluster: Cluster) -> bool:
    """Whether the master takes writes: before, an aggregator ends and is started again."""
    password = (cluster.city / "aggregator" / "redis.password").read_text().strip()
    port = int(cluster.ports["6379"])
    client: Any = Redis("127.0.0.1", port, username="gridveil", password=password, protocol=2)
    with closing(client):
        return int(client.info("replication")["min_slaves_good_slaves"]) >= 1


def start_redis(cluster: Cluster, name: str, port: int) -> None:
    """A server with the rendered settings, its paths and ports those of this machine."""
    pod, root = cluster.pod(name)
    path = root / "etc" / "redis" / "redis.conf"
    path.chmod(0o600)
    settings = path.read_text()
    for inside in ("/data", "/etc/redis"):
        assert f" {inside}" in settings
        settings = settings.replace(f" {inside}", f" {root}{inside}")
    path.write_text(settings)
    command = [f"{root}{word}" if word.startswith("/etc/") else word for word in pod.command]
    if "--replicaof" in command:
        assert command[-2:] == ["redis-0.redis.gridveil-aggregator", "6379"]
        command[-2:] = ["127.0.0.1", str(cluster.ports["6379"])]
    pod.workload["spec"]["template"]["spec"]["containers"][0]["command"] = command
    cluster.start(name, "--bind", "127.0.0.1", "--port", str(port))
    redis_servers.until(lambda: redis_servers.refuses_strangers(port))


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_guide_makes_the_secrets_that_pods_mount_and_no_other(
    made: dict[str, Made], overlay: str
) -> None:
    secrets = made[overlay].secrets
    mounted = {
        (pod.namespace, volume["secret"]["secretName"]): mount.get("subPath")
        for pod in rendered(overlay).pods().values()
        for mount, volume in mounts(pod)
        if "secret" in volume
    }
    assert len(mounted) == {"embedded": 5, "cluster": 7}[overlay]
    assert set(secrets) == set(mounted)
    for name, file in mounted.items():
        if file is not None:
            assert set(secret_files(secrets[name])) == {file}
    assert not [own for own in secrets.values() if "ca-key.pem" in secret_files(own)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_committed_configurations_are_what_the_guide_makes_but_for_the_city(
    made: dict[str, Made], overlay: str
) -> None:
    committed = {
        name: text.split("\n")
        for name, text in rendered(overlay).config_files().items()
        if name.endswith(".toml")
    }
    assert len(committed) == 3
    for name, lines in committed.items():
        folder = made[overlay].city / name.removesuffix(".toml")
        new = (folder / name).read_text().split("\n")
        if overlay == "cluster" and name == "aggregator.toml":
            (more,) = guide.lines("printf ")
            assert more.startswith(r"""printf '\n[metrics]\nlisten = "0.0.0.0:9464"\n' >> """)
            new += ["[metrics]", 'listen = "0.0.0.0:9464"', ""]
        differing = [
            (own.split(" = ")[0], theirs.split(" = ")[0])
            for own, theirs in zip(lines, new, strict=True)
            if own != theirs
        ]
        assert set(differing) <= {("city_id", "city_id"), ("identity_key", "identity_key")}
        assert ("city_id", "city_id") in differing


def test_a_pod_with_a_split_key_waits_for_its_officers(
    tmp_path: Path, made: dict[str, Made]
) -> None:
    city = tmp_path / "city"
    shutil.copytree(made["embedded"].city, city)
    config = ["--config", str(city / "keyholder" / "keyholder.toml")]
    split = ["keyholder", "split-kek", *config, "--shares", "3", "--threshold", "2"]
    guide.gridveil(*split, "--out", str(tmp_path / "shares"), "--destroy-plain")
    sealed = (city / "keyholder" / "kek.sealed").read_bytes()
    cluster = Cluster(tmp_path, made["embedded"], guide.block("yaml"))
    name = ("gridveil-keyholder", "keyholder-kek")
    secret = {"data": {"kek.sealed": base64.b64encode(sealed).decode()}}
    cluster.secrets = {**cluster.secrets, name: secret}
    try:
        process = cluster.start("keyholder")
        log = cluster.pod("keyholder")[1] / "log"
        redis_servers.until(lambda: "waiting for officers" in log.read_text())
        assert cluster.probe("keyholder") == 3
        (line,) = guide.lines("kubectl exec ")
        unseal = cluster.words("keyholder", line.split(" -- ")[1].split(" < ")[0].split())
        for share in ("share-1.json", "share-3.json"):
            with (tmp_path / "shares" / share).open("rb") as stdin:
                subprocess.run(unseal, stdin=stdin, capture_output=True, check=True)
        assert b"serving" in first_line(process, START_S)
        cluster.become_ready("keyholder")
        assert cluster.stop() == [0]
    finally:
        cluster.kill()
