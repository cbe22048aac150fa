//! `lifeboat protect`: the daemon on a host.

use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_adapters::probe::NetworkProbe;
use lifeboat_adapters::site::watchdog::WatchdogProcess;
use lifeboat_core::plan::{DataSet, KeyPurpose, Secret, Service};
use lifeboat_core::runbook::place::Place;
use lifeboat_engine::arbitrate::Arbiter;
use lifeboat_engine::port::{DataAgent, PointTaken, PortError, StreamFrom};
use lifeboat_engine::protect::data::HostData;
use lifeboat_engine::protect::{Domain, DomainLease};
use lifeboat_engine::vaults::VaultPlace;
use lifeboat_vault::{Identity, State};
use serde::Serialize;

use crate::commands::block_on;
use crate::commands::recover::scheduled;
use crate::commands::verify::scheduled as verification;
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::interrupt;
use crate::run_ui;
use crate::ui::Ui;
use crate::wiring::{self, Wiring};

/// How often the rosters are read again.
const ROSTER_EVERY: Duration = Duration::from_secs(5);
/// A database that has long been idle says so that many times within its objective, and once a minute at least.
const MARKS_WITHIN_RPO: u32 = 4;
const MARK_IDLE_MAX: Duration = Duration::from_secs(60);
/// However long the lease, a watchdog that is silent for so long is not there.
const WATCHDOG_WITHIN: Duration = Duration::from_secs(5);
/// How long an agent that is being replaced may take to end.
const ALONE_WITHIN: Duration = Duration::from_secs(5);

/// Protect what the plan's services hold on this host, until told to stop
///
/// Where the host's site is the writer, recovery points and logs go to the vaults; where it is a standby with a key,
/// what the vaults hold is applied. Which of the two it is stands in the arbiter and changes with a failover, without a
/// restart. Nobody connects to this process; it talks to the vaults and the arbiter only. Where the plan schedules drills and places their key at
/// this site, it starts them as they are due; in the same way it has recovery points verified.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The site that this host belongs to [default: the plan's only one]
    #[arg(long, value_name = "SITE")]
    site: Option<String>,
    /// Take one recovery point of all that is written here into each vault, and stop: for a timer of your own
    #[arg(long)]
    once: bool,
}

#[derive(Serialize)]
struct Taken {
    dataset: String,
    vault: String,
    point: Option<String>,
    files: Option<u64>,
    bytes: Option<u64>,
    bytes_new: Option<u64>,
    bytes_stored: Option<u64>,
    seconds: Option<f64>,
    error: Option<String>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Arc::new(Wiring::open(ui)?);
    let site = match args.site {
        Some(site) => site,
        None => {
            let known: Vec<&str> = wiring.plan().sites.keys().map(String::as_str).collect();
            match known.as_slice() {
                [only] => (*only).to_owned(),
                _ => {
                    return Err(CommandError::usage("which site does this host belong to?")
                        .hint(format!("say so with --site; the plan has: {}", known.join(", "))));
                }
            }
        }
    };
    if !wiring.plan().sites.contains_key(&site) {
        return Err(CommandError::new(Kind::Usage, format!("the plan has no site `{site}`")));
    }
    if args.once {
        return once(&wiring, &site, ui);
    }
    wiring.arbiter.check_may_report(&site).kind(Kind::Refused)?;
    let mut domains = Vec::new();
    for service in wiring.plan().services.values() {
        if service.primary == site || service.recovery.contains(&site) {
            domains.push((domain(&wiring, service, &site)?, service));
        }
    }
    if domains.is_empty() {
        return Err(CommandError::usage(format!("no service of the plan has a place at {site}")));
    }
    let _alone = alone(&wiring, &site, ui)?;
    for place in wiring.vaults.values() {
        if let Err(error) = place.as_host() {
            let error = CommandError::from(error);
            let state = wiring.state.directory().display();
            ui.warn(format_args!(
                "nothing can be written yet: {} (this host's state is {state}: give it with --state)",
                error.causes.last().unwrap_or(&error.message)
            ));
        }
    }
    ui.note(format_args!("protecting {} at {site}", crate::report::counted(domains.len() as u64, "service")));
    block_on(async {
        let cancel = run_ui::interrupts();
        for (domain, service) in &mut domains {
            domain.lease = lease(&wiring, service, &site)?;
        }
        let believing =
            tokio::spawn(keep_believing(Arc::clone(&wiring.arbiter), wiring.vaults.clone(), wiring.state.clone()));
        let drills = tokio::spawn(scheduled::keep(Arc::clone(&wiring), site.clone(), cancel.clone()));
        let verified = tokio::spawn(verification::keep(Arc::clone(&wiring), site.clone(), cancel.clone()));
        let served: Vec<_> =
            domains.into_iter().map(|(domain, _)| tokio::spawn(domain.serve(cancel.clone()))).collect();
        for domain in served {
            domain.await?;
        }
        drills.await?;
        verified.await?;
        believing.abort();
        Ok(())
    })?;
    Ok(Exit::Done)
}

