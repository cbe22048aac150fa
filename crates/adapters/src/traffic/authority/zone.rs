//! Decides what each question is answered with: names, their generations in force, and the zones around them.
//!
//! Invariant: a name never goes from a higher epoch or generation to a lower one, and health only ever removes answers
//! that the generation gives.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{PoisonError, RwLock};

use hickory_proto::rr::rdata::{A, AAAA, NS, SOA, TXT};
use hickory_proto::rr::{LowerName, Name, RData, Record, RecordType};
use lifeboat_core::desired::TrafficGeneration;

use super::choice::Dice;
use super::health::HealthBoard;

/// How long what never changes (NS, name servers' addresses) may be cached.
const FIXED_TTL_SECONDS: u32 = 300;
/// The TTL of negative answers while no generation says another.
const EMPTY_TTL_SECONDS: u32 = 5;

/// One name server of a zone, as it is told to resolvers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameServer {
    pub name: String,
    /// Given out when the name lies within the zone.
    pub addresses: Vec<IpAddr>,
}

/// What the server says to one question.
#[derive(Debug, PartialEq)]
pub(super) enum Reply {
    Records(Vec<Record>),
    /// The name exists, but nothing of this type; the record is the SOA.
    NoData(Record),
    NoSuchName(Record),
    /// Not in any zone of ours, or a type that is not given out.
    Refused,
    /// The name is ours, but no generation is known yet.
    NotYet,
}

#[derive(Debug)]
struct Zone {
    apex: LowerName,
    name_servers: Vec<(Name, Vec<IpAddr>)>,
    names: Vec<LowerName>,
}

/// One name's generation, ready to answer from.
#[derive(Debug, Clone)]
struct InForce {
    epoch: u64,
    generation: u64,
    ttl_seconds: u32,
    answers: Vec<Answer>,
}

#[derive(Debug, Clone)]
struct Answer {
    address: IpAddr,
    weight: u32,
    health: Option<String>,
}

/// Why a generation was not put in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NotAccepted {
    #[error("this authority does not serve {0}")]
    OtherName(String),
    #[error("it is not newer than generation {generation} of epoch {epoch}, which is in force")]
    Stale { epoch: u64, generation: u64 },
    #[error("`{0}` is not an IPv4 or IPv6 address")]
    Address(String),
}

/// Why the configured names and zones cannot be served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error("`{name}` is not a domain name: {why}; write it fully qualified, such as shop.example.com.")]
    Malformed { name: String, why: String },
    #[error("no name to serve: give at least one, or a plan whose traffic uses the built-in authority")]
    None,
}

/// Everything that this authority answers from.
#[derive(Debug)]
pub(super) struct Zones {
    zones: Vec<Zone>,
    in_force: RwLock<BTreeMap<LowerName, Option<InForce>>>,
    pub(super) health: HealthBoard,
    dice: Dice,
}

impl Zones {
    /// Groups names under the longest configured zone that holds them; a name in none is a zone of its own.
    pub(super) fn new(
        names: &[String],
        zones: &[String],
        name_servers: &[NameServer],
        listen: &[SocketAddr],
        dice: Dice,
    ) -> Result<Zones, NameError> {
        let names = names.iter().map(|name| parse_name(name)).collect::<Result<Vec<_>, _>>()?;
        if names.is_empty() {
            return Err(NameError::None);
        }
        let mut apexes = zones.iter().map(|name| parse_name(name)).collect::<Result<Vec<_>, _>>()?;
        for name in &names {
            if !apexes.iter().any(|apex| apex.zone_of(name)) {
                apexes.push(name.clone());
            }
        }
        apexes.sort_by(|a, b| b.num_labels().cmp(&a.num_labels()).then_with(|| a.cmp(b)));
        apexes.dedup();
        let mut grouped = Vec::new();
        for apex in &apexes {
            grouped.push(Zone {
                apex: apex.clone(),
                name_servers: servers_of(apex, name_servers, listen)?,
                names: names
                    .iter()
                    .filter(|name| apexes.iter().find(|other| other.zone_of(name)) == Some(apex))
                    .cloned()
                    .collect(),
            });
        }
        let in_force = RwLock::new(names.into_iter().map(|name| (name, None)).collect());
        Ok(Zones { zones: grouped, in_force, health: HealthBoard::default(), dice })
    }

    /// Whether this generation may come into force now; changes nothing.
    pub(super) fn may_accept(&self, new: &TrafficGeneration) -> Result<(), NotAccepted> {
        let table = self.in_force.read().unwrap_or_else(PoisonError::into_inner);
        check_newer(&table, new).map(|_| ())
    }

    /// Puts a generation in force.
    pub(super) fn accept(&self, new: &TrafficGeneration) -> Result<(), NotAccepted> {
        let mut table = self.in_force.write().unwrap_or_else(PoisonError::into_inner);
        let (name, in_force) = check_newer(&table, new)?;
        table.insert(name, Some(in_force));
        Ok(())
    }

