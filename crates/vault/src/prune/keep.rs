//! Which recovery points stay: a pure function of the points, the rules and the moment.
//!
//! Days and hours are those in which the storage took a point in, never what its host claimed. Invariants: the newest point of every
//! chain stays, and so does the newest that nothing is held against; nothing goes that is younger than the minimum age; what came in one
//! day, however much, displaces no more than one day's place.

use std::collections::{BTreeMap, HashSet};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// How many points are kept, by age; all zero means: all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct KeepRules {
    pub last: u32,
    pub hourly: u32,
    pub daily: u32,
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
}

impl KeepRules {
    pub fn keeps_all(&self) -> bool {
        *self == KeepRules::default()
    }
}

impl std::fmt::Display for KeepRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.keeps_all() {
            return f.write_str("everything");
        }
        let all = [
            ("last", self.last),
            ("hourly", self.hourly),
            ("daily", self.daily),
            ("weekly", self.weekly),
            ("monthly", self.monthly),
            ("yearly", self.yearly),
        ];
        let words: Vec<String> =
            all.iter().filter(|(_, count)| *count > 0).map(|(word, count)| format!("{word} {count}")).collect();
        f.write_str(&words.join(", "))
    }
}

/// A point, as far as retention looks at it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// Points of one group share the rules' places: one host's of a data set, or all of a data set that a plan moves between hosts.
    pub group: String,
    /// Its host's chain, and its number there.
    pub chain: String,
    pub sequence: u64,
    /// When the storage took it in.
    pub received: Timestamp,
    /// When its host says it was stored.
    pub claimed: Timestamp,
    /// Nothing is held against it: it is neither suspect nor corrupt.
    pub sound: bool,
    pub verified: bool,
    /// Why it must not be pruned, if someone said so.
    pub held: Option<String>,
    /// Someone named it to be pruned, whatever the rules say.
    pub named: bool,
    /// What applies to it; `None` where no rules were given for its data set.
    pub rules: Option<KeepRules>,
}

/// How far a host's clock may be from the storage's before a point's time is not believed.
pub const DISPLACED_HOURS: i64 = 24;

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Why {
    Last,
    Hourly,
    Daily,
    Weekly,
    Monthly,
    Yearly,
    /// The newest of its chain: the host goes on from it.
    Newest,
    /// The newest that nothing is held against.
    NewestSound,
    /// The newest that was read to the end and found right.
    NewestVerified,
    Young,
    Held(String),
    /// Its host claims another time than the storage's: a forged clock, or a copied vault. It counts for no rule and is not pruned by any.
    TimeNotBelieved,
    NoRules,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Why::Last => "last",
            Why::Hourly => "hourly",
            Why::Daily => "daily",
            Why::Weekly => "weekly",
            Why::Monthly => "monthly",
            Why::Yearly => "yearly",
            Why::Newest => "newest",
            Why::NewestSound => "newest sound",
            Why::NewestVerified => "newest verified",
            Why::Young => "too young",
            Why::Held(why) => return write!(f, "held: {why}"),
            Why::TimeNotBelieved => "time not believed",
            Why::NoRules => "no rules",
        })
    }
}

/// What else decides.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub now: Timestamp,
    /// Nothing that came in less than this ago is pruned.
    pub min_age: SignedDuration,
    /// Go by the times that hosts claim: for a vault that was copied without receipts.
    pub by_claimed_time: bool,
}

impl Candidate {
    fn time(&self, limits: &Limits) -> Timestamp {
        if limits.by_claimed_time { self.claimed } else { self.received }
    }

    /// Whether its host's time and the storage's cannot both be right.
    pub fn is_displaced(&self, limits: &Limits) -> bool {
        let apart = self.received.duration_since(self.claimed).abs();
        !limits.by_claimed_time && apart > SignedDuration::from_hours(DISPLACED_HOURS)
    }
}

/// For each point why it stays; where there is no reason, it goes.
pub fn decide(points: &[Candidate], limits: &Limits) -> Vec<Vec<Why>> {
    let mut kept: Vec<Vec<Why>> = points.iter().map(|point| always(point, limits)).collect();
    let mut chains: BTreeMap<&str, usize> = BTreeMap::new();
    let mut groups: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (place, point) in points.iter().enumerate() {
        let newest = chains.entry(&point.chain).or_insert(place);
        if points[*newest].sequence < point.sequence {
            *newest = place;
        }
        groups.entry(&point.group).or_default().push(place);
    }
    for place in chains.into_values() {
        kept[place].push(Why::Newest);
    }
    for mut group in groups.into_values() {
        // Newest first; what came at once, by its number.
        group.sort_by_key(|place| {
            let point = &points[*place];
            std::cmp::Reverse((point.time(limits), point.sequence))
        });
        keep_by_rules(points, &group, limits, &mut kept);
    }
    for (place, point) in points.iter().enumerate() {
        if point.named {
            kept[place].retain(|why| matches!(why, Why::Newest | Why::NewestSound | Why::Held(_)));
        }
    }
    kept
}

