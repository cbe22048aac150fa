//! Which recovery points look as if something had gone through the data before: encrypted it, replaced it, taken it away.
//!
//! A pure function of what the signed heads say in the clear: no key is needed, and the numbers are in the reason. Thresholds and how
//! often they are wrong: `docs/ransomware.md`. Invariants: the first point of a chain is never suspect, for there is nothing to compare it
//! with; what follows a point whose data was replaced is suspect with it, until somebody who may says that it is right.

use super::PointInfo;

/// Smaller amounts say nothing: a pack has a head and a directory, however little is in it.
const BYTES_MIN: u64 = 1 << 20;
const FILES_MIN: u64 = 20;
/// A point with less than this share of the last sound one's files or bytes has shrunk.
const SHRUNK_TO: f64 = 0.5;
/// New data that hardly shrinks …
const DENSE: f64 = 0.95;
/// … where data shrank by so much more before …
const DENSER_BY: f64 = 0.20;
/// … and that took the place of so much of what was there.
const REPLACED: f64 = 0.10;
/// Or: so much was replaced at once by what does not shrink …
const CHURNED: f64 = 0.60;
/// … where no more than this was usual, in so many points.
const QUIET: f64 = 0.06;
const QUIET_POINTS: usize = 3;

/// What a point's head says, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Shape {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) bytes_new: u64,
    pub(crate) bytes_stored: u64,
    /// Somebody looked at it and said that it is right.
    pub(crate) accepted: bool,
}

impl Shape {
    pub(crate) fn of(point: &PointInfo, accepted: bool) -> Shape {
        let PointInfo { files, bytes, bytes_new, bytes_stored, .. } = *point;
        Shape { files, bytes, bytes_new, bytes_stored, accepted }
    }
}

/// Why a point is suspect.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Doubt {
    /// The point itself gives reason.
    Own(String),
    /// One before it does, and its data is still there.
    Follows,
}

#[derive(Debug, Default)]
struct Past {
    last_sound: Option<Shape>,
    new: u64,
    stored: u64,
    /// Which share of the point before each replaced.
    shares: Vec<f64>,
    /// The data of a suspect point is still what there is.
    tainted: bool,
}

