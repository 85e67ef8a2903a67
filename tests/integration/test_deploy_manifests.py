"""What docs/operations.md promises of the manifests, on what kustomize makes of them."""

from __future__ import annotations

import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from gridveil_services.aggregator.committer import MOST_IN_PROGRESS
from gridveil_services.aggregator.config import AggregatorConfig
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.totals.config import TotalsConfig
from tests.support.dockerfiles import ROOT, stages
from tests.support.manifests import NEEDED, OVERLAYS, Manifests, Pod, mounts, rendered

pytestmark = NEEDED

OURS = {"embedded": {"keyholder", "totals", "aggregator"}}
OURS["cluster"] = OURS["embedded"] | {"redis", "redis-replica"}
NAMESPACES = {"gridveil-keyholder", "gridveil-aggregator"}
ALLOWED_VOLUMES = {"configMap", "secret", "persistentVolumeClaim", "own"}
APP = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
FLOWS = {
    "embedded": {
        "gridveil/meters -> aggregator:7441",
        "aggregator -> keyholder:7440",
        "gridveil/registrar -> keyholder:7440",
        "gridveil/operators -> totals:7442",
    }
}
FLOWS["cluster"] = FLOWS["embedded"] | {
    "gridveil/monitoring -> aggregator:9464",
    "aggregator -> redis:6379",
    "redis-replica -> redis:6379",
}


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def manifests(overlay: str) -> Manifests:
    return rendered(overlay)


@pytest.fixture
def pods(overlay: str, manifests: Manifests) -> dict[str, Pod]:
    """All pods, none of them missing."""
    found = manifests.pods()
    assert set(found) == OURS[overlay]
    return found


@pytest.mark.parametrize("version", ["1.25", "1.37"])
def test_every_object_is_valid_to_the_last_field(manifests: Manifests, version: str) -> None:
    assert len(manifests.objects) >= 24
    for value in manifests.objects.values():
        kubernetes_validate.validate(value, version, strict=True)


def test_every_namespace_enforces_the_restricted_standard(manifests: Manifests) -> None:
    found = {value["metadata"]["name"]: value for value in manifests.of("Namespace")}
    assert set(found) == NAMESPACES
    for value in found.values():
        for mode in ("enforce", "audit", "warn"):
            label = f"pod-security.kubernetes.io/{mode}"
            assert value["metadata"]["labels"][label] == "restricted"
    assert {namespace for _, namespace, _ in manifests.objects} == {"", *NAMESPACES}
    assert {kind for kind, namespace, _ in manifests.objects if not namespace} == {"Namespace"}


def test_every_pod_conforms_to_the_restricted_standard(pods: dict[str, Pod]) -> None:
    for pod in pods.values():
        own, container = pod.spec["securityContext"], pod.container["securityContext"]
        assert own["runAsNonRoot"] is True
        assert own["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["allowPrivilegeEscalation"] is False
        assert container["capabilities"] == {"drop": ["ALL"]}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod.spec)
        assert not any("hostPort" in port for port in pod.container["ports"])
        kinds = {kind for volume in pod.volumes.values() for kind in volume if kind != "name"}
        assert kinds <= ALLOWED_VOLUMES


def test_every_root_file_system_is_read_only(pods: dict[str, Pod]) -> None:
    for pod in pods.values():
        assert pod.container["securityContext"]["readOnlyRootFilesystem"] is True
        writable = [mount["mountPath"] for mount, _ in mounts(pod) if not mount.get("readOnly")]
        assert writable == {
            "keyholder": ["/city/keyholder/published", "/city/keyholder/state"],
            "aggregator": ["/city/aggregator/state"],
            "totals": [],
        }.get(pod.name, ["/data"])


def test_every_pod_runs_as_the_user_of_its_image_and_no_role_as_anothers(
    pods: dict[str, Pod],
) -> None:
    users = {}
    for pod in pods.values():
        own = pod.spec["securityContext"]
        users[pod.image] = own["runAsUser"]
        if pod.image != "redis":
            user = f"{own['runAsUser']}:{own['runAsGroup']}"
            assert stages()[pod.image].only("USER") == user
    assert len(users) >= 3
    assert len(set(users.values())) == len(users)
    assert 0 not in users.values()