fn always(point: &Candidate, limits: &Limits) -> Vec<Why> {
    let mut why = Vec::new();
    why.extend(point.held.clone().map(Why::Held));
    if point.rules.is_none_or(|rules| rules.keeps_all()) {
        why.push(Why::NoRules);
    }
    if point.is_displaced(limits) {
        why.push(Why::TimeNotBelieved);
    }
    if limits.now.duration_since(point.received) < limits.min_age {
        why.push(Why::Young);
    }
    why
}

/// `group`: places of points, newest first.
fn keep_by_rules(points: &[Candidate], group: &[usize], limits: &Limits, kept: &mut [Vec<Why>]) {
    if let Some(sound) = group.iter().find(|place| points[**place].sound) {
        kept[*sound].push(Why::NewestSound);
    }
    if let Some(verified) = group.iter().find(|place| points[**place].sound && points[**place].verified) {
        kept[*verified].push(Why::NewestVerified);
    }
    let Some(rules) = group.first().and_then(|place| points[*place].rules) else { return };
    let counted: Vec<usize> = group.iter().copied().filter(|place| !points[*place].is_displaced(limits)).collect();
    for place in counted.iter().take(rules.last as usize) {
        kept[*place].push(Why::Last);
    }
    let day = |at: Timestamp| date(at).to_string();
    // However many came today: the last so many days have a point each.
    keep_buckets(points, &counted, limits, kept, (rules.last, Why::Last), &day);
    let hour = |at: Timestamp| at.as_second().div_euclid(3600).to_string();
    keep_buckets(points, &counted, limits, kept, (rules.hourly, Why::Hourly), &hour);
    keep_buckets(points, &counted, limits, kept, (rules.daily, Why::Daily), &day);
    let week = |at: Timestamp| {
        let week = date(at).iso_week_date();
        format!("{}-{}", week.year(), week.week())
    };
    keep_buckets(points, &counted, limits, kept, (rules.weekly, Why::Weekly), &week);
    let month = |at: Timestamp| format!("{}-{}", date(at).year(), date(at).month());
    keep_buckets(points, &counted, limits, kept, (rules.monthly, Why::Monthly), &month);
    let year = |at: Timestamp| date(at).year().to_string();
    keep_buckets(points, &counted, limits, kept, (rules.yearly, Why::Yearly), &year);
}

fn date(at: Timestamp) -> Date {
    at.to_zoned(TimeZone::UTC).date()
}