/// Holds the site for this process: two agents would take the volumes, and the vaults' logs, out of each other's hands.
fn alone(wiring: &Wiring, site: &str, ui: &Ui) -> Result<std::fs::File, CommandError> {
    let make = |directory: &PathBuf| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).is_ok();
    // A local site's agents share its directory, whatever state each was given.
    let place = wiring.plan().sites.get(site).and_then(wiring::agent_state);
    let directory = place.filter(make).unwrap_or_else(|| wiring.state.directory().to_owned());
    let path = directory.join(format!("protect-{site}.lock"));
    let options = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let file = options.saying(|| format!("{} cannot be opened", path.display()))?;
    let until = std::time::Instant::now() + ALONE_WITHIN;
    let mut said = false;
    while rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_err() {
        if std::time::Instant::now() > until {
            return Err(CommandError::refused(format!("another `lifeboat protect` works at {site}"))
                .hint(format!("leave it at work, or end it first; it holds {}", path.display())));
        }
        if !said {
            ui.note(format_args!("another `lifeboat protect` works at {site}; waiting a moment for it to end"));
            said = true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(file)
}

/// One recovery point of each data set of the services that write at the site.
fn once(wiring: &Wiring, site: &str, ui: &Ui) -> Result<Exit, CommandError> {
    let cancel = interrupt::listen(ui)?;
    let mut taken = Vec::new();
    for service in wiring.plan().services.values() {
        let (writer, epoch) = wiring.writer(service)?;
        if writer != site {
            ui.note(format_args!("{} is written at {writer}, not here", service.name));
            continue;
        }
        for data in datasets(wiring, service, site)? {
            for (vault, result) in data.take_once(epoch, &cancel) {
                if cancel.is_cancelled() {
                    return Err(CommandError::interrupted("interrupted; what was taken stands"));
                }
                taken.push(told(&data.dataset, vault, result, ui));
            }
        }
    }
    ui.document(&taken)?;
    if taken.is_empty() {
        return Err(CommandError::refused(format!("nothing of the plan is written at {site} now"))
            .hint("`lifeboat status` shows who writes what"));
    }
    let failed = taken.iter().filter(|taken| taken.error.is_some()).count();
    if failed > 0 {
        return Err(CommandError::failed(format!("{failed} of {} recovery points could not be taken", taken.len())));
    }
    Ok(Exit::Done)
}

fn told(dataset: &str, vault: String, result: Result<PointTaken, PortError>, ui: &Ui) -> Taken {
    let (point, error) = match result {
        Ok(point) => (Some(point), None),
        Err(error) => (None, Some(CommandError::from(error))),
    };
    if let Some(taken) = &point {
        ui.line(format_args!("{dataset}: recovery point {} in {vault}, {:.1} s", taken.point.sequence, taken.seconds));
        for note in taken.skipped.iter().chain(&taken.notes) {
            ui.note(format_args!("  {note}"));
        }
    }
    let error = error.map(|error| {
        let text = std::iter::once(&error.message).chain(&error.causes).cloned().collect::<Vec<_>>().join(": ");
        ui.warn(format_args!("{dataset} into {vault}: {text}"));
        text
    });
    Taken {
        dataset: dataset.to_owned(),
        vault,
        files: point.as_ref().map(|taken| taken.files),
        bytes: point.as_ref().map(|taken| taken.bytes),
        bytes_new: point.as_ref().map(|taken| taken.bytes_new),
        bytes_stored: point.as_ref().map(|taken| taken.bytes_stored),
        seconds: point.as_ref().map(|taken| taken.seconds),
        point: point.map(|taken| taken.point.id),
        error,
    }
}

/// Learns from the rosters who has been enrolled, or revoked, since this host began.
async fn keep_believing(arbiter: Arc<Arbiter>, vaults: BTreeMap<String, VaultPlace>, state: State) {
    loop {
        tokio::time::sleep(ROSTER_EVERY).await;
        let (places, own) = (vaults.clone(), state.clone());
        let learnt = tokio::task::spawn_blocking(move || {
            wiring::trusted(&places, &own, &|text| tracing::debug!("{text}")).map_err(|error| error.message)
        });
        match learnt.await {
            Ok(Ok(trusted)) => arbiter.trust(trusted),
            Ok(Err(error)) => tracing::warn!("the rosters cannot be read, believing whom this host knows: {error}"),
            Err(_) => return,
        }
    }
}

fn domain(wiring: &Wiring, service: &Service, site: &str) -> Result<Domain, CommandError> {
    let data = datasets(wiring, service, site)?;
    Ok(Domain {
        site: site.to_owned(),
        first_day: wiring.first_day(service),
        data: data.into_iter().map(|data| Arc::new(data) as Arc<dyn DataAgent>).collect(),
        arbiter: Arc::clone(&wiring.arbiter),
        clock: Arc::clone(&wiring.clock),
        state: state_of(wiring, service),
        poll: Duration::from_millis(100),
        lease: None,
    })
}

/// How this host holds the service's lease; none where the plan asks for none, and none was ever held here.
fn lease(wiring: &Wiring, service: &Service, site: &str) -> Result<Option<DomainLease>, CommandError> {
    let absolute = |path: &Path| std::path::absolute(path).map(|path| path.to_string_lossy().into_owned());
    let state = wiring::lease_state(wiring.state.directory(), service);
    if service.lease.is_none() && !state.exists() {
        return Ok(None);
    }
    let (guarded, instances) = wiring::guarded(&wiring.loaded, service, site, state)?;
    let program = std::env::current_exe().saying(|| "this program does not know its own path".into())?;
    let mut command: Vec<String> = vec![program.to_string_lossy().into_owned()];
    command.extend(["watchdog", "--site", site, "--service", &service.name, "--plan"].map(str::to_owned));
    command.extend([absolute(&wiring.loaded.path)?, "--state".to_owned(), absolute(wiring.state.directory())?]);
    let ttl = service.lease.unwrap_or(lifeboat_core::lease::TTL_MIN);
    let answer_within = (ttl.0 / 8).min(WATCHDOG_WITHIN);
    let probe = Arc::new(NetworkProbe::default());
    let runtime = tokio::runtime::Handle::current();
    let watchdog = WatchdogProcess::new(guarded, command, instances, probe, answer_within, runtime);
    let key = wiring.state.signing_key().public().fingerprint();
    let holder = format!("{} ({key})", wiring.state.host_name());
    Ok(Some(DomainLease { ttl: service.lease, holder, watchdog: Arc::new(watchdog) }))
}

/// Where this host remembers what it did for a service.
fn state_of(wiring: &Wiring, service: &Service) -> PathBuf {
    wiring.state.directory().join("protect").join(service.write_domain())
}

/// The service's protected data as it lies at the site.
fn datasets(wiring: &Wiring, service: &Service, site_name: &str) -> Result<Vec<HostData>, CommandError> {
    let plan = wiring.plan();
    let (site_name, site) = plan
        .sites
        .get_key_value(site_name)
        .ok_or_else(|| CommandError::usage(format!("the plan has no site `{site_name}`")))?;
    let place = Place { plan, service, site_name, site, isolation: None };
    let mut data = Vec::new();
    for (_, dataset) in service.datasets().filter(|(_, dataset)| !dataset.protect.is_empty()) {
        // A server that is reached by a service has no place at this site.
        let dumped = dataset.source.is_dump().then(|| place.dumped_path(dataset).unwrap_or_default());
        let path = dumped.or_else(|| place.dataset_path(dataset)).ok_or_else(|| {
            let what = "this version protects files, sqlite and postgres, and dumps of it";
            CommandError::usage(format!("`{}`: {what}", dataset.name))
        })?;
        let state = state_of(wiring, service).join(&dataset.name);
        let mut data_set = host_data(wiring, dataset, PathBuf::from(path), state, site_name)?;
        // An idle database's age is a small part of what may be lost.
        data_set.mark_idle_max = (service.objective.rpo.0 / MARKS_WITHIN_RPO).min(MARK_IDLE_MAX);
        data.push(data_set);
    }
    Ok(data)
}

fn host_data(
    wiring: &Wiring,
    dataset: &DataSet,
    path: PathBuf,
    state: PathBuf,
    site: &str,
) -> Result<HostData, CommandError> {
    std::fs::create_dir_all(&state).saying(|| format!("the state directory {} cannot be made", state.display()))?;
    let vaults: BTreeMap<_, _> = dataset
        .protect
        .iter()
        .filter_map(|protect| Some((protect.to.clone(), wiring.vaults.get(&protect.to)?.clone())))
        .collect();
    let mut identities = Vec::new();
    let holders = wiring.plan().keys.holders.iter();
    for holder in holders.filter(|holder| {
        holder.purpose == KeyPurpose::Standby && holder.held_at == site && holder.datasets.contains(&dataset.name)
    }) {
        if let Some(Secret::File(path)) = &holder.identity {
            identities.extend(Identity::load_all(Path::new(path))?);
        }
    }
    Ok(HostData {
        dataset: dataset.name.clone(),
        source: lifeboat_adapters::source::source_for(&dataset.source, &path, &state)?,
        restorer: lifeboat_adapters::source::restorer_for(&dataset.source)?,
        path,
        is_apart: dataset.source.is_dump(),
        state,
        protect: dataset.protect.clone(),
        awaited: dataset.awaited(site),
        vaults,
        identities,
        via: dataset
            .replica
            .iter()
            .flat_map(|replica| &replica.via)
            .map(|(writer, service)| {
                (writer.clone(), StreamFrom { service: service.clone(), follower: site.to_owned() })
            })
            .collect(),
        mark_idle_max: Duration::ZERO,
        clock: Arc::clone(&wiring.clock),
    })
}