def test_no_pod_has_a_token_for_the_cluster_or_shares_an_account(pods: dict[str, Pod]) -> None:
    accounts = {pod.image: pod.spec["serviceAccountName"] for pod in pods.values()}
    assert len(set(accounts.values())) == len(accounts) >= 3
    assert "default" not in accounts.values()
    for pod in pods.values():
        assert pod.spec["automountServiceAccountToken"] is False
        assert pod.spec["enableServiceLinks"] is False


def test_secrets_are_files_that_others_cannot_read_and_in_no_manifest(
    manifests: Manifests, pods: dict[str, Pod]
) -> None:
    assert "Secret" not in {kind for kind, _, _ in manifests.objects}
    named = 0
    for pod in pods.values():
        assert not {"env", "envFrom"} & set(pod.container)
        for volume in pod.volumes.values():
            if "secret" in volume:
                named += 1
                assert volume["secret"]["defaultMode"] == 0o440
    assert named >= 5
    assert not [name for name in manifests.config_files() if not name.endswith((".toml", ".conf"))]


def test_only_the_key_holder_has_the_key_and_its_state(pods: dict[str, Pod]) -> None:
    owners = {
        volume["secret"]["secretName"]: pod.name
        for pod in pods.values()
        for volume in pod.volumes.values()
        if "secret" in volume and pod.name != "redis-replica"
    }
    secrets = Counter(
        volume["secret"]["secretName"]
        for pod in pods.values()
        for volume in pod.volumes.values()
        if "secret" in volume and pod.name != "redis-replica"
    )
    assert set(secrets.values()) == {1}
    assert owners["keyholder-kek"] == owners["keyholder-identity"] == "keyholder"
    assert {"keyholder-tls", "totals-tls", "aggregator-tls"} <= set(owners)
    assert "state" in pods["keyholder"].volumes


def test_the_aggregator_shares_no_storage_and_no_namespace_with_the_key_holder(
    manifests: Manifests, pods: dict[str, Pod]
) -> None:
    claims: dict[str, set[str]] = {}
    for pod in pods.values():
        for volume in pod.volumes.values():
            if "persistentVolumeClaim" in volume:
                claim = volume["persistentVolumeClaim"]["claimName"]
                claims.setdefault(f"{pod.namespace}/{claim}", set()).add(pod.name)
    assert claims == {"gridveil-keyholder/keyholder-published": {"keyholder", "totals"}}
    assert {c["metadata"]["namespace"] for c in manifests.of("PersistentVolumeClaim")} == {
        "gridveil-keyholder"
    }
    domains = {name: pod.namespace for name, pod in pods.items()}
    assert {name for name, own in domains.items() if own == "gridveil-keyholder"} == {
        "keyholder",
        "totals",
    }


