//! What a host has to do for a write domain, decided from what is published and from what it did before.
//!
//! Invariant: a host writes only under an epoch that names its site, and never writes over data of its own that may not
//! be in a vault.

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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orders {
    pub duty: Duty,
    pub generation: u64,
    /// The epoch in force.
    pub epoch: u64,
}

pub fn decide(site: &str, desired: &DesiredWriter) -> Orders {
    let duty = match (desired.primary == site, desired.frozen) {
        (true, false) => Duty::Write { epoch: desired.epoch },
        (true, true) => Duty::Hold,
        (false, _) => Duty::Follow,
    };
    Orders { duty, generation: desired.generation, epoch: desired.epoch }
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
    LetGo,
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

pub fn work(duty: Duty, record: Record, has_volume: bool) -> Work {
    match (duty, record) {
        (Duty::Write { epoch }, Record::Followed) if !has_volume => Work::Promote { epoch },
        (Duty::Write { epoch }, _) => Work::Write { epoch },
        (Duty::Hold, Record::Wrote { epoch }) if has_volume => Work::Finish { epoch },
        (Duty::Hold, _) => Work::LetGo,
        (Duty::Follow, Record::Wrote { epoch }) if has_volume => Work::Keep { epoch },
        (Duty::Follow, Record::Finished { .. }) => Work::Follow { adopt: true },
        (Duty::Follow, _) => Work::Follow { adopt: false },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unshipped_writes_are_never_written_over() {
        for epoch in [1, 7] {
            assert_eq!(work(Duty::Follow, Record::Wrote { epoch }, true), Work::Keep { epoch });
            assert_eq!(work(Duty::Follow, Record::Wrote { epoch }, false), Work::Follow { adopt: false });
            assert_eq!(work(Duty::Follow, Record::Finished { epoch }, true), Work::Follow { adopt: true });
            assert_eq!(work(Duty::Hold, Record::Wrote { epoch }, true), Work::Finish { epoch });
        }
        assert_eq!(work(Duty::Hold, Record::Followed, true), Work::LetGo);
        assert_eq!(work(Duty::Follow, Record::Nothing, true), Work::Follow { adopt: false });
    }

    #[test]
    fn a_standby_is_put_in_place_before_its_host_writes() {
        let duty = Duty::Write { epoch: 4 };
        assert_eq!(work(duty, Record::Followed, false), Work::Promote { epoch: 4 });
        assert_eq!(work(duty, Record::Followed, true), Work::Write { epoch: 4 });
        assert_eq!(work(duty, Record::Nothing, false), Work::Write { epoch: 4 });
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
