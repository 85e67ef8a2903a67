"""Rendered Kubernetes objects as data, and their pods as folders on this machine."""

from __future__ import annotations

import base64
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.dockerfiles import ROOT, stages

PROGRAM = "kubectl"
NEEDED = pytest.mark.requires_tool(PROGRAM, "apt-get install kubernetes-client")
K8S = ROOT / "deploy" / "k8s"
OVERLAYS = ("embedded", "cluster")
Object = dict[str, Any]
Name = tuple[str, str, str]
"""Kind, namespace and name."""


def kubectl(*words: str) -> str:
    """What it prints; no cluster is asked."""
    done = subprocess.run(
        [PROGRAM, *words], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Pod:
    """What a workload makes pods from."""

    namespace: str
    workload: Object

    @property
    def name(self) -> str:
        return str(self.workload["metadata"]["name"])

    @property
    def labels(self) -> Mapping[str, str]:
        return dict(self.workload["spec"]["template"]["metadata"]["labels"])

    @property
    def spec(self) -> Object:
        return dict(self.workload["spec"]["template"]["spec"])

    @property
    def container(self) -> Object:
        """Its one container."""
        assert not self.spec.get("initContainers")
        (only,) = self.spec["containers"]
        return dict(only)

    @property
    def volumes(self) -> dict[str, Object]:
        """By name, those of claims of its own included, as ``{"own": True}``."""
        found = {volume["name"]: dict(volume) for volume in self.spec.get("volumes", [])}
        for claim in self.workload["spec"].get("volumeClaimTemplates", []):
            found[claim["metadata"]["name"]] = {"own": True}
        return found

    @property
    def image(self) -> str:
        """The image without registry and tag: a target of the Dockerfile, if it is ours."""
        return str(self.container["image"]).rsplit("/", 1)[-1].split(":")[0].split("@")[0]

    @property
    def command(self) -> list[str]:
        """What the container runs, with what its image says where the manifest is silent."""
        args = list(self.container.get("args", []))
        if "command" in self.container:
            return [*self.container["command"], *args]
        stage = stages()[self.image]
        return [*stage.command("ENTRYPOINT"), *(args or stage.command("CMD"))]


class Manifests:
    """What one overlay renders to."""

    def __init__(self, text: str) -> None:
        self.objects: dict[Name, Object] = {}
        for document in yaml.safe_load_all(text):
            metadata = document["metadata"]
            name = document["kind"], metadata.get("namespace", ""), metadata["name"]
            assert name not in self.objects
            self.objects[name] = document

    def of(self, kind: str) -> list[Object]:
        """All objects of a kind; at least one."""
        found = [value for (own, _, _), value in self.objects.items() if own == kind]
        assert found, kind
        return found

    def pods(self) -> dict[str, Pod]:
        """By the name of what makes them."""
        kinds = ("StatefulSet", "Deployment", "DaemonSet", "Job", "CronJob", "Pod")
        found = [
            Pod(namespace, value)
            for (kind, namespace, _), value in self.objects.items()
            if kind in kinds
        ]
        assert len({pod.name for pod in found}) == len(found)
        return {pod.name: pod for pod in found}

    def config_files(self) -> dict[str, str]:
        """The text of all files in all ConfigMaps, by name."""
        return {name: text for made in self.of("ConfigMap") for name, text in made["data"].items()}

    def files(self, pod: Pod, volume: Object) -> dict[str, bytes]:
        """What a volume of a ConfigMap holds."""
        made = self.objects["ConfigMap", pod.namespace, volume["configMap"]["name"]]
        return {name: text.encode() for name, text in made["data"].items()}


def render(folder: Path) -> Manifests:
    """What kustomize makes of a folder."""
    return Manifests(kubectl("kustomize", str(folder)))


@cache
def rendered(overlay: str) -> Manifests:
    """An overlay of deploy/k8s."""
    return render(K8S / "overlays" / overlay)


def secret_files(secret: Object) -> dict[str, bytes]:
    """The files of a Secret."""
    return {name: base64.b64decode(data) for name, data in secret["data"].items()}


def mounts(pod: Pod) -> Iterator[tuple[Object, Object]]:
    """Each mount of a pod's container with its volume; the outer ones first."""
    for mount in sorted(pod.container["volumeMounts"], key=lambda mount: mount["mountPath"]):
        yield mount, pod.volumes[mount["name"]]


def lay_out(
    pod: Pod,
    root: Path,
    manifests: Manifests,
    secrets: Mapping[tuple[str, str], Object],
    claims: Path,
) -> None:
    """Put what a pod's container sees below ``root``; claims are folders below ``claims``."""
    for mount, volume in mounts(pod):
        path = root / str(mount["mountPath"]).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if "own" in volume or "persistentVolumeClaim" in volume:
            claim = volume.get("persistentVolumeClaim", {}).get("claimName", pod.name)
            (claims / claim).mkdir(parents=True, exist_ok=True)
            path.symlink_to(claims / claim)
            continue
        if "secret" in volume:
            files = secret_files(secrets[pod.namespace, volume["secret"]["secretName"]])
        else:
            files = manifests.files(pod, volume)
        if "subPath" in mount:
            path.write_bytes(files[mount["subPath"]])
            path.chmod(0o440)
            continue
        path.mkdir()
        for name, data in files.items():
            (path / name).write_bytes(data)
            (path / name).chmod(0o440)
