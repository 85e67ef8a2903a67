"""What ``gridveil init`` makes is whole, strict and private."""

from __future__ import annotations

import re
import stat
import tomllib
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from gridveil.profile import Profile
from gridveil.protocol.city import EntryAudience, Register
from gridveil.protocol.errors import GridveilError, MalformedInput, Reason
from gridveil.protocol.noise import Mechanism, Noise, NoisePolicy
from gridveil_services.aggregator.config import AggregatorConfig
from gridveil_services.bootstrap.city import CityOptions, create_city, neighbouring_ports
from gridveil_services.bootstrap.layout import CLIENTS, ENDPOINTS, LISTENING
from gridveil_services.bootstrap.redis_access import COMMANDS
from gridveil_services.bootstrap.toml import dumps
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.rpc.roles import Role, parse_certificate
from gridveil_services.totals.config import TotalsConfig

OPTIONS = CityOptions(
    parameter_set="ckks-4096",
    window_length=3600,
    grace=600,
    min_cohort=250,
    colluding=50,
    min_coverage=0.9,
    registers=(Register("gas_wh", "Wh", 1_000), Register("water_l", "l", 99)),
    entry_audience=EntryAudience.NOBODY,
    noise=NoisePolicy(Noise(Mechanism.GAUSSIAN, 123_456), 1_234_567),
    development=True,
    addresses=neighbouring_ports(9000),
)


def test_every_service_loads_what_was_chosen(tmp_path: Path) -> None:
    paths = create_city(tmp_path / "city", OPTIONS)

    keyholder = KeyHolderConfig.load(paths.config("keyholder"))
    totals = TotalsConfig.load(paths.config("totals"))

    policy = keyholder.policy
    assert policy.parameter_set == "ckks-4096"
    assert (policy.window_length, policy.grace, policy.early_leeway) == (3600, 600, 60)
    assert (policy.min_cohort, policy.colluding, policy.min_coverage_ppm) == (250, 50, 900_000)
    assert policy.registers == OPTIONS.registers
    assert policy.entry_audience is EntryAudience.NOBODY
    assert policy.noise == OPTIONS.noise
    assert policy.development
    assert policy.batch_limit == min(128, policy.most_reports_in_a_batch)
    assert keyholder.epoch_length == 86_400
    assert keyholder.refusals_per_day == 5
    assert keyholder.listen == "127.0.0.1:9000"
    assert totals.city_id == policy.city_id
    assert totals.window_length == 3600
    assert totals.published.resolve() == keyholder.published.resolve() == paths.published.resolve()


def test_every_client_pins_the_keyholders_identity(tmp_path: Path) -> None:
    paths = create_city(tmp_path / "city", OPTIONS)
    keyholder = KeyHolderConfig.load(paths.config("keyholder"))
    at_rest = AtRest.load(keyholder.key_encrypting_key_file, keyholder.city_id)

    key = identity.load(keyholder.state, at_rest)

    for client in CLIENTS:
        profile = Profile.load(paths.profile(client))
        assert profile.identity_key == bytes(key.verify_key)
        assert profile.city_id == keyholder.city_id
        assert tuple(profile.endpoints) == tuple(sorted(ENDPOINTS[client]))
        assert all(profile.endpoints[role] == OPTIONS.addresses[role] for role in ENDPOINTS[client])
    assert TotalsConfig.load(paths.config("totals")).identity_key == bytes(key.verify_key)


def test_every_role_has_a_certificate_of_its_role(tmp_path: Path) -> None:
    paths = create_city(tmp_path / "city")
    city_id = Profile.load(paths.profile("meter")).city_id
    authority = x509.load_pem_x509_certificate((paths.ca / "ca.pem").read_bytes())

    for role in Role:
        pem = (paths.tls(role) / "cert.pem").read_bytes()
        assert parse_certificate(pem, city_id).identity.role is role
        x509.load_pem_x509_certificate(pem).verify_directly_issued_by(authority)
        assert (paths.tls(role) / "ca.pem").read_bytes() == (paths.ca / "ca.pem").read_bytes()