    /// Each name with its epoch and generation in force.
    pub(super) fn generations(&self) -> Vec<(String, Option<(u64, u64)>)> {
        let table = self.in_force.read().unwrap_or_else(PoisonError::into_inner);
        table
            .iter()
            .map(|(name, known)| (name.to_string(), known.as_ref().map(|it| (it.epoch, it.generation))))
            .collect()
    }

    /// Every health URL that some answer in force has.
    pub(super) fn health_urls(&self) -> Vec<String> {
        let table = self.in_force.read().unwrap_or_else(PoisonError::into_inner);
        let mut urls: Vec<String> = table
            .values()
            .flatten()
            .flat_map(|known| known.answers.iter())
            .filter(|answer| answer.weight > 0)
            .filter_map(|answer| answer.health.clone())
            .collect();
        urls.sort();
        urls.dedup();
        urls
    }

    /// Answers one question; `asked` keeps the asker's own spelling, which the records repeat.
    pub(super) fn answer(&self, asked: &Name, kind: RecordType) -> Reply {
        let lower = LowerName::new(asked);
        let Some(zone) = self.zones.iter().find(|zone| zone.apex.zone_of(&lower)) else {
            return Reply::Refused;
        };
        if matches!(kind, RecordType::AXFR | RecordType::IXFR) {
            return Reply::Refused;
        }
        let table = self.in_force.read().unwrap_or_else(PoisonError::into_inner);
        let soa = zone.soa(&table);
        if !zone.holds(&lower) {
            return Reply::NoSuchName(soa);
        }
        if matches!(kind, RecordType::A | RecordType::AAAA | RecordType::ANY) && table.get(&lower) == Some(&None) {
            return Reply::NotYet;
        }
        // RFC 8482: a question for everything gets something of what there is.
        let everything = [RecordType::A, RecordType::AAAA, RecordType::TXT, RecordType::SOA, RecordType::NS];
        let kinds: &[RecordType] = if kind == RecordType::ANY { &everything } else { &[kind] };
        for kind in kinds {
            let records = self.records(zone, &table, asked, &lower, *kind, &soa);
            if !records.is_empty() {
                return Reply::Records(records);
            }
        }
        Reply::NoData(soa)
    }

    fn records(
        &self,
        zone: &Zone,
        table: &BTreeMap<LowerName, Option<InForce>>,
        asked: &Name,
        lower: &LowerName,
        kind: RecordType,
        soa: &Record,
    ) -> Vec<Record> {
        let record = |ttl, data| Record::from_rdata(asked.clone(), ttl, data);
        let at_apex = *lower == zone.apex;
        match kind {
            RecordType::SOA if at_apex => vec![record(soa.ttl, soa.data.clone())],
            RecordType::NS if at_apex => zone
                .name_servers
                .iter()
                .map(|(server, _)| record(FIXED_TTL_SECONDS, RData::NS(NS(server.clone()))))
                .collect(),
            RecordType::TXT => match zone.epoch_of(lower).and_then(|name| table.get(name)?.as_ref()) {
                Some(known) => {
                    let text = vec![format!("epoch={}", known.epoch), format!("generation={}", known.generation)];
                    vec![record(0, RData::TXT(TXT::new(text)))]
                }
                None => Vec::new(),
            },
            RecordType::A | RecordType::AAAA => match table.get(lower) {
                Some(Some(known)) => self
                    .choose(known, kind)
                    .map(|address| record(known.ttl_seconds, address_data(address)))
                    .into_iter()
                    .collect(),
                Some(None) => Vec::new(),
                None => zone
                    .addresses_of(lower)
                    .filter(|address| is_of(address, kind))
                    .map(|address| record(FIXED_TTL_SECONDS, address_data(address)))
                    .collect(),
            },
            _ => Vec::new(),
        }
    }

    /// One address by the weights, of those that are healthy; if none of them is, of all that the generation gives.
    fn choose(&self, known: &InForce, kind: RecordType) -> Option<IpAddr> {
        let of_kind = || known.answers.iter().filter(|answer| answer.weight > 0 && is_of(&answer.address, kind));
        let weighed = |answers: &mut dyn Iterator<Item = &Answer>| -> Vec<(IpAddr, u32)> {
            answers.map(|answer| (answer.address, answer.weight)).collect()
        };
        let healthy = weighed(&mut of_kind().filter(|answer| self.health.allows(answer.health.as_deref())));
        let candidates = if healthy.is_empty() { weighed(&mut of_kind()) } else { healthy };
        self.dice.choose(&candidates)
    }
}

impl PartialEq for InForce {
    fn eq(&self, other: &InForce) -> bool {
        (self.epoch, self.generation) == (other.epoch, other.generation)
    }
}

