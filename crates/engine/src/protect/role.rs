//! What a host has to do for a write domain, decided from what is published and from what it did before.
//!
//! Invariant: a host writes only under an epoch that names its site, never writes over data of its own that may not be in
//! a vault, and never takes something that merely lies in the place for a standby's copy.

use lifeboat_core::desired::DesiredWriter;
use serde::{Deserialize, Serialize};

/// What is asked of this host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Duty {
    /// Ship what the service writes.
    Write { epoch: u64 },
    /// Ship the rest if this host wrote, and touch the volume no more.
    Hold,
    /// Apply what the writer ships.
    Follow,
}

/// The duty and the generation that it comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Orders {
    pub duty: Duty,
    pub generation: u64,
    /// The epoch in force.
    pub epoch: u64,
    /// The site that it names.
    pub writer: String,
}

pub fn decide(site: &str, desired: &DesiredWriter) -> Orders {
    let duty = match (desired.primary == site, desired.frozen) {
        (true, false) => Duty::Write { epoch: desired.epoch },
        (true, true) => Duty::Hold,
        (false, _) => Duty::Follow,
    };
    Orders { duty, generation: desired.generation, epoch: desired.epoch, writer: desired.primary.clone() }
}

/// What a host last did with a data set, on its disk: it outlives the process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "did", rename_all = "kebab-case")]
pub enum Record {
    #[default]
    Nothing,
    /// Wrote under this epoch, and may hold what no vault has.
    Wrote {
        epoch: u64,
    },
    /// Wrote under this epoch, and everything is in the vaults.
    Finished {
        epoch: u64,
    },
    Followed,
    /// Let go of the place for a restore: what comes there next is what this host is to write.
    LetGo,
}

/// What lies at this host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Something is in the volume's place.
    pub volume: bool,
    /// A standby that was not promoted yet is beside it.
    pub standby: bool,
}

/// What is published besides the duty, for a host that is told to hold.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Past {
    /// Under which epoch this site was let write last, if no other was since: it is frozen. Otherwise it is reserved.
    pub last_here: Option<u64>,
    /// Another site was let write since the epoch on record.
    pub superseded: bool,
}

/// What to do with the volume for a duty, given the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    Write {
        epoch: u64,
    },
    /// Write the end of what was begun under this epoch.
    Finish {
        epoch: u64,
    },
    LetGo {
        reserved: bool,
    },
    /// The volume may be what was written under this epoch, and may be anything else.
    Doubt {
        epoch: u64,
    },
    Follow {
        adopt: bool,
    },
    /// Apply the end of what was followed and put it in place, to write under this epoch.
    Promote {
        epoch: u64,
    },
    /// The volume holds writes of this epoch that may be nowhere else.
    Keep {
        epoch: u64,
    },
}

impl Record {
    /// What remains to be known once the place was let go of for a restore.
    pub fn after_reservation(self, found: Found) -> Record {
        match self {
            Record::Nothing | Record::Followed => Record::LetGo,
            Record::Wrote { .. } if found.volume => self,
            _ if found.standby => Record::LetGo,
            other => other,
        }
    }
}

pub fn work(duty: Duty, record: Record, found: Found, past: Past) -> Work {
    match (duty, record) {
        (Duty::Write { epoch }, Record::LetGo) => Work::Write { epoch },
        (Duty::Write { epoch }, Record::Wrote { .. }) if found.volume => Work::Write { epoch },
        // Whatever else lies in the place is not what the service wrote: the promotion moves it aside.
        (Duty::Write { epoch }, _) if found.standby => Work::Promote { epoch },
        (Duty::Write { epoch }, Record::Followed) if !found.volume => Work::Promote { epoch },
        (Duty::Write { epoch }, _) => Work::Write { epoch },
        (Duty::Hold, _) => hold(record, found, past),
        (Duty::Follow, Record::Wrote { epoch }) if found.volume => Work::Keep { epoch },
        (Duty::Follow, Record::Finished { .. }) => Work::Follow { adopt: true },
        (Duty::Follow, _) => Work::Follow { adopt: false },
    }
}

/// What to do with data that has no volume: nothing is to be finished, followed or put in place.
pub fn work_apart(duty: Duty) -> Work {
    match duty {
        Duty::Write { epoch } => Work::Write { epoch },
        Duty::Hold | Duty::Follow => Work::LetGo { reserved: false },
    }
}

