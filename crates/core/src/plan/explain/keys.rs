//! Keys: who opens what.
//!
//! Invariant: in the order of the codes.

use super::{Explanation, explanation};

pub(super) const ALL: &[Explanation] = &[
    explanation(
        "P0401",
        "a single key",
        "Whoever holds the one key may lose it, and then everything in the vaults is lost. Any one of two or more recipients opens everything; keep them in different places, one on paper.",
        "recipients = [\"age1office\"]",
        "recipients = [\"age1office…\", \"age1paper…\"]",
    ),
    explanation(
        "P0402",
        "a private key among the data",
        "The private key lies in a place that is itself protected: it would go to the vault that it opens, and be restored wherever the data is.",
        "identity = { file = \"/srv/uploads/south.key\" }",
        "identity = { file = \"/etc/lifeboat/south.key\" }",
    ),
    explanation(
        "P0403",
        "a private key in the plan",
        "Whoever has seen the plan, or its history, has the key. Take it out and replace it; only recipients (`age1…`) stand in a plan.",
        "recipients = [\"AGE-SECRET-KEY-1…\"]",
        "recipients = [\"age1…\"]",
    ),
    explanation(
        "P0404",
        "a key that opens everything, held at a site",
        "A recipient of all data sets is declared as held within a site: who breaks in there reads every data set's whole history. A standby, a drill or a verifier has a key of its own, for its own data sets.",
        "recipients = [\"age1a…\", \"age1b…\"]\nstandby = { recipient = \"age1a…\", … }",
        "recipients = [\"age1a…\", \"age1b…\"]\nstandby = { recipient = \"age1c…\", … }",
    ),
    explanation(
        "P0405",
        "a drill's or verifier's key where the data is written",
        "The host that writes needs only public keys, so that a break-in there reads nothing of what was written before. A private key beside it undoes that.",
        "verify = { recipient = \"age1…\", held-at = \"north\", … }   # the primary",
        "verify = { recipient = \"age1…\", held-at = \"south\", … }",
    ),
    explanation(
        "P0406",
        "one private key at two sites",
        "A private key is made where it lives and does not travel. The same one at two sites has been copied, and losing either site gives it away.",
        "standby = [{ recipient = \"age1a…\", held-at = \"north\" }, { recipient = \"age1a…\", held-at = \"south\" }]",
        "standby = [{ recipient = \"age1a…\", held-at = \"north\" }, { recipient = \"age1b…\", held-at = \"south\" }]",
    ),
    explanation(
        "P0407",
        "a standby that cannot follow",
        "A warm standby applies what the vault holds, and for that it needs a key to it. Without one, recovery begins with a whole restore, and takes as long as that.",
        "strategy = \"warm-standby\"",
        "[key]\nstandby = { recipient = \"age1…\", held-at = \"south\", datasets = [\"orders\"], identity = { file = \"…\" } }",
    ),
    explanation(
        "P0408",
        "a standby's key that is nowhere",
        "The plan declares the key, and does not say where its private half is found on the standby's host. The agent there would not follow.",
        "standby = { recipient = \"age1…\", held-at = \"south\", datasets = [\"orders\"] }",
        "standby = { recipient = \"age1…\", held-at = \"south\", datasets = [\"orders\"], identity = { file = \"/etc/lifeboat/standby.key\" } }",
    ),
    explanation(
        "P0409",
        "no owner's fingerprint",
        "Encryption says who can read, not who wrote. Without the fingerprint of your vault's owner in the plan, hostile storage could present another vault, whole and well-formed.",
        "[key]\nrecipients = [ … ]",
        "[key]\nrecipients = [ … ]\nowner = \"…\"    # as `lifeboat vault init` printed it",
    ),
    explanation(
        "P0410",
        "the same recipient twice",
        "The plan looks as if two keys opened the vaults, and there is one. When it is lost, so is everything.",
        "recipients = [\"age1a…\", \"age1a…\"]",
        "recipients = [\"age1a…\", \"age1b…\"]",
    ),
    explanation(
        "P0411",
        "no keys at all",
        "Data is protected, and the plan names nobody who could open it. Without recipients nothing can be written to a vault.",
        "# no [key]",
        "[key]\nrecipients = [\"age1a…\", \"age1b…\"]",
    ),
    explanation(
        "P0412",
        "a private key handed to a service",
        "A key that opens recovery points is given to a component that is reachable from outside. A fault in it would give away the whole history.",
        "launch.env.KEY = { file = \"/etc/lifeboat/standby.key\" }",
        "# the agent (`lifeboat protect`) alone reads it",
    ),
    explanation(
        "P0413",
        "an owner that is no fingerprint",
        "Every command compares the owner of the vault that it finds with this text, and refuses another one. `lifeboat vault init` prints it: hex digits.",
        "owner = \"me\"",
        "owner = \"0af35126fc44eb435cb61585f3775a9b\"",
    ),
];