impl Zone {
    /// Whether the name, or something beneath it, is in this zone (an empty name in between exists, too).
    fn holds(&self, name: &LowerName) -> bool {
        let servers = self.name_servers.iter().map(|(server, _)| LowerName::new(server));
        let epochs = self.names.iter().filter_map(epoch_name);
        *name == self.apex
            || self
                .names
                .iter()
                .cloned()
                .chain(servers)
                .chain(epochs)
                .any(|there| self.apex.zone_of(&there) && name.zone_of(&there))
    }

    /// The served name whose `_epoch` name this is.
    fn epoch_of(&self, name: &LowerName) -> Option<&LowerName> {
        self.names.iter().find(|served| epoch_name(served).as_ref() == Some(name))
    }

    fn addresses_of(&self, name: &LowerName) -> impl Iterator<Item = IpAddr> {
        self.name_servers
            .iter()
            .filter(move |(server, _)| LowerName::new(server) == *name)
            .flat_map(|(_, addresses)| addresses.iter().copied())
    }

    /// The serial is the sum of the generations, so that it grows whenever one does.
    fn soa(&self, table: &BTreeMap<LowerName, Option<InForce>>) -> Record {
        let known = || self.names.iter().filter_map(|name| table.get(name)?.as_ref());
        let serial = known().fold(0u64, |sum, it| sum.wrapping_add(it.generation)) as u32;
        let minimum = known().map(|it| it.ttl_seconds).min().unwrap_or(EMPTY_TTL_SECONDS).min(FIXED_TTL_SECONDS);
        let apex = Name::from(&self.apex);
        let primary = self.name_servers.first().map(|(name, _)| name.clone()).unwrap_or_else(|| apex.clone());
        let mail = apex.prepend_label("hostmaster").unwrap_or_else(|_| apex.clone());
        Record::from_rdata(apex, minimum, RData::SOA(SOA::new(primary, mail, serial, 60, 30, 86_400, minimum)))
    }
}

fn check_newer(
    table: &BTreeMap<LowerName, Option<InForce>>,
    new: &TrafficGeneration,
) -> Result<(LowerName, InForce), NotAccepted> {
    let other = || NotAccepted::OtherName(new.name.clone());
    let name = parse_name(&new.name).map_err(|_| other())?;
    if let Some(known) = table.get(&name).ok_or_else(other)?
        && (new.generation <= known.generation || new.epoch < known.epoch)
    {
        return Err(NotAccepted::Stale { epoch: known.epoch, generation: known.generation });
    }
    let answers = new
        .answers
        .iter()
        .map(|answer| {
            let address = answer.address.parse().map_err(|_| NotAccepted::Address(answer.address.clone()))?;
            Ok(Answer { address, weight: answer.weight, health: answer.health.clone() })
        })
        .collect::<Result<_, _>>()?;
    let in_force = InForce { epoch: new.epoch, generation: new.generation, ttl_seconds: new.ttl_seconds, answers };
    Ok((name, in_force))
}

fn servers_of(
    apex: &LowerName,
    configured: &[NameServer],
    listen: &[SocketAddr],
) -> Result<Vec<(Name, Vec<IpAddr>)>, NameError> {
    if configured.is_empty() {
        let addresses = listen.iter().map(SocketAddr::ip).filter(|address| !address.is_unspecified()).collect();
        let name = Name::from(apex)
            .prepend_label("ns")
            .map_err(|error| NameError::Malformed { name: format!("ns.{apex}"), why: error.to_string() })?;
        return Ok(vec![(name, addresses)]);
    }
    configured.iter().map(|server| Ok((Name::from(parse_name(&server.name)?), server.addresses.clone()))).collect()
}

/// Reads a name and makes it fully qualified and lower case.
fn parse_name(text: &str) -> Result<LowerName, NameError> {
    let malformed = |why: String| NameError::Malformed { name: text.to_owned(), why };
    let mut name = Name::from_ascii(text).map_err(|error| malformed(error.to_string()))?;
    if name.is_root() || text.is_empty() {
        return Err(malformed("it is empty".to_owned()));
    }
    if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte)) {
        return Err(malformed("only letters, digits, `-`, `_` and `.` may stand in it".to_owned()));
    }
    name.set_fqdn(true);
    Ok(LowerName::new(&name))
}

fn epoch_name(name: &LowerName) -> Option<LowerName> {
    Name::from(name).prepend_label("_epoch").ok().map(|name| LowerName::new(&name))
}

fn is_of(address: &IpAddr, kind: RecordType) -> bool {
    match kind {
        RecordType::A => address.is_ipv4(),
        RecordType::AAAA => address.is_ipv6(),
        _ => false,
    }
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

#[cfg(test)]
#[path = "zone_tests.rs"]
mod tests;