def test_nobody_else_on_the_machine_can_read_a_secret(tmp_path: Path) -> None:
    paths = create_city(tmp_path / "city")

    files = [path for path in paths.folder.rglob("*") if path.is_file()]

    assert len(files) > 20
    for path in files:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_two_cities_share_nothing(tmp_path: Path) -> None:
    one, other = (create_city(tmp_path / name) for name in ("one", "other"))

    profiles = [Profile.load(paths.profile("meter")) for paths in (one, other)]

    assert profiles[0].city_id != profiles[1].city_id
    assert profiles[0].identity_key != profiles[1].identity_key


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "city").mkdir()
    (tmp_path / "city" / "mine").write_text("precious")

    with pytest.raises(MalformedInput, match="not empty") as refused:
        create_city(tmp_path / "city")

    assert refused.value.reason is Reason.CONFIG_INVALID
    assert [path.name for path in tmp_path.rglob("*")] == ["city", "mine"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "city"
    folder.mkdir()
    before = folder.stat().st_ino
    assert create_city(folder).config("keyholder").exists()
    assert folder.stat().st_ino == before
    assert [path.name for path in tmp_path.iterdir()] == ["city"]


def test_what_fails_half_way_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object) -> bytes:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(identity, "create", full)

    with pytest.raises(OSError, match="No space"):
        create_city(tmp_path / "city")

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (CityOptions(min_cohort=99), "min_cohort"),
        (CityOptions(min_cohort=150, colluding=51), "min_cohort"),
        (CityOptions(min_coverage=0.49), "min_coverage_ppm"),
        (CityOptions(min_coverage=float("nan")), "min_coverage_ppm"),
        (CityOptions(window_length=59), "window_length"),
        (CityOptions(grace=0), "grace"),
        (CityOptions(refusals_per_day=0), "refusals_per_day"),
        (CityOptions(refusals_per_day=97), "refusals_per_day"),
        (CityOptions(registers=()), "register"),
        (CityOptions(addresses={"keyholder": "x:1", "aggregator": "y"}), "aggregator"),
    ],
)
def test_options_beyond_the_limits_are_named(
    tmp_path: Path, options: CityOptions, named: str
) -> None:
    with pytest.raises(GridveilError) as refused:
        create_city(tmp_path / "city", options)

    assert refused.value.reason is Reason.CONFIG_INVALID
    assert named in f"{refused.value} {refused.value.metadata}"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("colluding", "cohort"), [(0, 1000), (900, 1000), (901, 1001)])
def test_the_cohort_follows_who_may_collude(colluding: int, cohort: int) -> None:
    assert CityOptions(colluding=colluding).policy(bytes(16)).min_cohort == cohort


def test_services_get_ports_in_a_row() -> None:
    ports = [address.rpartition(":")[2] for address in neighbouring_ports(7000).values()]
    assert tuple(neighbouring_ports(7000)) == LISTENING
    assert ports == ["7000", "7001", "7002", "7003"]


KEYS = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
TABLES = st.recursive(
    st.dictionaries(KEYS, SCALARS, max_size=4),
    lambda inner: st.dictionaries(KEYS, SCALARS | inner | st.lists(inner, min_size=1, max_size=3)),
    max_leaves=8,
)


@given(TABLES)
def test_any_configuration_is_read_as_it_was_written(document: dict[str, object]) -> None:
    assert tomllib.loads(dumps(document)) == document  # type: ignore[arg-type]


def test_clients_and_the_aggregator_find_services_where_they_are_reached(tmp_path: Path) -> None:
    reached_at = {"keyholder": "keyholder.example:1", "totals": "totals.example:2"}

    paths = create_city(tmp_path / "city", CityOptions(reached_at=reached_at))

    assert KeyHolderConfig.load(paths.config("keyholder")).listen == "127.0.0.1:7440"
    assert AggregatorConfig.load(paths.config("aggregator")).keyholder == "keyholder.example:1"
    assert Profile.load(paths.profile("registrar")).endpoint("keyholder") == "keyholder.example:1"
    auditor = Profile.load(paths.profile("auditor"))
    assert auditor.endpoint("totals") == "totals.example:2"
    assert auditor.endpoint("aggregator") == "127.0.0.1:7441"


def test_a_city_with_redis_has_its_users_and_the_aggregator_their_password(tmp_path: Path) -> None:
    options = CityOptions(redis="redis://redis.example:6379", redis_replicas=2)

    paths = create_city(tmp_path / "city", options)

    config = AggregatorConfig.load(paths.config("aggregator"))
    assert config.redis is not None
    assert (config.redis.addresses, config.redis.replicas) == ((("redis.example", 6379),), 2)
    password = config.redis.password()
    assert password is not None
    users = (paths.redis / "users.acl").read_text()
    assert f" #{sha256(password.encode()).hexdigest()} ~gv:{{{config.city_id.hex()}* " in users
    assert password not in users
    assert [line.split()[1] for line in users.splitlines()] == ["default", "gridveil", "replica"]
    for path in (*paths.redis.iterdir(), paths.role("aggregator") / "redis.password"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_aggregators_user_in_redis_is_the_documented_one() -> None:
    document = Path(__file__).parents[2] / "docs" / "operations.md"

    (documented,) = re.findall(r"^    user gridveil on (.*)$", document.read_text(), re.MULTILINE)

    assert documented == f">PASSWORD ~gv:{{CITY_ID* -@all {COMMANDS}"


@pytest.mark.parametrize(
    "options",
    [
        CityOptions(redis="rediss://redis.example:6379"),
        CityOptions(redis="redis://redis.example:6379", redis_replicas=17),
        CityOptions(reached_at={"keyholder": "no-port"}),
        CityOptions(reached_at={"witness": "witness.example:1"}),
    ],
)
def test_a_city_that_could_not_be_reached_is_not_made(tmp_path: Path, options: CityOptions) -> None:
    with pytest.raises(MalformedInput) as refused:
        create_city(tmp_path / "city", options)

    assert refused.value.reason is Reason.CONFIG_INVALID
    assert not list(tmp_path.iterdir())
