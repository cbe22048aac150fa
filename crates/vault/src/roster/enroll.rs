//! Who joins, and who may open: changes of the roster and of keys' recipients, by the owner.
//!
//! Invariants: only the owner's key makes a roster; a request is only a request; changing recipients rewrites keys and nothing else.

use minicbor::{Decode, Encode};

use crate::codec;
use crate::error::{Doing, Result, VaultError};
use crate::host::State;
use crate::keys::{self, Pair};
use crate::open::{Unlocked, Vault, member_of};
use crate::roster::{Holder, Member, Role, Roster};
use crate::seal::{Identity, Recipient};
use crate::sign::Signed;
use crate::storage::Put;

pub(crate) const ENROLMENT_KIND: &str = "vault.enrolment";

/// So many requests of one machine may wait.
const REQUESTS_MAX: u32 = 8;

fn same_roles(left: &[Role], right: &[Role]) -> bool {
    left.iter().all(|role| right.contains(role)) && right.iter().all(|role| left.contains(role))
}

/// Roles in a sentence.
fn role_names(roles: &[Role]) -> String {
    let names: Vec<&str> = roles.iter().map(|role| role.name()).collect();
    names.join(" and ")
}

/// A machine's wish to be on the roster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    pub name: String,
    /// What the owner compares with what the machine shows.
    pub fingerprint: String,
    pub roles: Vec<Role>,
    pub(crate) member: Member,
    pub(crate) key: String,
}

#[derive(Debug, Encode, Decode)]
struct RequestBody {
    #[n(0)]
    vault: String,
    #[n(1)]
    member: Member,
}

/// The fingerprint of the key that a request asks for; it must have signed it.
pub(crate) fn requested(roster: &Roster, key: &str, signed: &Signed) -> Result<String> {
    let body: RequestBody = codec::decode(key, &signed.payload)?;
    if body.vault != roster.vault || body.member.key != signed.signer || body.member.revoked.is_some() {
        return Err(VaultError::untrusted(key, "it does not ask for the key that signed it"));
    }
    Ok(body.member.key.fingerprint())
}

impl Vault {
    /// Leaves a request that the owner approves (`Unlocked::approve`). Asking twice is asking once.
    pub fn request_enrolment(&self, state: &State, roles: &[Role]) -> Result<Request> {
        state.keep_name()?;
        let roles = if roles.is_empty() { vec![Role::Host] } else { roles.to_vec() };
        let member = member_of(state, roles.clone());
        let fingerprint = member.key.fingerprint();
        let body = RequestBody { vault: self.id(), member: member.clone() };
        let bytes = Signed::seal(ENROLMENT_KIND, &codec::encode(&body)?, state.signing_key())?;
        // An earlier request for other roles stays where it is: nobody but the owner takes anything away.
        for attempt in 1..=REQUESTS_MAX {
            let suffix = if attempt == 1 { String::new() } else { format!("-{attempt}") };
            let key = format!("enroll/{fingerprint}{suffix}");
            let put = self.storage().put_if_absent(&key, &bytes).doing(|| format!("writing {key}"))?;
            if put == Put::Created || self.storage().get(&key).doing(|| format!("reading {key}"))? == bytes {
                return Ok(Request { name: member.name.clone(), fingerprint, roles, member, key });
            }
        }
        Err(VaultError::Conflict {
            object: format!("enroll/{fingerprint}"),
            why: "too many requests of this machine wait already; have one approved, or removed".to_owned(),
        })
    }

    /// Requests that wait; those that do not prove the key they ask for are left out.
    pub fn enrolment_requests(&self) -> Result<Vec<Request>> {
        self.refresh()?;
        let roster = self.roster();
        let mut requests = Vec::new();
        for object in self.storage().list("enroll/").doing(|| "listing requests".to_owned())? {
            let bytes = self.storage().get(&object.key).doing(|| format!("reading {}", object.key))?;
            let Ok(signed) = Signed::open(ENROLMENT_KIND, &object.key, &bytes) else { continue };
            let Ok(body) = codec::decode::<RequestBody>(&object.key, &signed.payload) else { continue };
            let member = body.member;
            let there = roster.member(&member.key);
            // Who is on the roster may ask to be more; who was revoked needs a new key.
            let settled = there
                .is_some_and(|m| m.revoked.is_some() || m.name != member.name || same_roles(&m.roles, &member.roles));
            if body.vault != roster.vault || member.key != signed.signer || member.revoked.is_some() || settled {
                continue;
            }
            let fingerprint = member.key.fingerprint();
            requests.push(Request {
                name: member.name.clone(),
                fingerprint,
                roles: member.roles.clone(),
                member,
                key: object.key,
            });
        }
        Ok(requests)
    }
}

impl Unlocked {
    /// Puts the machine with this fingerprint, which asked, on the roster.
    pub fn approve(&self, fingerprint: &str) -> Result<Member> {
        match self.requests_of(fingerprint)?.as_slice() {
            [only] => self.accept(only),
            requests => {
                let asked: Vec<String> = requests.iter().map(|r| role_names(&r.roles)).collect();
                let why = format!("it asks several times, to be {}; approve one of these exactly", asked.join("; or "));
                Err(VaultError::invalid(format!("fingerprint {fingerprint}"), why))
            }
        }
    }

    /// The same, where it asks to be exactly this.
    pub fn approve_as(&self, fingerprint: &str, roles: &[Role]) -> Result<Member> {
        let requests = self.requests_of(fingerprint)?;
        if let Some(request) = requests.iter().find(|r| same_roles(&r.roles, roles)) {
            return self.accept(request);
        }
        let asked: Vec<String> = requests.iter().map(|r| role_names(&r.roles)).collect();
        let why = format!(
            "it asks to be {}, not {}; approve exactly what it asks (--role), if that is right",
            asked.join("; or "),
            role_names(roles)
        );
        Err(VaultError::invalid(format!("fingerprint {fingerprint}"), why))
    }

