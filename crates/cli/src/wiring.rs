//! Puts a plan's parts together for a verb: state, vaults, arbiter, sites, probes.
//!
//! Invariant: who is believed in the arbiter is who is on the roster of a vault whose owner the plan names, or was when
//! one could last be read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use lifeboat_adapters::clock::MachineClock;
use lifeboat_adapters::probe::NetworkProbe;
use lifeboat_adapters::site::watchdog::Guarded;
use lifeboat_adapters::site::{LocalSite, LocalSiteConfig, SiteSettings, site_from_plan};
use lifeboat_adapters::storage::thaw::{Frozen, ThawError, thaw};
use lifeboat_core::lease;
use lifeboat_core::plan::{Name, Plan, Reach, Service, Site as PlanSite};
use lifeboat_core::runbook::compile::{self, Inventory};
use lifeboat_core::runbook::place::{IsolatedAuthority, Isolation, Place};
use lifeboat_core::runbook::{Action, InstanceSpec, Runbook};
use lifeboat_core::units::{Size, Span};
use lifeboat_engine::arbitrate::{Arbiter, SiteHosts, Trusted, Trustee};
use lifeboat_engine::journal::Journal;
use lifeboat_engine::perform::{Waiting, World};
use lifeboat_engine::port::{Clock, FenceRequest, PortError, Site};
use lifeboat_engine::protect::{FirstDay, FirstTraffic};
use lifeboat_engine::recovery::{ThawFor, Thawed, Vaults};
use lifeboat_engine::vaults::VaultPlace;
use lifeboat_vault::storage;
use lifeboat_vault::{Identity, PublicKey, State, VaultError};

use crate::error::{CommandError, Explain, Kind};
use crate::plan_file::{self, Loaded};
use crate::ui::Ui;

/// Where a drill's own name server listens, at the isolation's own address.
const DRILL_DNS_PORT: u16 = 5353;

/// A plan and everything this machine needs to act on it.
pub(crate) struct Wiring {
    pub(crate) loaded: Loaded,
    pub(crate) state: State,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) arbiter: Arc<Arbiter>,
    pub(crate) vaults: BTreeMap<Name, VaultPlace>,
    /// What the steps of a run that is under way wait for.
    pub(crate) waiting: Waiting,
}

impl Wiring {
    /// Reads the plan, opens this host's state and the arbiter, and learns from the vaults whom to believe.
    pub(crate) fn open(ui: &Ui) -> Result<Wiring, CommandError> {
        let loaded = plan_file::load(ui)?;
        let state = State::open(&ui.state_directory()?, None)?;
        let clock: Arc<dyn Clock> = Arc::new(MachineClock::default());
        let vaults = vault_places(&loaded.plan, &state);
        let url = match &loaded.plan.arbiter {
            Some(arbiter) => arbiter.url.clone(),
            None => {
                return Err(CommandError::new(
                    Kind::Plan,
                    "the plan has no [arbiter]: nothing could decide who may write",
                )
                .hint("add [arbiter] with a url outside every site"));
            }
        };
        let storage = storage::open(&url)
            .saying(|| format!("the arbiter's storage {url} cannot be opened"))
            .hint("on the first day, make its directory, outside of every site; after that, see where it has gone")?;
        let trusted = trusted(&vaults, &state, &|text| ui.warn(text))?;
        let arbiter = Arbiter::new(storage, Arc::new(state.clone()), trusted, Arc::clone(&clock));
        let arbiter = arbiter.with_hosts(site_hosts(&loaded.plan));
        let arbiter = Arc::new(arbiter.remembering(state.directory())?);
        Ok(Wiring { loaded, state, clock, arbiter, vaults, waiting: Waiting::default() })
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.loaded.plan
    }

