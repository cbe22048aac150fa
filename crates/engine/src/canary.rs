//! Canaries: numbered values written through the service's own name before a disaster and read back after it.
//!
//! Invariant: a value counts as written only when the service has acknowledged it; only such values are on record.

use lifeboat_core::plan::{Canary, HttpExchange};

use crate::arbitrate::{Arbiter, CanaryRecord};
use crate::port::{Clock, PortError, Probe, ServiceDoor};

const PREFIX: &str = "lifeboat-canary-";

/// Writes canary `number` through the service's door, and records it once the service has acknowledged it.
pub async fn write(
    arbiter: &Arbiter,
    probe: &dyn Probe,
    clock: &dyn Clock,
    door: &ServiceDoor,
    canary: &Canary,
    service: &str,
    number: u64,
) -> Result<CanaryRecord, PortError> {
    let value = format!("{PREFIX}{number}-{}", clock.now().as_millisecond());
    let (status, body) = probe.exchange(door, &filled(&canary.write, &value)).await?;
    if !(200..300).contains(&status) {
        let answer = shortened(&body);
        return Err(PortError::may_pass(format!(
            "{} did not take canary {number}: it answered {status}: {answer:?}",
            door.name
        )));
    }
    let record = CanaryRecord { service: service.to_owned(), number, value, at: clock.now().to_string() };
    arbiter.record_canary(&record).map_err(|error| {
        PortError::may_pass(format!("canary {number} was written but could not be recorded")).because(error)
    })?;
    Ok(record)
}

/// The record whose value `body` holds, if there is one: the number stands in the value.
pub fn find(arbiter: &Arbiter, service: &str, body: &str) -> Result<Option<CanaryRecord>, PortError> {
    let Some(number) = number_in(body) else { return Ok(None) };
    let record = arbiter
        .canary(service, number)
        .map_err(|error| PortError::may_pass(format!("cannot look canary {number} up")).because(error))?;
    Ok(record.filter(|record| body.contains(&record.value)))
}

/// The exchange with the canary's value in its place.
pub fn filled(exchange: &HttpExchange, value: &str) -> HttpExchange {
    let fill = |text: &String| text.replace("{{ canary.value }}", value).replace("{{canary.value}}", value);
    HttpExchange {
        request: fill(&exchange.request),
        body: exchange.body.as_ref().map(fill),
        expect: exchange.expect.as_ref().map(fill),
    }
}

fn number_in(body: &str) -> Option<u64> {
    let start = body.find(PREFIX)? + PREFIX.len();
    let digits: String = body[start..].chars().take_while(char::is_ascii_digit).take(19).collect();
    digits.parse().ok()
}

/// The beginning of a foreign text, for a message.
pub fn shortened(text: &str) -> String {
    let mut short: String = text.chars().take(120).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_is_read_from_the_value_wherever_it_stands() {
        assert_eq!(number_in("{\"canary\":\"lifeboat-canary-42-1795272000000\"}"), Some(42));
        assert_eq!(number_in("lifeboat-canary-"), None);
        assert_eq!(number_in("nothing"), None);
        assert_eq!(number_in("lifeboat-canary-99999999999999999999999-1"), Some(9_999_999_999_999_999_999));
    }
}