def test_totals_reads_what_is_published_and_cannot_write_it(pods: dict[str, Pod]) -> None:
    totals = pods["totals"]
    ((mount, volume),) = [pair for pair in mounts(totals) if "persistentVolumeClaim" in pair[1]]
    assert mount["readOnly"] is True
    assert volume["persistentVolumeClaim"]["readOnly"] is True
    keyholder = pods["keyholder"].spec["securityContext"]
    own = totals.spec["securityContext"]
    assert own["runAsGroup"] == keyholder["runAsGroup"] == keyholder["fsGroup"]
    (near,) = totals.spec["affinity"]["podAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert near["labelSelector"]["matchLabels"] == {APP: "keyholder"}


def test_every_namespace_denies_what_is_not_allowed(manifests: Manifests) -> None:
    denying = [
        policy["metadata"]["namespace"]
        for policy in manifests.of("NetworkPolicy")
        if policy["spec"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    ]
    assert sorted(denying) == sorted(NAMESPACES)


def test_nobody_reaches_more_than_the_documented_ports(
    overlay: str, manifests: Manifests, pods: dict[str, Pod]
) -> None:
    """Both ends of every connection within the city must allow it."""
    network = Network(manifests, pods)
    inside = {
        f"{source} -> {target}:{port}"
        for source, target in product(pods, pods)
        for port in network.ingress_ports(source, target) & network.egress_ports(source, target)
    }
    outside = {
        f"{caller} -> {target}:{port}"
        for target in pods
        for caller, port in network.callers(target)
    }
    assert inside | outside == FLOWS[overlay]


def test_nobody_calls_out_but_for_names(overlay: str, manifests: Manifests) -> None:
    out = [
        (policy["spec"]["podSelector"]["matchLabels"][APP], rule)
        for policy in manifests.of("NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for peer in rule["to"]
        if peer.get("namespaceSelector", {}).get("matchLabels", {}).get(Network.NAMESPACE)
        not in {None, *NAMESPACES}
    ]
    assert sorted(app for app, _ in out) == ["aggregator", "redis"][: 1 + (overlay == "cluster")]
    for _, rule in out:
        (peer,) = rule["to"]
        assert peer["podSelector"] == {"matchLabels": {"k8s-app": "kube-dns"}}
        assert [port["port"] for port in rule["ports"]] == [53, 53]
    assert "ipBlock" not in str(manifests.of("NetworkPolicy"))


class Network:
    """What a cluster's network policies let through; only the selectors used here are known."""

    NAMESPACE = "kubernetes.io/metadata.name"

    def __init__(self, manifests: Manifests, pods: dict[str, Pod]) -> None:
        self._policies = manifests.of("NetworkPolicy")
        self._pods = pods

    def ingress_ports(self, source: str, target: str) -> set[int]:
        return self._ports("ingress", "from", target, source)

    def egress_ports(self, source: str, target: str) -> set[int]:
        return self._ports("egress", "to", source, target)

    def callers(self, target: str) -> set[tuple[str, int]]:
        """Labels of namespaces outside the city from which a port is reached."""
        found = set()
        for rule in self._rules("ingress", self._pods[target]):
            for peer in rule["from"]:
                labels = peer.get("namespaceSelector", {}).get("matchLabels", {})
                marks = [name for name in labels if name != self.NAMESPACE]
                found |= {(mark, port["port"]) for mark in marks for port in rule["ports"]}
                assert all(labels[mark] == "true" for mark in marks)
        return found

    def _ports(self, way: str, key: str, own: str, other: str) -> set[int]:
        return {
            port["port"]
            for rule in self._rules(way, self._pods[own])
            if any(self._matches(peer, self._pods[own], self._pods[other]) for peer in rule[key])
            for port in rule["ports"]
        }

    def _rules(self, way: str, pod: Pod) -> list[dict[str, Any]]:
        return [
            rule
            for policy in self._policies
            if policy["metadata"]["namespace"] == pod.namespace
            and self._selects(policy["spec"]["podSelector"], pod.labels)
            for rule in policy["spec"].get(way, [])
        ]

    def _matches(self, peer: dict[str, Any], own: Pod, other: Pod) -> bool:
        assert peer
        assert set(peer) <= {"namespaceSelector", "podSelector"}
        labels = {self.NAMESPACE: other.namespace}
        if "namespaceSelector" not in peer:
            labels, there = {}, other.namespace == own.namespace
        else:
            there = self._selects(peer["namespaceSelector"], labels)
        return there and self._selects(peer.get("podSelector", {}), other.labels)

    @staticmethod
    def _selects(selector: dict[str, Any], labels: Any) -> bool:
        assert set(selector) <= {"matchLabels"}
        return set(selector.get("matchLabels", {}).items()) <= set(labels.items())


def test_readiness_is_asked_by_the_products_own_command(pods: dict[str, Pod]) -> None:
    ours = [pod for pod in pods.values() if pod.image != "redis"]
    assert len(ours) == 3
    for pod in ours:
        probe = pod.container["readinessProbe"]
        assert probe["exec"]["command"] == stages()[pod.image].health_command
        (port,) = {port["containerPort"] for port in pod.container["ports"]}
        assert f"127.0.0.1:{port}" in probe["exec"]["command"]


def test_liveness_never_depends_on_others_and_leaves_a_sealed_key_holder_alone(
    pods: dict[str, Pod],
) -> None:
    assert "livenessProbe" not in pods["keyholder"].container
    others = [pod for pod in pods.values() if pod.name != "keyholder"]
    assert len(others) >= 2
    for pod in others:
        (port,) = [port["name"] for port in pod.container["ports"]]
        assert pod.container["livenessProbe"]["tcpSocket"] == {"port": port}


def test_a_key_holder_that_is_not_ready_is_still_reached(manifests: Manifests) -> None:
    service = manifests.objects["Service", "gridveil-keyholder", "keyholder"]
    assert service["spec"]["publishNotReadyAddresses"] is True


def test_there_is_one_key_holder_and_nobody_evicts_it(
    manifests: Manifests, pods: dict[str, Pod]
) -> None:
    assert pods["keyholder"].workload["spec"]["replicas"] == 1
    budgets = {
        value["spec"]["selector"]["matchLabels"][APP]: value["spec"]["maxUnavailable"]
        for value in manifests.of("PodDisruptionBudget")
    }
    assert budgets.pop("keyholder") == 0
    assert budgets == {pod.labels[APP]: 1 for pod in pods.values() if pod.name != "keyholder"}


def test_every_process_is_given_the_time_to_drain(pods: dict[str, Pod]) -> None:
    for pod in pods.values():
        least = 300 if pod.image == "redis" else 30
        assert pod.spec["terminationGracePeriodSeconds"] >= least


def test_every_container_asks_for_what_it_needs_and_is_bounded(pods: dict[str, Pod]) -> None:
    for pod in pods.values():
        resources = pod.container["resources"]
        assert set(resources["requests"]) == set(resources["limits"]) == {"cpu", "memory"}


def test_every_image_is_named_by_a_version(manifests: Manifests, pods: dict[str, Pod]) -> None:
    for pod in pods.values():
        image = pod.container["image"]
        assert re.fullmatch(r"[a-z.]+/(gridveil|library)/[a-z]+:\d[\w.-]*", image), image
    assert len(pods) == len(
        [o for o in manifests.objects.values() if o["kind"] in {"StatefulSet", "Deployment"}]
    )


def test_services_lead_to_pods_that_listen_there(manifests: Manifests) -> None:
    pods = manifests.pods()
    services = manifests.of("Service")
    assert len(services) >= 4
    for service in services:
        selector = set(service["spec"]["selector"].items())
        (pod,) = [pod for pod in pods.values() if selector <= set(pod.labels.items())]
        assert pod.namespace == service["metadata"]["namespace"]
        (port,) = service["spec"]["ports"]
        names = {own["name"]: own["containerPort"] for own in pod.container["ports"]}
        assert names[port["targetPort"]] == port["port"]
        assert service["spec"].get("type", "ClusterIP") == "ClusterIP"


def test_configurations_are_taken_by_the_services_themselves(
    overlay: str, manifests: Manifests, tmp_path: Path
) -> None:
    files = manifests.config_files()
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    keyholder = KeyHolderConfig.load(tmp_path / "keyholder.toml")
    totals = TotalsConfig.load(tmp_path / "totals.toml")
    aggregator = AggregatorConfig.load(tmp_path / "aggregator.toml")
    pods = manifests.pods()
    listens = {
        "keyholder": keyholder.listen,
        "totals": totals.listen,
        "aggregator": aggregator.listen,
    }
    for name, listen in listens.items():
        (port,) = pods[name].container["ports"]
        assert listen == f"0.0.0.0:{port['containerPort']}"
    assert aggregator.keyholder == "keyholder.gridveil-keyholder:7440"
    assert not keyholder.policy.development
    assert (aggregator.redis is not None) == (overlay == "cluster")
    assert len(files) == 3 + (overlay == "cluster")


def test_a_city_that_was_not_made_is_in_every_configuration(manifests: Manifests) -> None:
    """What is committed opens nothing, and no certificate has its name."""
    texts = [text for name, text in manifests.config_files().items() if name.endswith(".toml")]
    assert len(texts) == 3
    for text in texts:
        assert f'city_id = "{"0" * 32}"' in text


# The cluster.


def test_every_aggregator_and_every_redis_has_a_volume_of_its_own() -> None:
    pods = rendered("cluster").pods()
    for name in ("aggregator", "redis", "redis-replica"):
        assert pods[name].workload["kind"] == "StatefulSet"
        (claim,) = pods[name].workload["spec"]["volumeClaimTemplates"]
        assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
        assert "persistentVolumeClaimRetentionPolicy" not in pods[name].workload["spec"]


def test_replicas_are_spread_over_nodes_and_zones() -> None:
    pods = rendered("cluster").pods()
    for name in ("aggregator", "redis", "redis-replica"):
        (apart,) = pods[name].spec["affinity"]["podAntiAffinity"][
            "requiredDuringSchedulingIgnoredDuringExecution"
        ]
        assert apart["topologyKey"] == "kubernetes.io/hostname"
        (spread,) = pods[name].spec["topologySpreadConstraints"]
        assert spread["topologyKey"] == "topology.kubernetes.io/zone"
        own = {APP: pods[name].labels[APP]}
        assert apart["labelSelector"]["matchLabels"] == own
        assert spread["labelSelector"]["matchLabels"] == own


def test_the_key_holder_is_on_no_node_of_an_aggregator() -> None:
    pods = rendered("cluster").pods()
    (apart,) = pods["keyholder"].spec["affinity"]["podAntiAffinity"][
        "requiredDuringSchedulingIgnoredDuringExecution"
    ]
    assert apart["topologyKey"] == "kubernetes.io/hostname"
    assert apart["namespaces"] == [pods["aggregator"].namespace]
    labels = apart["labelSelector"]["matchLabels"].items()
    assert labels
    assert labels <= pods["aggregator"].labels.items()


def test_the_autoscaler_follows_reports_in_progress_well_below_what_one_aggregator_takes() -> None:
    manifests = rendered("cluster")
    (scaler,) = manifests.of("HorizontalPodAutoscaler")
    (metric,) = scaler["spec"]["metrics"]
    target = metric["pods"]["target"]
    # tests/integration/test_metrics.py sees a process expose it.
    assert metric["pods"]["metric"] == {"name": "gridveil_reports_in_progress"}
    source = ROOT / "services" / "gridveil_services" / "aggregator" / "metrics.py"
    assert '"gridveil_reports_in_progress"' in source.read_text()
    assert 0 < int(target["averageValue"]) <= MOST_IN_PROGRESS // 4
    assert scaler["spec"]["minReplicas"] == 3
    own = manifests.pods()["aggregator"].workload
    assert scaler["spec"]["scaleTargetRef"]["name"] == own["metadata"]["name"]
    assert "replicas" not in own["spec"]


def test_a_replica_stays_until_the_windows_that_it_took_reports_for_are_sealed() -> None:
    (scaler,) = rendered("cluster").of("HorizontalPodAutoscaler")
    down = scaler["spec"]["behavior"]["scaleDown"]
    (policy,) = down["policies"]
    window_and_grace = 900 + 300
    assert policy["value"] == 1
    assert min(down["stabilizationWindowSeconds"], policy["periodSeconds"]) > window_and_grace


def test_metrics_are_collected_from_where_they_are_served(tmp_path: Path) -> None:
    manifests = rendered("cluster")
    path = tmp_path / "aggregator.toml"
    path.write_text(manifests.config_files()["aggregator.toml"])
    own = manifests.pods()["aggregator"].workload["spec"]["template"]["metadata"]["annotations"]
    assert own["prometheus.io/scrape"] == "true"
    assert own["prometheus.io/path"] == "/metrics"
    assert f'[metrics]\nlisten = "0.0.0.0:{own["prometheus.io/port"]}"\n' in path.read_text()
    AggregatorConfig.load(path)