    fn requests_of(&self, fingerprint: &str) -> Result<Vec<Request>> {
        let mut requests = self.enrolment_requests()?;
        requests.retain(|request| request.fingerprint == fingerprint);
        if requests.is_empty() {
            let why =
                "no such request waits; run `lifeboat vault enroll` on that machine first, and compare what it prints";
            return Err(VaultError::invalid(format!("fingerprint {fingerprint}"), why));
        }
        Ok(requests)
    }

    fn accept(&self, request: &Request) -> Result<Member> {
        self.admit(request.member.clone())?;
        // The roster speaks now; a request that stays behind is ignored.
        let _ = self.storage().delete(&request.key);
        Ok(request.member.clone())
    }

    /// Puts somebody on the roster; who is there already under this key and name gets these roles.
    pub fn admit(&self, member: Member) -> Result<()> {
        let was_pruner = self.roster().permits(&member.key, Role::Pruner);
        self.change_roster(|roster| {
            let there = roster.members.iter_mut().find(|m| m.key == member.key && m.name == member.name);
            match there {
                Some(there) if there.revoked.is_none() => there.roles = member.roles.clone(),
                _ => roster.members.push(member.clone()),
            }
            Ok(())
        })?;
        // A pruner needs the refs key; who no longer is one does not get the next.
        let is_pruner = member.roles.contains(&Role::Pruner);
        if is_pruner || was_pruner { self.reseal(Pair::Refs) } else { Ok(()) }
    }

    /// Lets another key open everything from now on (all that is there included).
    pub fn add_recipient(&self, recipient: &Recipient) -> Result<()> {
        let text = recipient.to_string();
        self.change_roster(|roster| {
            if !roster.recipients.contains(&text) {
                roster.recipients.push(text.clone());
            }
            Ok(())
        })?;
        self.reseal_all()
    }

    /// Lets another key open one data set.
    pub fn add_holder(&self, holder: &Holder) -> Result<()> {
        self.change_roster(|roster| {
            if !roster.holders.contains(holder) {
                roster.holders.push(holder.clone());
            }
            Ok(())
        })?;
        self.reseal(Pair::Content(&holder.dataset))
    }

    /// Takes a key (everywhere) out of those that open. What it could open before it may have kept.
    pub fn remove_recipient(&self, recipient: &Recipient) -> Result<()> {
        let text = recipient.to_string();
        self.change_roster(|roster| {
            let before = (roster.recipients.len(), roster.holders.len());
            roster.recipients.retain(|r| *r != text);
            roster.holders.retain(|h| h.recipient != text);
            if roster.recipients.is_empty() {
                return Err(VaultError::invalid(
                    "the list of recipients",
                    "the last one cannot be removed: nobody could restore",
                ));
            }
            if before == (roster.recipients.len(), roster.holders.len()) {
                return Err(VaultError::invalid(
                    format!("recipient {text}"),
                    "it is not among those that open this vault",
                ));
            }
            Ok(())
        })?;
        self.reseal_all()
    }

    pub(super) fn change_roster(&self, change: impl Fn(&mut Roster) -> Result<()>) -> Result<()> {
        let owner = self.owner_key()?;
        self.refresh()?;
        let loaded = self.loaded();
        let mut next = loaded.roster.successor(loaded.hash);
        change(&mut next)?;
        next.check_valid()?;
        next.publish(&**self.storage(), owner)?;
        self.refresh()
    }

    fn reseal_all(&self) -> Result<()> {
        self.reseal(Pair::Owner)?;
        self.reseal(Pair::Refs)?;
        for dataset in keys::datasets(&**self.storage())? {
            self.reseal(Pair::Content(&dataset))?;
        }
        Ok(())
    }

    /// Seals a private half anew to today's recipients; the files before are removed after that. A data set that does not
    /// exist yet is sealed rightly when it does.
    pub(super) fn reseal(&self, pair: Pair<'_>) -> Result<()> {
        let storage = self.storage();
        let roster = self.roster();
        let Some(stated) = keys::stated(&**storage, &roster, pair)? else { return Ok(()) };
        let wanted = match pair {
            Pair::Content(dataset) => roster.recipients_of(dataset)?,
            Pair::Refs => roster.recipients_of_refs()?,
            Pair::Owner => roster.recipients_of("")?,
        };
        if wanted.iter().map(Recipient::to_string).collect::<Vec<_>>() == stated.statement.recipients {
            return Ok(());
        }
        let private = match pair {
            Pair::Owner => crate::crypt::hex(self.owner_key()?.seed()),
            Pair::Refs => self
                .refs
                .as_ref()
                .map(Identity::expose)
                .ok_or_else(|| VaultError::KeyNeeded { what: pair.describe() })?,
            Pair::Content(dataset) => self.content(dataset)?.expose(),
        };
        let by = (&roster, self.owner_key()?);
        let number = stated.statement.number + 1;
        let next = keys::state(&**storage, pair, number, by, &stated.statement.public, &private, &wanted)?;
        let next = next.ok_or_else(|| VaultError::Conflict {
            object: pair.prefix(),
            why: "its recipients were changed elsewhere".to_owned(),
        })?;
        self.check_stated(pair, &next)?;
        let prefix = pair.prefix();
        for object in storage.list(&prefix).doing(|| format!("listing {prefix}"))? {
            if object.key.ends_with(".age") && object.key != next.file_key() {
                storage.delete(&object.key).doing(|| format!("removing {}", object.key))?;
            }
        }
        Ok(())
    }
}
