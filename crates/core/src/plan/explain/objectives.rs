//! Objectives that cannot be met, and what this version leaves out.
//!
//! Invariant: in the order of the codes.

use super::{Explanation, explanation};

pub(super) const ALL: &[Explanation] = &[
    explanation(
        "P0701",
        "recovery points less often than the RPO",
        "What was written since the last recovery point is lost. If points are further apart than the RPO, it is missed in every disaster but the luckiest.",
        "rpo = \"5m\"\nprotect = [{ to = \"main\", every = \"1h\" }]",
        "rpo = \"5m\"\nprotect = [{ to = \"main\", every = \"2m\" }]",
    ),
    explanation(
        "P0702",
        "starting may take longer than the RTO",
        "Components start one after the other, each within its own allowance, and resolvers follow within the TTL. Together that is more than the RTO, before any data has moved.",
        "rto = \"1m\"\nhealth = { http = \"/healthz\", within = \"5m\" }",
        "rto = \"10m\"\nhealth = { http = \"/healthz\", within = \"1m\" }",
    ),
    explanation(
        "P0703",
        "resolvers that remember for too long",
        "For as long as the TTL, users may still be sent to the lost site. It is part of every recovery time.",
        "rto = \"10m\"\nttl = \"1h\"",
        "rto = \"10m\"\nttl = \"30s\"",
    ),
    explanation(
        "P0704",
        "a canary too seldom",
        "A canary's age after a recovery is the loss as users see it. Written less often than the RPO is long, it cannot tell whether the RPO was kept.",
        "rpo = \"10s\"\ncanary.every = \"1m\"",
        "rpo = \"10s\"\ncanary.every = \"2s\"",
    ),
    explanation(
        "P0705",
        "an RPO that only a synchronous replica could meet",
        "Anything that is shipped after the write is behind by a moment. Losing nothing means that no write is acknowledged before it is elsewhere, and that costs a round trip for every commit.",
        "rpo = \"0s\"",
        "rpo = \"5s\"",
    ),
    explanation(
        "P0706",
        "never rehearsed",
        "A recovery that was never rehearsed is unproven, whatever the plan says. A drill runs in isolation and cleans up after itself.",
        "[service.shop]\n…",
        "[drill.quarterly]\nservice = \"shop\"\nscenario = \"site-lost\"\nevery = \"90d\"",
    ),
    explanation(
        "P0707",
        "more data than can be fetched in time",
        "In `backup-restore` all data is fetched from a vault before the service starts. At the stated bandwidth that alone takes longer than the RTO.",
        "rto = \"1h\"\nsize = \"5 TB\"\nbandwidth = \"100 MB/s\"",
        "strategy = \"warm-standby\"    # the data is there before it is needed",
    ),
    explanation(
        "P0901",
        "understood, but not acted on yet",
        "The language is complete before the program is. This part of the plan is checked and kept, and this version of lifeboat does nothing with it; the README says what works.",
        "",
        "",
    ),
];