    pub(crate) fn service(&self, name: &str) -> Result<&Service, CommandError> {
        self.plan().services.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.plan().services.keys().map(String::as_str).collect();
            CommandError::usage(format!("the plan has no service `{name}`; it has: {}", known.join(", ")))
        })
    }

    pub(crate) fn journal(&self) -> Result<Journal, CommandError> {
        Ok(Journal::open(self.state.directory(), Arc::clone(&self.clock))?)
    }

    /// Who was named as the writer last, and under which epoch; the plan's primary, under none, when nobody ever was. A
    /// claim that was not promoted yet names nobody.
    pub(crate) fn writer(&self, service: &Service) -> Result<(Name, u64), CommandError> {
        let desired = self.arbiter.desired_writer(service.write_domain())?;
        Ok(desired.map_or_else(|| (service.primary.clone(), 0), |desired| (desired.primary, desired.epoch)))
    }

    /// What a run-book is compiled for: who writes now, and the epoch that was claimed last.
    pub(crate) fn inventory(&self, service: &Service) -> Result<Inventory, CommandError> {
        let domain = service.write_domain();
        let epoch = self.arbiter.current_epoch(domain)?;
        let (writer, writer_epoch) = self.writer(service)?;
        Ok(Inventory {
            epoch: epoch.map_or(0, |claim| claim.epoch),
            writer,
            writer_epoch,
            compiled_at: self.clock.now().to_string(),
            plan_hash: self.loaded.hash.clone(),
            archived: BTreeMap::new(),
        })
    }

    /// What holds for the service when nobody has ever been named.
    pub(crate) fn first_day(&self, service: &Service) -> FirstDay {
        let plan = self.plan();
        let traffic = service.traffic.as_ref().map(|traffic| {
            let everyday = traffic.everyday.iter().filter(|(_, weight)| **weight > 0);
            let answers = everyday.flat_map(|(name, weight)| {
                let found = plan.sites.get_key_value(name);
                found.map_or_else(Vec::new, |(site_name, site)| {
                    Place { plan, service, site_name, site, isolation: None }.answers(*weight)
                })
            });
            FirstTraffic {
                name: traffic.name.clone(),
                ttl_seconds: traffic.ttl.0.as_secs().max(1) as u32,
                answers: answers.collect(),
            }
        });
        FirstDay { write_domain: service.write_domain().to_owned(), writer: service.primary.clone(), traffic }
    }

    pub(crate) fn sites(&self) -> Result<BTreeMap<Name, Arc<dyn Site>>, CommandError> {
        let program = std::env::current_exe().saying(|| "this program does not know its own path".into())?;
        let mut sites: BTreeMap<Name, Arc<dyn Site>> = BTreeMap::new();
        for (name, site) in &self.plan().sites {
            let settings = SiteSettings::new(program.clone(), name, &self.loaded.path, agent_state(site).as_deref())?;
            // A site that this version cannot act at is no obstacle for those it can; it is refused when it is needed.
            if let Ok(adapter) = site_from_plan(name, site, &settings) {
                sites.insert(name.clone(), adapter);
            }
        }
        Ok(sites)
    }

    /// Everything a run acts through.
    pub(crate) fn world(
        &self,
        service: &str,
        identities: Vec<Identity>,
        disaster_at: Option<Timestamp>,
    ) -> Result<World, CommandError> {
        Ok(World {
            service: service.to_owned(),
            sites: self.sites()?,
            probe: Arc::new(NetworkProbe::default()),
            clock: Arc::clone(&self.clock),
            arbiter: Arc::clone(&self.arbiter),
            recovery: Arc::new(self.recovery(identities)),
            disaster_at,
            waiting: Arc::clone(&self.waiting),
        })
    }

    pub(crate) fn recovery(&self, identities: Vec<Identity>) -> Vaults {
        Vaults {
            places: self.vaults.clone(),
            identities,
            restorer_for: Arc::new(lifeboat_adapters::source::restorer_for),
            thaw_for: Some(self.thaw()),
        }
    }

    /// What must be thawed for the restores of a run-book, by data set: of the vault that takes longest, for any of them may be the one.
    pub(crate) fn archived(&self, runbook: &Runbook) -> BTreeMap<Name, compile::Archived> {
        let recovery = self.recovery(Vec::new());
        let mut archived: BTreeMap<Name, compile::Archived> = BTreeMap::new();
        for step in &runbook.steps {
            let Action::Restore { volume, target, .. } = &step.action else { continue };
            for name in &volume.vaults {
                let planned = self.plan().vaults.get(name).and_then(|vault| vault.archive.as_ref());
                let found =
                    match recovery.archived(name, &volume.dataset, target) {
                        Ok(found) => found.map(|found| compile::Archived {
                            thaw: Span::seconds(found.thaw_seconds),
                            class: found.class,
                            packs: found.packs,
                            bytes: found.bytes,
                        }),
                        // Nobody can tell now: what the plan says may have to be waited for.
                        Err(_) => planned.filter(|archive| archive.thaw.0.as_secs() > 0).map(|archive| {
                            compile::Archived { class: archive.class.clone(), packs: 0, bytes: 0, thaw: archive.thaw }
                        }),
                    };
                let Some(found) = found else { continue };
                if archived.get(&volume.dataset).is_none_or(|known| known.thaw < found.thaw) {
                    archived.insert(volume.dataset.clone(), found);
                }
            }
        }
        archived
    }

    /// How archived packs are made readable: by the commands of the plan's vaults.
    fn thaw(&self) -> ThawFor {
        let archives: BTreeMap<String, Option<Vec<String>>> = (self.plan().vaults.iter())
            .filter_map(|(name, vault)| Some((name.clone(), vault.archive.as_ref()?.command.clone())))
            .collect();
        let state = self.state.directory().to_owned();
        Arc::new(move |place, vault, point, watch| {
            let unknown = |text: String| PortError::may_pass(text);
            let packs = vault
                .archived_packs(point)
                .map_err(|error| unknown(format!("what of {} is archived is not known", point.id)).because(error))?;
            let storage = vault.storage();
            let frozen = Frozen::among(&**storage, &packs)
                .map_err(|error| unknown(format!("whether {} can be read is not known", point.id)).because(error))?;
            if frozen.is_empty() {
                return Ok(None);
            }
            let (what, takes) = (frozen.describe(), Span::seconds(frozen.thaw_seconds));
            let hears = |done: u64, total: u64| {
                let (done, total) = (Size(done).rounded(), Size(total).rounded());
                (watch.hears)(&format!("thawing {what}, up to {takes}: {done} of {total} can be read"));
            };
            hears(0, frozen.bytes);
            let command = archives.get(&place.name).and_then(Option::as_deref);
            thaw(storage, &frozen, command, &hears, watch.cancel.flag()).map_err(|error| {
                let list = match &error {
                    ThawError::NoCommand { .. } => crate::thaw::write_list(&state, point, &frozen).ok(),
                    _ => None,
                };
                let named =
                    list.map_or_else(String::new, |path| format!(" (its objects' names stand in {})", path.display()));
                PortError::new(format!("{} cannot be restored yet{named}", point.id)).because(error)
            })?;
            Ok(Some(Thawed {
                vault: place.name.clone(),
                what,
                packs: frozen.packs.len() as u64,
                bytes: frozen.bytes,
                thaw_seconds: frozen.thaw_seconds,
                readable_at: jiff::Timestamp::now(),
            }))
        })
    }

    /// A drill's surroundings at a site.
    pub(crate) fn isolation(&self, service: &Service, site_name: &str, drill: &str) -> Result<Isolation, CommandError> {
        let site = self.plan().sites.get(site_name);
        let Some(PlanSite { reach: Reach::Local { root, address }, .. }) = site else {
            return Err(CommandError::refused(format!(
                "{site_name} cannot isolate a drill: only local sites can in this version"
            )));
        };
        let config = LocalSiteConfig::new(site_name, root, address, Vec::new());
        let place = LocalSite::new(config)?.isolation_place(drill)?;
        let (volumes, listen) = (place.volumes.display().to_string(), format!("{}:{DRILL_DNS_PORT}", place.address));
        let beside = |name: &str| place.volumes.with_file_name(name).display().to_string();
        let program = std::env::current_exe().saying(|| "this program does not know its own path".into())?;
        let name = service.traffic.as_ref().map(|traffic| traffic.name.clone()).unwrap_or_default();
        let arbiter = beside("arbiter");
        let trust = self.state.signing_key().public().to_string();
        let command = ["dns", "--listen", &listen, "--name", &name, "--arbiter", &arbiter, "--trust", &trust];
        let command = std::iter::once(program.display().to_string())
            .chain(command.map(str::to_owned))
            .chain(["--zone-state".to_owned(), beside("zone")])
            .collect();
        Ok(Isolation {
            name: place.name,
            volumes,
            address: place.address.to_string(),
            authority: IsolatedAuthority { listen, command, arbiter },
        })
    }
}