/// For each point of a chain, oldest first, what is held against it.
pub(crate) fn judge(chain: &[Shape]) -> Vec<Vec<Doubt>> {
    let mut past = Past::default();
    chain.iter().map(|point| past.take(point)).collect()
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn percent(part: f64) -> u64 {
    (part * 100.0).round() as u64
}

impl Past {
    fn take(&mut self, point: &Shape) -> Vec<Doubt> {
        let doubts = match self.last_sound {
            Some(before) if !point.accepted => self.doubts(&before, point),
            _ => Vec::new(),
        };
        if point.accepted {
            self.tainted = false;
        }
        if doubts.is_empty() {
            if let Some(before) = self.last_sound {
                self.shares.push(share(replaced(&before, point), before.bytes));
            }
            self.new += point.bytes_new;
            self.stored += point.bytes_stored;
            self.last_sound = Some(*point);
        }
        doubts
    }

    fn doubts(&mut self, before: &Shape, point: &Shape) -> Vec<Doubt> {
        let mut doubts = Vec::new();
        let shrunk = |was: u64, is: u64, least: u64| was >= least && share(is, was) < SHRUNK_TO;
        if shrunk(before.bytes, point.bytes, BYTES_MIN) {
            let kept = percent(share(point.bytes, before.bytes));
            doubts.push(Doubt::Own(format!(
                "it holds {kept} % of the bytes of the last sound point ({} of {})",
                point.bytes, before.bytes
            )));
        }
        if shrunk(before.files, point.files, FILES_MIN) {
            let kept = percent(share(point.files, before.files));
            doubts.push(Doubt::Own(format!(
                "it holds {kept} % of the files of the last sound point ({} of {})",
                point.files, before.files
            )));
        }
        doubts.extend(self.denser(before, point).map(Doubt::Own));
        if doubts.is_empty() && self.tainted {
            doubts.push(Doubt::Follows);
        }
        doubts
    }

    /// Whether what was there was replaced by what looks like noise.
    fn denser(&mut self, before: &Shape, point: &Shape) -> Option<String> {
        let replaced = replaced(before, point);
        if replaced < BYTES_MIN || self.new < BYTES_MIN {
            return None;
        }
        let part = share(replaced, before.bytes);
        let (density, usual) = (share(point.bytes_stored, point.bytes_new), share(self.stored, self.new));
        let mut shares = self.shares.clone();
        shares.sort_by(f64::total_cmp);
        let was_quiet =
            shares.len() >= QUIET_POINTS && shares.get(shares.len() / 2).is_some_and(|middle| *middle <= QUIET);
        let entropy = part >= REPLACED && density >= DENSE && density - usual >= DENSER_BY;
        let churn = part >= CHURNED && density >= DENSE && was_quiet;
        if !entropy && !churn {
            return None;
        }
        self.tainted = true;
        Some(format!(
            "{} % of the data was replaced by data that shrinks to {} % (to {} % before): it may have been encrypted",
            percent(part.min(1.0)),
            percent(density.min(1.0)),
            percent(usual)
        ))
    }
}

/// How much of what was there is new now; what was only added does not count.
fn replaced(before: &Shape, point: &Shape) -> u64 {
    point.bytes_new.saturating_sub(point.bytes.saturating_sub(before.bytes))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const MB: u64 = 1 << 20;

    fn shape(files: u64, bytes: u64, new: u64, stored: u64) -> Shape {
        Shape { files, bytes, bytes_new: new, bytes_stored: stored, accepted: false }
    }

    /// 100 MB that shrink to 40 %, and a few days of little change.
    fn quiet_days() -> Vec<Shape> {
        let mut days = vec![shape(1000, 100 * MB, 100 * MB, 40 * MB)];
        days.extend((0..4).map(|_| shape(1000, 100 * MB, 2 * MB, MB)));
        days
    }

    fn after(mut days: Vec<Shape>, next: Shape) -> Vec<Doubt> {
        days.push(next);
        judge(&days).pop().unwrap()
    }

    #[test]
    fn data_that_was_encrypted_is_noticed_and_so_is_what_follows() {
        let mut days = quiet_days();
        days.push(shape(1000, 100 * MB, 100 * MB, 100 * MB));
        days.push(shape(1000, 100 * MB, MB, MB));
        let mut judged = judge(&days);
        assert_eq!(judged.pop().unwrap(), [Doubt::Follows]);
        let own = judged.pop().unwrap();
        let why = own.iter().find_map(|doubt| if let Doubt::Own(why) = doubt { Some(why) } else { None }).unwrap();
        insta::assert_snapshot!(why, @"100 % of the data was replaced by data that shrinks to 100 % (to 41 % before): it may have been encrypted");
        assert!(judged.iter().all(Vec::is_empty));
        // Somebody looked: it was right, and so is what follows.
        days[5].accepted = true;
        assert!(judge(&days).iter().all(Vec::is_empty));
    }

    #[test]
    fn a_tenth_that_was_encrypted_is_enough() {
        assert!(!after(quiet_days(), shape(1000, 100 * MB, 12 * MB, 12 * MB)).is_empty());
    }

    #[test]
    fn what_did_not_shrink_before_is_noticed_by_how_much_was_replaced() {
        let mut photos = vec![shape(1000, 100 * MB, 100 * MB, 99 * MB)];
        photos.extend((0..4).map(|_| shape(1000, 100 * MB, 2 * MB, 2 * MB)));
        assert!(!after(photos.clone(), shape(1000, 100 * MB, 90 * MB, 90 * MB)).is_empty());
        assert!(after(photos, shape(1500, 150 * MB, 50 * MB, 50 * MB)).is_empty());
    }

    #[test]
    fn ordinary_days_are_no_alarm() {
        // An upgrade, a VACUUM or a change of format: much is new, and it shrinks as it did.
        assert!(after(quiet_days(), shape(1200, 110 * MB, 100 * MB, 38 * MB)).is_empty());
        // New photos beside the documents.
        assert!(after(quiet_days(), shape(1400, 160 * MB, 62 * MB, 61 * MB)).is_empty());
        // A few large downloads replaced by others.
        assert!(after(quiet_days(), shape(1000, 100 * MB, 9 * MB, 9 * MB)).is_empty());
        // Some of it deleted.
        assert!(after(quiet_days(), shape(600, 60 * MB, 0, 0)).is_empty());
        // Too small to say anything.
        assert!(
            judge(&[shape(3, 9000, 9000, 3000), shape(3, 9000, 9000, 9400), shape(0, 0, 0, 0)])
                .iter()
                .all(Vec::is_empty)
        );
    }

    #[test]
    fn what_is_gone_is_noticed_until_it_is_back() {
        let mut days = quiet_days();
        days.push(shape(1000, 40 * MB, 0, 0));
        days.push(shape(400, 100 * MB, 0, 0));
        days.push(shape(1000, 100 * MB, 0, 0));
        let judged = judge(&days);
        assert_eq!(judged[5].len(), 1);
        assert_eq!(judged[6].len(), 1);
        assert!(judged[7].is_empty());
    }

    proptest! {
        #[test]
        fn the_first_is_never_suspect_and_accepted_ones_are_not(
            raw in prop::collection::vec((0u64..2000, 0u64..1 << 30, 0u64..1 << 30, 0u64..1 << 30, any::<bool>()), 1..20)
        ) {
            let chain: Vec<Shape> = raw
                .into_iter()
                .map(|(files, bytes, bytes_new, bytes_stored, accepted)| Shape { files, bytes, bytes_new, bytes_stored, accepted })
                .collect();
            let judged = judge(&chain);
            prop_assert!(judged[0].is_empty());
            prop_assert!(chain.iter().zip(&judged).all(|(point, doubts)| !point.accepted || doubts.is_empty()));
        }
    }
}
