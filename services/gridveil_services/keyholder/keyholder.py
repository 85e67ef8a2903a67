"""The key-holder as a whole: opened from its files, ready to be served."""

from __future__ import annotations

from contextlib import ExitStack

from gridveil.clock import Clock
from gridveil.files import make_folder
from gridveil.protocol.errors import IntegrityLost, Reason
from gridveil.tracing.spans import make_tracer
from gridveil_services.keyholder import identity
from gridveil_services.keyholder.at_rest import AtRest
from gridveil_services.keyholder.config import KeyHolderConfig
from gridveil_services.keyholder.epoch_keys import EpochRing
from gridveil_services.keyholder.epoch_store import EpochStore
from gridveil_services.keyholder.ledger import Ledger
from gridveil_services.keyholder.noise import check_available
from gridveil_services.keyholder.noise_pin import NoisePins
from gridveil_services.keyholder.observer import ReleaseObserver
from gridveil_services.keyholder.policy import noise_policy
from gridveil_services.keyholder.publication import LOG, Publication
from gridveil_services.keyholder.release import Releases
from gridveil_services.keyholder.roster_store import RosterStore
from gridveil_services.keyholder.settlement import alarm_if_locked
from gridveil_services.keyholder.spool import SpoolFolder
from gridveil_services.keyholder.suspicion import Suspicions
from gridveil_services.keyholder.upkeep import Upkeep
from gridveil_services.keyholder.witnesses import Witnesses
from gridveil_services.releaselog.signing import LogSigner


class KeyHolder:
    """All parts of one key-holder. Opening it settles what a crash left claimed."""

    def __init__(
        self,
        config: KeyHolderConfig,
        clock: Clock,
        at_rest: AtRest | None = None,
        *,
        unlock: int | None = None,
        observer: ReleaseObserver | None = None,
    ) -> None:
        """Open everything, or refuse to start.

        Args:
            config: a checked configuration.
            clock: metering time.
            at_rest: with the key-encrypting key; by default the one in its file.
            unlock: index in the release log of the refusal that locked the key-holder, to have
                it release again.
            observer: told of releases.

        Raises:
            GridveilError: the log, the keys or the roster are damaged, held by another process,
                or do not belong together; the key-encrypting key is not the right one; the
                key-holder is not locked by the refusal that is to be unlocked.
        """
        policy, state = config.policy, config.state
        if at_rest is None:
            at_rest = AtRest.load(config.key_encrypting_key_file, policy.city_id)
        key = identity.load(state, at_rest)
        make_folder(config.published, mode=0o755)
        self.policy = policy
        self.clock = clock
        with ExitStack() as opened:
            self.tracer = make_tracer(config.tracing, "keyholder")
            opened.callback(self.tracer.close)
            signer = LogSigner(policy.city_id, key)
            self.ledger = Ledger(
                config.published / LOG, clock, signer, witnessed=config.witnesses.are_asked
            )
            opened.callback(self.ledger.close)
            self.witnesses = Witnesses(self.ledger.log, config.witnesses)
            opened.callback(self.witnesses.stop)
            self.witnesses.check_start()
            self.ledger.witness_claims(self.witnesses.confirm)
            self.roster = RosterStore(
                state / "roster.db", policy.city_id, policy.rules, key, clock, self._log_roster
            )
            opened.callback(self.roster.close)
            self.suspicions = Suspicions(state / "suspicions.db", self.roster.members.is_enrolled)
            opened.callback(self.suspicions.close)
            store = EpochStore(state / "epochs", at_rest, bytes(key.verify_key), config.city_id)
            self.ring = EpochRing(store, self.ledger, key, policy, config.epoch_length)
            self.releases = Releases(
                policy=policy,
                identity=key,
                ledger=self.ledger,
                ring=self.ring,
                roster=self.roster,
                spools=SpoolFolder(state / "spool"),
                publication=Publication(config.published),
                pins=NoisePins(store.at_rest),
                clock=clock,
                suspicions=self.suspicions,
                observer=observer,
                tracer=self.tracer,
            )
            opened.callback(self.releases.close)
            self.upkeep = Upkeep(
                policy.rules, self.ledger, self.ring, self.roster, self.releases, clock
            )
            opened.callback(self.upkeep.stop)
            self.ring.load()
            self._check_noise()
            self.ring.retire_spent(clock.now())
            self._check_roster()
            if unlock is not None:
                self.ledger.unlock(unlock)
            alarm_if_locked(self.ledger)
            self.ledger.policy_stated(policy, config.refusals_per_day)
            self._log_roster()
            self.releases.settle_pending()
            self.upkeep.tick()
            self._opened = opened.pop_all()

    def close(self) -> None:
        """Let the files go."""
        self._opened.close()

    def _check_noise(self) -> None:
        """Find out now whether the noise that is demanded can be drawn, and fits."""
        for signed in (self.policy, *self.ring.policies()):
            noise = noise_policy(signed, self.policy)
            if noise is not None:
                check_available(noise.window, signed.bounds)

    def _check_roster(self) -> None:
        if self.roster.version(self.ledger.roster_version) is None and self.ledger.roster_version:
            raise IntegrityLost(Reason.PARTIAL_CORRUPT, "the roster is older than the release log")

    def _log_roster(self) -> None:
        """Log the roster versions that the log lacks."""
        for version, enrolled, withdrawn in self.roster.since(self.ledger.roster_version):
            self.ledger.roster_changed(version, enrolled, withdrawn)
