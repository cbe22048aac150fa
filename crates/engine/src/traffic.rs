//! How an authority gets traffic generations from the arbiter's storage, and which of them are sound.
//!
//! `Arbiter::publish_traffic` writes them. Where the arbiter's own readers stop at an object that cannot be believed, a
//! name server must go on: it passes over it, reports it, and looks at the others. Invariant: what is not sound, or not
//! signed by a trusted key for exactly its place, is never put in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};

use lifeboat_core::desired::TrafficGeneration;
use lifeboat_vault::sign::Signed;
use lifeboat_vault::storage::{self, Storage};

use crate::arbitrate::{Trusted, kind, number, role_names};

/// Answers of one name; more than any plan has sites.
const ANSWERS_MAX: usize = 64;
/// A day: longer would make every failover useless.
const TTL_SECONDS_MAX: u32 = 86_400;
const URL_BYTES_MAX: usize = 2048;
const TEXT_BYTES_MAX: usize = 256;
/// The largest generation that the bounds above allow is smaller.
const OBJECT_BYTES_MAX: u64 = 256 << 10;
/// How many objects of one name are read in one poll.
const OBJECTS_MAX: usize = 64;
/// After so many polls what was not believed is looked at again.
const POLLS_UNTIL_FORGOTTEN: u32 = 60;