/// A frozen writer finishes what it wrote; a reserved site has nothing that counts, or nothing that may be built on.
fn hold(record: Record, found: Found, past: Past) -> Work {
    let let_go = Work::LetGo { reserved: past.last_here.is_none() };
    match (past.last_here, record) {
        _ if !found.volume => let_go,
        (Some(last), Record::Finished { epoch }) if epoch == last => let_go,
        (Some(last), Record::Wrote { epoch } | Record::Finished { epoch }) if !past.superseded => {
            Work::Finish { epoch: epoch.max(last) }
        }
        // Put in place, and not written under yet as far as this host noted.
        (Some(last), Record::LetGo) => Work::Finish { epoch: last },
        (Some(last), Record::Followed) if !found.standby => Work::Finish { epoch: last },
        (Some(last), _) => Work::Doubt { epoch: last },
        (None, Record::Wrote { epoch }) if !past.superseded => Work::Finish { epoch },
        (None, _) => let_go,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Found = Found { volume: false, standby: false };
    const VOLUME: Found = Found { volume: true, standby: false };
    const STANDBY: Found = Found { volume: false, standby: true };
    const BOTH: Found = Found { volume: true, standby: true };

    fn frozen(last: u64) -> Past {
        Past { last_here: Some(last), superseded: false }
    }

    #[test]
    fn what_has_no_volume_is_written_or_let_be() {
        assert_eq!(work_apart(Duty::Write { epoch: 3 }), Work::Write { epoch: 3 });
        for duty in [Duty::Hold, Duty::Follow] {
            assert_eq!(work_apart(duty), Work::LetGo { reserved: false });
        }
    }

    #[test]
    fn unshipped_writes_are_never_written_over() {
        let none = Past::default();
        for epoch in [1, 7] {
            assert_eq!(work(Duty::Follow, Record::Wrote { epoch }, VOLUME, none), Work::Keep { epoch });
            assert_eq!(work(Duty::Follow, Record::Wrote { epoch }, NOTHING, none), Work::Follow { adopt: false });
            assert_eq!(work(Duty::Follow, Record::Finished { epoch }, VOLUME, none), Work::Follow { adopt: true });
        }
        assert_eq!(work(Duty::Follow, Record::Nothing, VOLUME, none), Work::Follow { adopt: false });
    }

    #[test]
    fn a_standby_is_put_in_place_before_its_host_writes() {
        let (duty, none) = (Duty::Write { epoch: 4 }, Past::default());
        assert_eq!(work(duty, Record::Followed, NOTHING, none), Work::Promote { epoch: 4 });
        assert_eq!(work(duty, Record::Followed, STANDBY, none), Work::Promote { epoch: 4 });
        assert_eq!(work(duty, Record::Nothing, STANDBY, none), Work::Promote { epoch: 4 });
        // Already put in place, and then the process died.
        assert_eq!(work(duty, Record::Followed, VOLUME, none), Work::Write { epoch: 4 });
        assert_eq!(work(duty, Record::Nothing, NOTHING, none), Work::Write { epoch: 4 });
    }

    #[test]
    fn a_stray_in_the_place_is_never_taken_for_the_standby() {
        for record in [Record::Followed, Record::Nothing, Record::Finished { epoch: 3 }] {
            let found = work(Duty::Write { epoch: 4 }, record, BOTH, Past::default());
            assert_eq!(found, Work::Promote { epoch: 4 }, "{record:?}");
        }
        // What was restored here on purpose is no stray, although a standby was left beside it.
        let let_go = Record::Followed.after_reservation(STANDBY);
        assert_eq!(work(Duty::Write { epoch: 4 }, let_go, BOTH, Past::default()), Work::Write { epoch: 4 });
        assert_eq!(Record::Wrote { epoch: 3 }.after_reservation(BOTH), Record::Wrote { epoch: 3 });
    }

    #[test]
    fn a_frozen_writer_finishes_what_was_written_or_says_that_it_does_not_know() {
        let held = |record, found, past| work(Duty::Hold, record, found, past);
        assert_eq!(held(Record::Wrote { epoch: 2 }, VOLUME, frozen(2)), Work::Finish { epoch: 2 });
        assert_eq!(held(Record::Finished { epoch: 2 }, VOLUME, frozen(2)), Work::LetGo { reserved: false });
        // Its agent slept while the service was let write again.
        assert_eq!(held(Record::Finished { epoch: 2 }, VOLUME, frozen(3)), Work::Finish { epoch: 3 });
        assert_eq!(held(Record::Wrote { epoch: 2 }, VOLUME, frozen(3)), Work::Finish { epoch: 3 });
        let superseded = Past { last_here: Some(3), superseded: true };
        assert_eq!(held(Record::Wrote { epoch: 1 }, VOLUME, superseded), Work::Doubt { epoch: 3 });
        assert_eq!(held(Record::Nothing, VOLUME, frozen(1)), Work::Doubt { epoch: 1 });
        assert_eq!(held(Record::Followed, BOTH, frozen(2)), Work::Doubt { epoch: 2 });
        assert_eq!(held(Record::Followed, VOLUME, frozen(2)), Work::Finish { epoch: 2 });
    }

    #[test]
    fn a_reserved_site_lets_go() {
        let reserved = |superseded| Past { last_here: None, superseded };
        let let_go = Work::LetGo { reserved: true };
        for record in [Record::Nothing, Record::Followed, Record::LetGo, Record::Finished { epoch: 1 }] {
            assert_eq!(work(Duty::Hold, record, VOLUME, reserved(false)), let_go, "{record:?}");
        }
        assert_eq!(work(Duty::Hold, Record::Wrote { epoch: 1 }, VOLUME, reserved(true)), let_go);
        assert_eq!(work(Duty::Hold, Record::Wrote { epoch: 1 }, NOTHING, reserved(false)), let_go);
        assert_eq!(work(Duty::Hold, Record::Wrote { epoch: 1 }, VOLUME, reserved(false)), Work::Finish { epoch: 1 });
    }

    #[test]
    fn only_the_named_site_writes_and_only_unfrozen() {
        let desired = |primary: &str, frozen| DesiredWriter {
            write_domain: "d".into(),
            generation: 3,
            epoch: 2,
            primary: primary.into(),
            frozen,
            at: String::new(),
        };
        assert_eq!(decide("a", &desired("a", false)).duty, Duty::Write { epoch: 2 });
        assert_eq!(decide("a", &desired("a", true)).duty, Duty::Hold);
        assert_eq!(decide("a", &desired("b", false)).duty, Duty::Follow);
        assert_eq!(decide("a", &desired("b", true)).duty, Duty::Follow);
    }
}
