//! Sites, vaults and the arbiter: what they share.
//!
//! Invariant: in the order of the codes.

use super::{Explanation, explanation};

pub(super) const ALL: &[Explanation] = &[
    explanation(
        "P0501",
        "every vault with the provider that may be lost",
        "`provider-lost` has an objective, and all vaults of this data set are run by the primary's own organization: with the provider, all copies are out of reach.",
        "[vault.far]\norganization = \"hoster-a\"    # as the primary",
        "[vault.far]\norganization = \"hoster-b\"",
    ),
    explanation(
        "P0502",
        "the arbiter with the provider that may be lost",
        "`provider-lost` has an objective, and the arbiter is run by the primary's own organization. Without it nobody can decide which site is first.",
        "[arbiter]\norganization = \"hoster-a\"",
        "[arbiter]\norganization = \"hoster-c\"",
    ),
    explanation(
        "P0503",
        "the arbiter inside a site",
        "The arbiter decides which site is first when one is lost. Inside a site it is lost with it, and recovery waits for a person's word.",
        "[arbiter]\nurl = \"file:///srv/arbiter\"\nsite = \"north\"",
        "[arbiter]\nurl = \"file:///mnt/third-place/arbiter\"",
    ),
    explanation(
        "P0504",
        "no arbiter",
        "Epochs make sure that two sites never write at once; they are claimed at the arbiter. Without one there is no safe failover.",
        "# no [arbiter]",
        "[arbiter]\nurl = \"file:///mnt/third-place/arbiter\"",
    ),
    explanation(
        "P0505",
        "recovery inside what is lost",
        "A scenario that takes a zone, a region or a provider has an objective, and every recovery site is in the same one: nothing would be left to recover at.",
        "objective.region-lost = { rto = \"2h\" }    # all sites in one region",
        "recovery = [\"frankfurt\"]    # another region",
    ),
    explanation(
        "P0506",
        "a scenario whose extent is not known",
        "A scenario has an objective, but sites do not say in which zone or region, or with which provider, they are. What it would take cannot be seen.",
        "[site.north]\nreach = \"local\"",
        "[site.north]\nreach = \"local\"\nregion = \"paris\"\nzone = \"par-1\"\norganization = \"hoster-a\"",
    ),
    explanation(
        "P0507",
        "two local sites of one address",
        "Instances at two local sites would listen at the same address: one would not start, and traffic could not tell them apart.",
        "site.north.address = \"127.0.11.1\"\nsite.south.address = \"127.0.11.1\"",
        "site.north.address = \"127.0.11.1\"\nsite.south.address = \"127.0.12.1\"",
    ),
    explanation(
        "P0508",
        "local sites whose directories overlap",
        "Losing a local site means losing its directory. One inside the other would be lost with it.",
        "site.north.root = \"/srv/sites\"\nsite.south.root = \"/srv/sites/south\"",
        "site.north.root = \"/srv/sites/north\"\nsite.south.root = \"/srv/sites/south\"",
    ),
    explanation(
        "P0509",
        "a local site that is not on loopback",
        "A local site lives on this machine, at a loopback address of its own; Linux answers on all of 127.0.0.0/8 without any setup.",
        "address = \"10.0.0.1\"",
        "address = \"127.0.11.1\"",
    ),
    explanation(
        "P0510",
        "two listeners on one port",
        "At a local site all components have the same address, and instances count up from their component's port. Two ranges that overlap cannot both start.",
        "app.port = 8080\nadmin.port = 8080",
        "app.port = 8080\nadmin.port = 8090",
    ),
    explanation(
        "P0511",
        "traffic to a site without an address",
        "Traffic is sent to addresses. A site that declares none can be recovered at, and nobody would find the service there.",
        "[site.south]\nreach = \"command\"\ncommand = [\"act\"]",
        "[site.south]\nreach = \"command\"\ncommand = [\"act\"]\nhost.web = \"10.0.2.11\"",
    ),
    explanation(
        "P0512",
        "everyday traffic that goes nowhere",
        "Weights say where traffic goes on a normal day, and that includes the primary site. All zero, or none for the primary, sends users away from the service.",
        "everyday = { north = 0 }",
        "everyday = { north = 100 }",
    ),
    explanation(
        "P0513",
        "a vault inside a site's directory",
        "The vault counts as outside, and its files lie in the directory of a local site: it is lost with that site, whatever the plan says.",
        "[site.north]\nroot = \"/srv/north\"\n[vault.main]\nurl = \"file:///srv/north/vault\"",
        "[vault.main]\nurl = \"file:///srv/vault\"",
    ),
    explanation(
        "P0514",
        "every vault in the region that may be lost",
        "`region-lost` has an objective, and all vaults of this data set are in the primary's own region.",
        "objective.region-lost = { rpo = \"1h\" }\nprotect = [{ to = \"same-region\", every = \"1h\" }]",
        "protect = [{ to = \"same-region\", every = \"1h\" }, { to = \"other-region\", every = \"1h\" }]",
    ),
    explanation(
        "P0515",
        "a site's directory that depends on where one stands",
        "Several processes use a local site: the controller, its supervisor, the agent. A relative directory would be another one for each.",
        "root = \"sites/north\"",
        "root = \"/srv/sites/north\"",
    ),
];