/// Of each of the newest so many days (hours, …) that have points, the newest one that nothing is held against, else the newest.
fn keep_buckets(
    points: &[Candidate],
    counted: &[usize],
    limits: &Limits,
    kept: &mut [Vec<Why>],
    (count, why): (u32, Why),
    bucket: &dyn Fn(Timestamp) -> String,
) {
    let mut seen = HashSet::new();
    let mut rest = counted;
    while seen.len() < count as usize
        && let Some(first) = rest.first()
    {
        let name = bucket(points[*first].time(limits));
        let end = rest.iter().take_while(|place| bucket(points[**place].time(limits)) == name).count();
        let (within, after) = rest.split_at(end.max(1));
        let best = within.iter().find(|place| points[**place].sound).or(within.first());
        if let Some(best) = best
            && !kept[*best].contains(&why)
        {
            kept[*best].push(why.clone());
        }
        seen.insert(name);
        rest = after;
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: i64 = 3600;
    const DAY: i64 = 24 * HOUR;
    const NOW: i64 = 20_000 * DAY + 11 * HOUR;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn point(chain: &str, sequence: u64, received: i64, sound: bool, rules: KeepRules) -> Candidate {
        Candidate {
            group: chain.to_owned(),
            chain: chain.to_owned(),
            sequence,
            received: at(received),
            claimed: at(received),
            sound,
            verified: false,
            held: None,
            named: false,
            rules: Some(rules),
        }
    }

    fn limits(min_age_hours: i64) -> Limits {
        Limits { now: at(NOW), min_age: SignedDuration::from_hours(min_age_hours), by_claimed_time: false }
    }

    fn daily_points(days: i64, rules: KeepRules) -> Vec<Candidate> {
        (0..days).map(|day| point("h/d", day as u64 + 1, NOW - (days - 1 - day) * DAY, true, rules)).collect()
    }

    fn kept_sequences(points: &[Candidate], limits: &Limits) -> Vec<u64> {
        let kept = decide(points, limits);
        points.iter().zip(kept).filter(|(_, why)| !why.is_empty()).map(|(point, _)| point.sequence).collect()
    }

    #[test]
    fn one_a_day_one_a_week_one_a_month() {
        let rules = KeepRules { daily: 7, weekly: 4, monthly: 3, ..KeepRules::default() };
        let points = daily_points(200, rules);
        let kept = decide(&points, &limits(0));
        let count = |why: &Why| kept.iter().filter(|all| all.contains(why)).count();
        assert_eq!((count(&Why::Daily), count(&Why::Weekly), count(&Why::Monthly)), (7, 4, 3));
        assert!(kept.iter().filter(|all| !all.is_empty()).count() <= 14);
    }

    #[test]
    fn rules_that_say_nothing_keep_everything() {
        let points = daily_points(50, KeepRules::default());
        assert_eq!(kept_sequences(&points, &limits(0)).len(), 50);
        let mut strange = daily_points(50, KeepRules { last: 1, ..KeepRules::default() });
        strange.iter_mut().for_each(|point| point.rules = None);
        assert_eq!(kept_sequences(&strange, &limits(0)).len(), 50);
    }

    #[test]
    fn the_newest_sound_point_stays_however_many_doubtful_ones_follow() {
        let rules = KeepRules { last: 2, ..KeepRules::default() };
        let mut points = daily_points(30, rules);
        points.iter_mut().skip(10).for_each(|point| point.sound = false);
        assert_eq!(kept_sequences(&points, &limits(0)), [10, 29, 30]);
    }

    #[test]
    fn within_a_day_a_sound_point_is_preferred_to_a_newer_doubtful_one() {
        let rules = KeepRules { daily: 3, ..KeepRules::default() };
        let morning = point("c", 1, NOW - 2 * DAY, true, rules);
        let noon = point("c", 2, NOW - 2 * DAY + HOUR, false, rules);
        let today = point("c", 3, NOW, true, rules);
        assert_eq!(kept_sequences(&[morning, noon, today], &limits(0)), [1, 3]);
    }

    #[test]
    fn the_last_of_a_chain_stays_though_one_before_it_was_healed_and_so_came_later() {
        let rules = KeepRules { last: 1, ..KeepRules::default() };
        let points =
            [(1, 3), (2, 1), (3, 2)].map(|(sequence, hour)| point("c", sequence, NOW - (4 - hour) * HOUR, true, rules));
        assert_eq!(kept_sequences(&points, &limits(0)), [1, 3]);
    }

    #[test]
    fn forged_times_are_named_and_displace_nobody() {
        let rules = KeepRules { daily: 5, ..KeepRules::default() };
        let honest = daily_points(10, rules);
        let mut all = honest.clone();
        for (number, claimed) in [(11, NOW + 400 * DAY), (12, NOW - 3 * DAY), (13, 0)] {
            all.push(Candidate { claimed: at(claimed), ..point("h/d", number, NOW, true, rules) });
        }
        let kept = decide(&all, &limits(0));
        for forged in &kept[10..] {
            assert!(forged.contains(&Why::TimeNotBelieved), "{forged:?}");
        }
        for (place, before) in decide(&honest, &limits(0)).iter().enumerate() {
            assert!(before.is_empty() || !kept[place].is_empty(), "{place}: {before:?}");
        }
    }

    #[test]
    fn a_held_point_stays_and_a_named_one_goes() {
        let rules = KeepRules { last: 1, ..KeepRules::default() };
        let mut points = daily_points(4, rules);
        points[0].held = Some("a court asks for it".to_owned());
        points[1].rules = None;
        points[1].named = true;
        assert_eq!(kept_sequences(&points, &limits(0)), [1, 4]);
        points[0].named = true;
        assert_eq!(kept_sequences(&points, &limits(0)), [1, 4]);
    }

    #[test]
    fn the_newest_of_a_chain_stays_although_a_sound_one_of_its_day_is_preferred() {
        let rules = KeepRules { daily: 1, ..KeepRules::default() };
        let points = [point("c", 1, NOW - HOUR, true, rules), point("c", 2, NOW, false, rules)];
        let kept = decide(&points, &limits(0));
        assert_eq!((kept[0].contains(&Why::Daily), kept[1].as_slice()), (true, [Why::Newest].as_slice()));
    }

    #[test]
    fn the_newest_that_was_verified_stays_however_many_unread_ones_follow() {
        let mut points = daily_points(9, KeepRules { last: 2, ..KeepRules::default() });
        points[2].verified = true;
        assert_eq!(kept_sequences(&points, &limits(0)), [3, 8, 9]);
        points[2].sound = false;
        assert_eq!(kept_sequences(&points, &limits(0)), [8, 9]);
    }

    #[test]
    fn what_came_in_one_day_takes_one_days_place_whatever_days_its_host_claims() {
        let rules = KeepRules { daily: 2, ..KeepRules::default() };
        let mut points = daily_points(3, rules);
        points.push(point("h/d", 4, NOW + HOUR, true, rules));
        // Within a day of the truth, so that nothing else is held against it; and yet it is of today.
        points[2].claimed = at(NOW - 20 * HOUR);
        assert_eq!(kept_sequences(&points, &limits(0)), [2, 4]);
        let believed = Limits { by_claimed_time: true, ..limits(0) };
        assert_eq!(kept_sequences(&points, &believed), [3, 4]);
    }

    fn some_rules() -> impl Strategy<Value = KeepRules> {
        (0u32..4, 0u32..6, 0u32..8, 0u32..5, 0u32..5, 0u32..3).prop_map(
            |(last, hourly, daily, weekly, monthly, yearly)| KeepRules { last, hourly, daily, weekly, monthly, yearly },
        )
    }

    fn some_points(rules: KeepRules) -> impl Strategy<Value = Vec<Candidate>> {
        prop::collection::vec((0i64..400 * DAY, any::<bool>(), 0u8..2), 1..60).prop_map(move |raw| {
            let mut ages: Vec<_> = raw;
            ages.sort_by_key(|(age, ..)| std::cmp::Reverse(*age));
            (1u64..)
                .zip(ages)
                .map(|(n, (age, sound, chain))| point(["a", "b"][chain as usize], n, NOW - age, sound, rules))
                .collect()
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]

        #[test]
        fn something_sound_always_stays(points in some_rules().prop_flat_map(some_points), min_age in 0i64..200) {
            let limits = limits(min_age);
            let kept = decide(&points, &limits);
            for chain in ["a", "b"] {
                let of_chain = || points.iter().zip(&kept).filter(|(point, _)| point.chain == chain);
                let newest = of_chain().max_by_key(|(point, _)| point.sequence);
                prop_assert!(newest.is_none_or(|(_, why)| !why.is_empty()));
                let sound = of_chain().filter(|(point, _)| point.sound).max_by_key(|(point, _)| point.sequence);
                prop_assert!(sound.is_none_or(|(_, why)| !why.is_empty()));
            }
            for (point, why) in points.iter().zip(&kept) {
                let age = limits.now.duration_since(point.received);
                prop_assert!(age >= limits.min_age || !why.is_empty());
            }
        }

        /// Pruning what was pruned prunes nothing more.
        #[test]
        fn what_is_kept_is_kept_again(points in some_rules().prop_flat_map(some_points)) {
            let kept = decide(&points, &limits(0));
            let rest: Vec<Candidate> =
                points.iter().zip(&kept).filter(|(_, why)| !why.is_empty()).map(|(point, _)| point.clone()).collect();
            prop_assert!(decide(&rest, &limits(0)).iter().all(|why| !why.is_empty()));
        }

        /// However much a host stores within one day: it takes one day's place, and no older day's.
        #[test]
        fn a_flood_takes_one_days_place(
            (rules, points) in some_rules().prop_flat_map(|rules| some_points(rules).prop_map(move |points| (rules, points))),
            flood in 1u64..200,
        ) {
            let fewer = |count: u32| count.saturating_sub(1);
            let strict = KeepRules {
                last: 0,
                hourly: fewer(rules.hourly),
                daily: fewer(rules.daily),
                weekly: fewer(rules.weekly),
                monthly: fewer(rules.monthly),
                yearly: fewer(rules.yearly),
            };
            // What would be kept for the days' sake with one place less each.
            let with = |rules: KeepRules, points: &[Candidate]| {
                let points: Vec<Candidate> =
                    points.iter().map(|point| Candidate { rules: Some(rules), ..point.clone() }).collect();
                decide(&points, &limits(0))
            };
            let of_days = |why: &Vec<Why>| {
                why.iter().any(|why| {
                    matches!(why, Why::Hourly | Why::Daily | Why::Weekly | Why::Monthly | Why::Yearly)
                })
            };
            let before = with(strict, &points);
            let mut flooded = points.clone();
            // All within the newest hour, and doubtful or not as it likes: even sound-looking ones.
            flooded.extend((0..flood).map(|n| point("a", 10_000 + n, NOW, n % 2 == 0, rules)));
            let after = with(rules, &flooded);
            for (place, (point, why)) in points.iter().zip(&before).enumerate() {
                let same_hour = point.received.as_second().div_euclid(HOUR) == NOW.div_euclid(HOUR);
                let today = point.received.as_second().div_euclid(DAY) == NOW.div_euclid(DAY);
                // Within its own day, week, month the flood competes; what came before this year does not care.
                let this_year = date(point.received).year() == date(at(NOW)).year();
                if !same_hour && !today && !this_year && of_days(why) {
                    prop_assert!(!after[place].is_empty(), "{place}: {why:?}");
                }
            }
        }
    }
}