#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    #[error("generation {generation} for {name} is not sound: {why}")]
    Unsound { name: String, generation: u64, why: String },
    #[error("the traffic generations for {name} at the arbiter cannot be {verb}")]
    Storage {
        name: String,
        verb: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the keys that may sign traffic generations cannot be read")]
    Trusted(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Whose signatures count, and as what, as it is now. Called at every poll; keep it cheap.
pub type TrustedKeys = Arc<dyn Fn() -> Result<Trusted, Box<dyn std::error::Error + Send + Sync>> + Send + Sync>;

/// What an authority has not seen yet of one name.
#[derive(Debug, Default)]
pub struct Newer {
    /// Sound and signed by a trusted key; highest epoch first, then highest generation.
    pub generations: Vec<TrafficGeneration>,
    /// What was found and not believed: the object, and why.
    pub rejected: Vec<(String, String)>,
}

/// Where generations come from. May block: it is asked in a thread of its own.
pub trait TrafficSource: Send + Sync {
    /// Every generation of `name` above `above`.
    fn newer(&self, name: &str, above: u64) -> Result<Newer, TrafficError>;
}

/// The arbiter's storage as a source, for an authority that polls.
pub struct ArbiterTraffic {
    /// Opened when it is needed, and anew after every failure: the arbiter may be away at the start, or be mounted again.
    url: String,
    storage: Mutex<Option<Arc<dyn Storage>>>,
    trusted: TrustedKeys,
    memory: Mutex<Memory>,
}

/// What was not believed, so that it is not fetched again at every poll; void when the trusted keys change.
#[derive(Default)]
struct Memory {
    trusted: Trusted,
    rejected: BTreeSet<String>,
    polls: u32,
}

impl std::fmt::Debug for ArbiterTraffic {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ArbiterTraffic").field("url", &self.url).finish_non_exhaustive()
    }
}

impl ArbiterTraffic {
    /// The storage at `url` need not be there yet.
    pub fn at(url: impl Into<String>, trusted: TrustedKeys) -> ArbiterTraffic {
        ArbiterTraffic { url: url.into(), storage: Mutex::default(), trusted, memory: Mutex::default() }
    }

    fn storage(&self, name: &str) -> Result<Arc<dyn Storage>, TrafficError> {
        let mut open = self.storage.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(storage) = open.as_ref() {
            return Ok(Arc::clone(storage));
        }
        let storage = storage::open(&self.url).map_err(|error| TrafficError::Storage {
            name: name.to_owned(),
            verb: "opened",
            source: error.into(),
        })?;
        Ok(Arc::clone(open.insert(storage)))
    }

    fn close(&self) {
        *self.storage.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl TrafficSource for ArbiterTraffic {
    fn newer(&self, name: &str, above: u64) -> Result<Newer, TrafficError> {
        let trusted = (self.trusted)().map_err(TrafficError::Trusted)?;
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory.polls += 1;
        if memory.trusted != trusted || memory.polls > POLLS_UNTIL_FORGOTTEN {
            *memory = Memory { trusted: trusted.clone(), ..Memory::default() };
        }
        let storage = self.storage(name)?;
        let newer =
            read_above(storage.as_ref(), name, above, &trusted, &memory.rejected).inspect_err(|_| self.close())?;
        memory.rejected.extend(newer.rejected.iter().map(|(object, _)| object.clone()));
        Ok(newer)
    }
}

/// Number to size of every object of that name; what is not named like a generation does not count.
fn objects_above(storage: &dyn Storage, name: &str, above: u64) -> Result<BTreeMap<u64, u64>, TrafficError> {
    let prefix = format!("traffic/{name}/");
    let failed = |error: lifeboat_vault::storage::StorageError| TrafficError::Storage {
        name: name.to_owned(),
        verb: "listed",
        source: error.into(),
    };
    let listed = storage.list(&prefix).map_err(failed)?;
    let numbered =
        listed.into_iter().filter_map(|object| Some((number(object.key.strip_prefix(&prefix)?)?, object.size)));
    Ok(numbered.filter(|(number, _)| *number > above).collect())
}

fn read_above(
    storage: &dyn Storage,
    name: &str,
    above: u64,
    trusted: &Trusted,
    known_bad: &BTreeSet<String>,
) -> Result<Newer, TrafficError> {
    let mut newer = Newer::default();
    let objects = objects_above(storage, name, above)?;
    let fresh = objects.into_iter().rev().map(|(number, size)| (number, size, format!("traffic/{name}/{number}")));
    let fresh = fresh.filter(|(_, _, object)| !known_bad.contains(object));
    for (read, (number, size, object)) in fresh.enumerate() {
        // A believed generation ends the search once enough was read; forged ones only delay it by a poll.
        if read >= OBJECTS_MAX && !newer.generations.is_empty() {
            break;
        }
        match believe(storage, name, number, size, &object, trusted)? {
            Ok(generation) => newer.generations.push(generation),
            Err(why) => newer.rejected.push((object, why)),
        }
    }
    newer.generations.sort_by_key(|it| std::cmp::Reverse((it.epoch, it.generation)));
    Ok(newer)
}

/// The inner error says why an object is not believed.
fn believe(
    storage: &dyn Storage,
    name: &str,
    number: u64,
    size: u64,
    object: &str,
    trusted: &Trusted,
) -> Result<Result<TrafficGeneration, String>, TrafficError> {
    if size > OBJECT_BYTES_MAX {
        return Ok(Err(format!("{size} bytes are too many for a generation")));
    }
    let bytes = storage.get_range(object, 0, OBJECT_BYTES_MAX).map_err(|error| TrafficError::Storage {
        name: name.to_owned(),
        verb: "read",
        source: error.into(),
    })?;
    let signed = match Signed::open(&kind(object), object, &bytes) {
        Ok(signed) => signed,
        Err(error) => return Ok(Err(error.to_string())),
    };
    match trusted.get(&signed.signer) {
        None => return Ok(Err(format!("it is signed by {}, which is not trusted here", signed.signer.fingerprint()))),
        Some(trustee) if !trustee.may_sign(object) => {
            let roles = role_names(&trustee.roles, " and ");
            return Ok(Err(format!(
                "it is signed by {}, on the roster as {roles}; that takes a controller",
                trustee.name
            )));
        }
        Some(_) => {}
    }
    let generation: TrafficGeneration = match serde_json::from_slice(&signed.payload) {
        Ok(generation) => generation,
        Err(error) => return Ok(Err(format!("its contents cannot be read: {error}"))),
    };
    if let Err(error) = check_generation(&generation) {
        return Ok(Err(error.to_string()));
    }
    if generation.name != name || generation.generation != number {
        let says = format!("generation {} for {}", generation.generation, generation.name);
        return Ok(Err(format!("it says that it is {says}: it was moved or copied")));
    }
    Ok(Ok(generation))
}

/// Whether a generation is within bounds and says only what can be answered.
pub fn check_generation(it: &TrafficGeneration) -> Result<(), TrafficError> {
    let unsound = |why: String| {
        Err(TrafficError::Unsound { name: it.name.chars().take(255).collect(), generation: it.generation, why })
    };
    if !is_name(&it.name) {
        return unsound("its name is not a fully qualified, lower-case domain name".to_owned());
    }
    if it.generation == 0 || it.generation == u64::MAX {
        return unsound("generations are counted from 1".to_owned());
    }
    if it.ttl_seconds > TTL_SECONDS_MAX {
        return unsound(format!("a TTL of {} s is more than a day", it.ttl_seconds));
    }
    if it.answers.len() > ANSWERS_MAX || it.at.len() > TEXT_BYTES_MAX {
        return unsound(format!("more than {ANSWERS_MAX} answers, or a text that is too long"));
    }
    for answer in &it.answers {
        if answer.site.len() > TEXT_BYTES_MAX || answer.address.parse::<std::net::IpAddr>().is_err() {
            let shown: String = answer.address.chars().take(64).collect();
            return unsound(format!("`{shown}` is not an IPv4 or IPv6 address"));
        }
        let sound =
            |url: &String| url.len() <= URL_BYTES_MAX && (url.starts_with("http://") || url.starts_with("https://"));
        if !answer.health.as_ref().is_none_or(sound) {
            return unsound(format!("the health URL of {} is not an http or https URL", answer.address));
        }
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_'))
    };
    name.len() <= 254 && name.strip_suffix('.').is_some_and(|name| name.split('.').all(label))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use lifeboat_core::desired::TrafficAnswer;
    use lifeboat_vault::Role;
    use lifeboat_vault::sign::SigningKey;
    use lifeboat_vault::storage::MemoryStorage;

    use super::*;
    use crate::arbitrate::Trustee;

    fn generation(name: &str, address: &str, health: Option<&str>) -> TrafficGeneration {
        let health = health.map(str::to_owned);
        let answers = vec![TrafficAnswer { site: "a".into(), address: address.into(), weight: 1, health }];
        TrafficGeneration { name: name.into(), generation: 1, epoch: 1, ttl_seconds: 5, answers, at: String::new() }
    }

    /// Stores a generation as the arbiter does, whatever it says.
    fn store(storage: &MemoryStorage, signer: &SigningKey, it: &TrafficGeneration) {
        let key = format!("traffic/{}/{}", it.name, it.generation);
        let payload = serde_json::to_vec(it).unwrap();
        storage.put(&key, &Signed::seal(&kind(&key), &payload, signer).unwrap()).unwrap();
    }

    fn source(url: &str, signer: &SigningKey) -> ArbiterTraffic {
        let trusted = Trusted::from([(signer.public(), Trustee::new("us", &[Role::Controller]))]);
        ArbiterTraffic::at(url, Arc::new(move || Ok(trusted.clone())))
    }

    #[test]
    fn a_host_names_the_first_day_and_no_other() {
        let storage = MemoryStorage::shared("traffic-host");
        let signer = SigningKey::generate().unwrap();
        let trusted = Trusted::from([(signer.public(), Trustee::new("paris", &[Role::Host]))]);
        let source = ArbiterTraffic::at("memory:traffic-host", Arc::new(move || Ok(trusted.clone())));
        let mut it = generation("shop.example.", "::1", None);
        store(&storage, &signer, &it);
        it.generation = 2;
        store(&storage, &signer, &it);
        let newer = source.newer("shop.example.", 0).unwrap();
        assert_eq!(newer.generations.iter().map(|it| it.generation).collect::<Vec<_>>(), [1]);
        insta::assert_snapshot!(newer.rejected[0].1, @"it is signed by paris, on the roster as host; that takes a controller");
    }

    #[test]
    fn forged_moved_and_malformed_objects_are_passed_over() {
        let storage = MemoryStorage::shared("traffic-forged");
        let (signer, stranger) = (SigningKey::generate().unwrap(), SigningKey::generate().unwrap());
        let mut it = generation("shop.example.", "::1", None);
        store(&storage, &signer, &it);
        let genuine = storage.get("traffic/shop.example./1").unwrap();
        it.generation = 2;
        store(&storage, &stranger, &it);
        storage.put("traffic/shop.example./3", &genuine).unwrap();
        storage.put("traffic/shop.example./4", b"{}").unwrap();
        let fifth = "traffic/shop.example./5";
        storage.put(fifth, &Signed::seal(&kind(fifth), b"[1, 2", &signer).unwrap()).unwrap();
        storage.put("traffic/shop.example./6", &vec![0; 1 << 20]).unwrap();
        let seventh = "traffic/shop.example./7";
        let other = serde_json::to_vec(&it).unwrap();
        storage.put(seventh, &Signed::seal(&kind(seventh), &other, &signer).unwrap()).unwrap();
        storage.put("traffic/shop.example./notes", b"x").unwrap();
        storage.put("traffic/shop.example./08", b"x").unwrap();
        let source = source("memory:traffic-forged", &signer);
        let newer = source.newer("shop.example.", 0).unwrap();
        assert_eq!(newer.generations.iter().map(|it| it.generation).collect::<Vec<_>>(), [1]);
        assert_eq!(newer.rejected.len(), 6, "{:?}", newer.rejected);
        assert!(source.newer("shop.example.", 0).unwrap().rejected.is_empty(), "each is reported once");
    }

    #[test]
    fn a_higher_epoch_comes_before_a_higher_generation() {
        let storage = MemoryStorage::shared("traffic-epochs");
        let signer = SigningKey::generate().unwrap();
        let mut it = generation("shop.example.", "::1", None);
        for (epoch, number) in [(1, 1), (3, 2), (2, 3)] {
            (it.epoch, it.generation) = (epoch, number);
            store(&storage, &signer, &it);
        }
        let newer = source("memory:traffic-epochs", &signer).newer("shop.example.", 1).unwrap();
        assert_eq!(newer.generations.iter().map(|it| (it.epoch, it.generation)).collect::<Vec<_>>(), [(3, 2), (2, 3)]);
    }

    #[test]
    fn unsound_generations_are_named() {
        assert!(check_generation(&generation("shop.example.com.", "::1", Some("https://h/"))).is_ok());
        for name in ["", ".", "shop.example.com", "Shop.example.", "a..b.", "../../etc.", "a/b."] {
            assert!(check_generation(&generation(name, "::1", None)).is_err(), "{name}");
        }
        insta::assert_snapshot!(
            check_generation(&generation("s.example.", "elsewhere", None)).unwrap_err(),
            @"generation 1 for s.example. is not sound: `elsewhere` is not an IPv4 or IPv6 address"
        );
        insta::assert_snapshot!(
            check_generation(&generation("s.example.", "::1", Some("file:///etc/passwd"))).unwrap_err(),
            @"generation 1 for s.example. is not sound: the health URL of ::1 is not an http or https URL"
        );
    }
}
