//! `lifeboat protect`: the daemon on a host.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lifeboat_core::plan::{DataSet, KeyPurpose, Secret, Service};
use lifeboat_core::runbook::place::Place;
use lifeboat_engine::arbitrate::Arbiter;
use lifeboat_engine::port::DataAgent;
use lifeboat_engine::protect::Domain;
use lifeboat_engine::protect::data::HostData;
use lifeboat_engine::vaults::VaultPlace;
use lifeboat_vault::{Identity, State};

use crate::commands::block_on;
use crate::error::{CommandError, Exit, Explain, Kind};
use crate::run_ui;
use crate::ui::Ui;
use crate::wiring::{self, Wiring};

/// How often the rosters are read again.
const ROSTER_EVERY: Duration = Duration::from_secs(5);

/// Protect what the plan's services hold on this host, until told to stop
///
/// Where the host's site is the writer, recovery points and logs go to the vaults; where it is a standby with a key,
/// what the vaults hold is applied. Which of the two it is stands in the arbiter and changes with a failover, without a
/// restart. Nobody connects to this process; it talks to the vaults and the arbiter only.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The site that this host belongs to [default: the plan's only one with this host's address]
    #[arg(long, value_name = "SITE")]
    site: Option<String>,
}

pub(crate) fn run(args: Args, ui: &Ui) -> Result<Exit, CommandError> {
    let wiring = Wiring::open(ui)?;
    let site = match args.site {
        Some(site) => site,
        None => {
            let known: Vec<&str> = wiring.plan().sites.keys().map(String::as_str).collect();
            return Err(CommandError::usage("which site does this host belong to?")
                .hint(format!("say so with --site; the plan has: {}", known.join(", "))));
        }
    };
    if !wiring.plan().sites.contains_key(&site) {
        return Err(CommandError::new(Kind::Usage, format!("the plan has no site `{site}`")));
    }
    let mut domains = Vec::new();
    for service in wiring.plan().services.values() {
        if service.primary == site || service.recovery.contains(&site) {
            domains.push(domain(&wiring, service, &site)?);
        }
    }
    if domains.is_empty() {
        return Err(CommandError::usage(format!("no service of the plan has a place at {site}")));
    }
    ui.note(format_args!("protecting {} at {site}", crate::report::counted(domains.len() as u64, "service")));
    block_on(async {
        let cancel = run_ui::interrupts();
        let believing =
            tokio::spawn(keep_believing(Arc::clone(&wiring.arbiter), wiring.vaults.clone(), wiring.state.clone()));
        let served: Vec<_> = domains.into_iter().map(|domain| tokio::spawn(domain.serve(cancel.clone()))).collect();
        for domain in served {
            domain.await?;
        }
        believing.abort();
        Ok(())
    })?;
    Ok(Exit::Done)
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

fn domain(wiring: &Wiring, service: &Service, site_name: &str) -> Result<Domain, CommandError> {
    let plan = wiring.plan();
    let (site_name, site) = plan
        .sites
        .get_key_value(site_name)
        .ok_or_else(|| CommandError::usage(format!("the plan has no site `{site_name}`")))?;
    let place = Place { plan, service, site_name, site, isolation: None };
    let state = wiring.state.directory().join("protect").join(service.write_domain());
    let mut data: Vec<Arc<dyn DataAgent>> = Vec::new();
    for (_, dataset) in service.datasets().filter(|(_, dataset)| !dataset.protect.is_empty()) {
        let path = place.dataset_path(dataset).ok_or_else(|| {
            CommandError::usage(format!("`{}`: this version protects files and sqlite only", dataset.name))
        })?;
        data.push(Arc::new(host_data(wiring, dataset, PathBuf::from(path), state.join(&dataset.name), site_name)?));
    }
    Ok(Domain {
        site: site_name.clone(),
        first_day: wiring.first_day(service),
        data,
        arbiter: Arc::clone(&wiring.arbiter),
        clock: Arc::clone(&wiring.clock),
        state,
        poll: Duration::from_millis(100),
    })
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
        state,
        protect: dataset.protect.clone(),
        vaults,
        identities,
        clock: Arc::clone(&wiring.clock),
    })
}
