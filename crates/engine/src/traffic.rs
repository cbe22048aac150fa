//! Traffic generations: which are sound, and where an authority gets them from.
//!
//! Invariant: what is not sound (bounds, names, addresses) is neither published nor put in force.

use lifeboat_core::desired::TrafficGeneration;

/// Answers of one name; more than any plan has sites.
const ANSWERS_MAX: usize = 64;
/// A day: longer would make every failover useless.
const TTL_SECONDS_MAX: u32 = 86_400;
const URL_BYTES_MAX: usize = 2048;
const TEXT_BYTES_MAX: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    #[error("generation {generation} for {name} is not sound: {why}")]
    Unsound { name: String, generation: u64, why: String },
    #[error("the arbiter's traffic generations for {name} cannot be read; {next}")]
    Source {
        name: String,
        next: &'static str,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// What an authority has not seen yet of one name.
#[derive(Debug, Default)]
pub struct Newer {
    /// Sound and signed by a trusted key, highest first.
    pub generations: Vec<TrafficGeneration>,
    /// What was found and not believed, each once: the object, and why.
    pub rejected: Vec<(String, String)>,
}

/// Where generations come from. May block: it is asked in a thread of its own.
pub trait TrafficSource: Send + Sync {
    /// Every generation of `name` above `above`.
    fn newer(&self, name: &str, above: u64) -> Result<Newer, TrafficError>;
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
    use super::*;
    use lifeboat_core::desired::TrafficAnswer;

    fn generation(name: &str, address: &str, health: Option<&str>) -> TrafficGeneration {
        let health = health.map(str::to_owned);
        let answers = vec![TrafficAnswer { site: "a".into(), address: address.into(), weight: 1, health }];
        TrafficGeneration { name: name.into(), generation: 1, epoch: 1, ttl_seconds: 5, answers, at: String::new() }
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
