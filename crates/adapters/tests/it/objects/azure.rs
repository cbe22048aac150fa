//! Azure's blobs, *emulated* by Microsoft's own Azurite: the suite that every storage is held to, and a vault's life.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};

use lifeboat_adapters::storage::{BucketStorage, Environment, open_with};
use lifeboat_vault::doctor::{Wanted, examine};
use lifeboat_vault::storage::{Put, Storage, StorageError, Verdict};

use super::proxy::{Proxy, Spoil};
use super::servers::{Server, hasty, started, tools};
use super::versions::lives;
use crate::ports::free_port;
use crate::storage_suite::conforms;

/// Known to everybody: of the emulator's only account.
const KEY: &str = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==";

static AZURITE: LazyLock<Server> = LazyLock::new(|| {
    let program = tools("npm/node_modules/.bin/azurite-blob", "npm");
    let port = free_port();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/objects/azurite.sh");
    let mut command = Command::new("bash");
    command.arg(script).arg(program).arg(port.to_string()).args(["vaults", KEY]);
    // The emulator leaves a file where it is started.
    command.current_dir(Path::new(env!("CARGO_TARGET_TMPDIR")));
    Server::of(port, started(command))
});
static PLACES: AtomicU32 = AtomicU32::new(0);

fn environment(port: u16, key: &str) -> Environment {
    let endpoint = format!("http://127.0.0.1:{port}/devstoreaccount1");
    let pairs = [
        ("AZURE_STORAGE_ACCOUNT_NAME", "devstoreaccount1"),
        ("AZURE_STORAGE_ACCOUNT_KEY", key),
        ("AZURE_STORAGE_ENDPOINT", endpoint.as_str()),
    ];
    pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

fn place() -> String {
    format!("az://vaults/place-{}", PLACES.fetch_add(1, Ordering::Relaxed))
}

fn open(port: u16, place: &str) -> BucketStorage {
    open_with(place, &environment(port, KEY), hasty()).unwrap()
}

#[test]
fn a_container_conforms() {
    conforms(|| Arc::new(open(AZURITE.port, &place())));
}

#[test]
fn a_vault_lives_in_a_container_and_is_pruned_there() {
    lives(Arc::new(open(AZURITE.port, &place())));
}

#[test]
fn of_many_that_create_one_exactly_one_does_whatever_happens_on_the_way() {
    let (place, proxy) = (place(), Proxy::before(AZURITE.port));
    let (storage, truth) = (open(proxy.port, &place), open(AZURITE.port, &place));
    assert_eq!(storage.put_if_absent("before", b"proven").unwrap(), Put::Created);
    for spoil in super::proxy::CHAOS {
        let key = format!("claims/{spoil:?}");
        proxy.spoil(&format!("claims%2F{spoil:?} "), spoil, 1);
        proxy.spoil(&format!("claims/{spoil:?} "), spoil, 1);
        assert_eq!(storage.put_if_absent(&key, b"mine").unwrap(), Put::Created, "{spoil:?}: it was us");
        assert_eq!(truth.put_if_absent(&key, b"mine").unwrap(), Put::Exists, "{spoil:?}: it was another");
        proxy.calm();
    }
    assert!(proxy.spoiled().len() >= super::proxy::CHAOS.len(), "{:?}", proxy.spoiled());
    // Deletions go in batches, whose answers say within what became of them.
    proxy.spoil("comp=batch", Spoil::ResetAfter, 1);
    storage.delete("claims/ResetAfter").unwrap();
    storage.delete("claims/never").unwrap();
    assert!(truth.get("claims/ResetAfter").unwrap_err().is_not_found());
    // One that ignored the condition would be found out.
    let careless = Proxy::before(AZURITE.port);
    careless.spoil("PUT ", Spoil::Unconditional, usize::MAX);
    let refused = open(careless.port, &place).put_if_absent("claims/late", b"1").unwrap_err();
    assert!(matches!(refused, StorageError::Unsuitable { .. }), "{refused:?}");
}

#[test]
fn the_doctor_and_errors_speak_of_what_is_there() {
    let place = place();
    let examined = examine(&open(AZURITE.port, &place), Wanted::Pruner, None);
    let codes: Vec<&str> = examined.facts.iter().map(|fact| fact.code).collect();
    assert!(examined.is_well(), "{:?}", examined.facts);
    assert_eq!(codes, ["list", "one-winner", "replace", "delete", "clock"]);
    let host = examine(&open(AZURITE.port, &place), Wanted::Host, None);
    let found: Vec<&str> =
        host.facts.iter().filter(|fact| fact.verdict == Verdict::Finding).map(|fact| fact.code).collect();
    assert_eq!(found, ["replace", "delete", "elsewhere"], "an account's key may do everything");
    let said = |url: &str, key: &str| {
        open_with(url, &environment(AZURITE.port, key), hasty()).unwrap().get("a").unwrap_err().to_string()
    };
    insta::assert_snapshot!(
        [said(&place, KEY), said("az://nowhere/x", KEY)].join("\n"), @r"
        there is no object a
        there is no bucket at az://nowhere/x, or none that these credentials may see; make it, or correct the address
        "
    );
}