/// Where this host remembers what becomes of a service's lease: no data set's name begins with a dot.
pub(crate) fn lease_state(state: &Path, service: &Service) -> PathBuf {
    state.join("protect").join(service.write_domain()).join(".lease")
}

/// What is stopped at a site when its lease has run out, and what is started there when it is held again, in that order.
pub(crate) fn guarded(
    loaded: &Loaded,
    service: &Service,
    site_name: &str,
    state: PathBuf,
) -> Result<(Guarded, Vec<InstanceSpec>), CommandError> {
    let plan = &loaded.plan;
    let (site_name, site) = plan
        .sites
        .get_key_value(site_name)
        .ok_or_else(|| CommandError::usage(format!("the plan has no site `{site_name}`")))?;
    let place = Place { plan, service, site_name, site, isolation: None };
    let (mut all, mut live) = (Vec::new(), Vec::new());
    for component in &service.components {
        let count = component.instances.live.max(component.instances.standby);
        all.extend(place.instances(component, count)?);
        live.extend(place.instances(component, component.instances.live)?);
    }
    let program = std::env::current_exe().saying(|| "this program does not know its own path".into())?;
    let mut settings = SiteSettings::new(program, site_name, &loaded.path, agent_state(site).as_deref())?;
    settings.is_inside = true;
    settings.fence_within = service.lease.map(|ttl| match site.reach {
        // One try has the time in which the writer has to be stopped; a program of somebody's gets all of the lease.
        Reach::Local { .. } => (ttl.0 - lease::stop_after(ttl).0).max(Duration::from_secs(1)),
        _ => ttl.0,
    });
    let site = site_from_plan(site_name, site, &settings)?;
    let request = FenceRequest { write_domain: service.write_domain().to_owned(), instances: all, volumes: Vec::new() };
    Ok((Guarded { site, request, state }, live))
}

/// Where a local site's own agent keeps its state: with the site, not with this controller.
pub(crate) fn agent_state(site: &PlanSite) -> Option<PathBuf> {
    match &site.reach {
        Reach::Local { root, .. } => Some(Path::new(root).join(".lifeboat/host")),
        _ => None,
    }
}

/// Which machines may report for which site: one that is enrolled under the site's name, or under that of a host of it.
fn site_hosts(plan: &Plan) -> SiteHosts {
    let hosts = |site: &PlanSite| site.hosts.keys().cloned().collect::<BTreeSet<String>>();
    plan.sites.iter().map(|(name, site)| (name.clone(), &hosts(site) | &BTreeSet::from([name.clone()]))).collect()
}

pub(crate) fn vault_places(plan: &Plan, state: &State) -> BTreeMap<Name, VaultPlace> {
    plan.vaults.keys().map(|name| (name.clone(), vault_place(plan, name, state))).collect()
}

fn vault_place(plan: &Plan, name: &str, state: &State) -> VaultPlace {
    VaultPlace {
        name: name.to_owned(),
        url: plan.vaults.get(name).map(|vault| vault.url.clone()).unwrap_or_default(),
        state: state.clone(),
        owner: plan.keys.owner.clone(),
    }
}

/// A vault of another owner is refused, as everywhere.
fn of_vault(error: PortError) -> CommandError {
    let mut below = std::error::Error::source(&error);
    while let Some(cause) = below {
        if matches!(cause.downcast_ref(), Some(VaultError::ForeignVault { .. })) {
            return CommandError::from(error).kind(Kind::Refused);
        }
        below = cause.source();
    }
    error.into()
}

/// Whom the arbiter's objects are believed from. What was learnt last is kept, for the night when no vault answers.
pub(crate) fn trusted(
    vaults: &BTreeMap<Name, VaultPlace>,
    state: &State,
    warn: &dyn Fn(String),
) -> Result<Trusted, CommandError> {
    let kept = state.directory().join("trusted.json");
    let mut trusted = Trusted::new();
    let mut revoked = Vec::new();
    let mut failures = Vec::new();
    for place in vaults.values() {
        match place.open() {
            Ok(vault) => {
                for member in vault.roster().members {
                    if member.revoked.is_some() {
                        revoked.push(member.key);
                        continue;
                    }
                    let trustee = trusted.entry(member.key).or_insert_with(|| Trustee::new(&member.name, &[]));
                    trustee.roles.extend(member.roles);
                }
            }
            Err(error) => failures.push(of_vault(error)),
        }
    }
    // Who was revoked in one vault is not believed because of another.
    trusted.retain(|key, _| !revoked.contains(key));
    for trustee in trusted.values_mut() {
        let mut kept = Vec::new();
        trustee.roles.retain(|role| {
            !kept.contains(role) && {
                kept.push(*role);
                true
            }
        });
    }
    if trusted.is_empty() {
        if let Some(error) = failures.into_iter().next() {
            let text = std::fs::read_to_string(&kept);
            let Some(known) = text.ok().and_then(|text| serde_json::from_str::<BTreeMap<String, Trustee>>(&text).ok())
            else {
                let error = error.hint("no vault can be read, so nobody's word in the arbiter can be believed");
                return Err(if error.kind == Kind::Refused {
                    error.hint("if it is the right vault, write its owner under [key] in the plan")
                } else {
                    error.hint("on the first day, make the vault with `lifeboat vault init`")
                });
            };
            warn("no vault can be read; believing the roster as it was last seen".into());
            trusted.extend(known.iter().filter_map(|(key, who)| Some((key.parse::<PublicKey>().ok()?, who.clone()))));
        }
        return Ok(trusted);
    }
    let known: BTreeMap<String, &Trustee> = trusted.iter().map(|(key, who)| (key.to_string(), who)).collect();
    let saved = serde_json::to_vec(&known).map_err(std::io::Error::from).and_then(|json| {
        if std::fs::read(&kept).is_ok_and(|there| there == json) {
            return Ok(());
        }
        // Other processes of this host may note the same at the same time.
        let new = kept.with_extension(format!("new-{}", std::process::id()));
        std::fs::write(&new, json)?;
        std::fs::rename(&new, &kept)
    });
    if let Err(error) = saved {
        warn(format!("whom to believe could not be noted in {}: {error}", kept.display()));
    }
    Ok(trusted)
}
