//! Listing a bucket: page after page, and, where that would take long, directory beside directory.
//!
//! Invariant: whatever the order in which pages come, what is given is sorted, without doubles, and holds nothing but keys of ours.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use futures_util::stream;
use futures_util::{FutureExt, StreamExt, TryStreamExt};
use jiff::Timestamp;
use lifeboat_vault::storage::{Listed, StorageError};
use object_store::path::Path;
use object_store::{ListResult, ObjectMeta, ObjectStore};

use super::patience::Tries;
use super::verbs::Shared;
use super::wire;

/// Eight pages: a listing that goes on after them is worth a request for each of its directories.
pub(super) const SPLIT_AFTER: usize = 8000;
const PARALLEL_LISTS: usize = 16;
/// A vault's keys are a few segments deep.
const SPLIT_DEPTH_MAX: usize = 6;

pub(super) async fn list(shared: Arc<Shared>, prefix: String) -> Result<Vec<Listed>, StorageError> {
    // The library lists directories; what the last segment begins with is looked at here.
    let directory = prefix.rsplit_once('/').map_or("", |(directory, _)| directory).to_owned();
    let mut found = gather(shared, directory, 0).await?;
    found.retain(|listed| listed.key.starts_with(&prefix));
    Ok(found)
}

fn gather(
    shared: Arc<Shared>,
    directory: String,
    depth: usize,
) -> BoxFuture<'static, Result<Vec<Listed>, StorageError>> {
    async move {
        let limit = if depth < SPLIT_DEPTH_MAX { shared.split_after } else { usize::MAX };
        let (mut found, ended) = page_on(&shared, &directory, None, limit).await?;
        if !ended {
            let rest = beside(&shared, &directory, depth, found.last().map(|listed| listed.key.clone())).await?;
            found.extend(rest);
        }
        found.sort_unstable();
        found.dedup_by(|later, first| later.key == first.key);
        Ok(found)
    }
    .boxed()
}

/// What lies in a directory after a key, its directories at once.
async fn beside(
    shared: &Arc<Shared>,
    directory: &str,
    depth: usize,
    after: Option<String>,
) -> Result<Vec<Listed>, StorageError> {
    let level = level_of(shared, directory).await?;
    let below: Vec<String> =
        level.common_prefixes.iter().filter_map(|path| shared.key(path)).map(str::to_owned).collect();
    if below.len() < 2 {
        return Ok(page_on(shared, directory, after, usize::MAX).await?.0);
    }
    let mut found: Vec<Listed> = level.objects.iter().filter_map(|meta| listed(shared, meta)).collect();
    let ahead = |directory: &String| {
        let first = format!("{directory}/");
        after.as_ref().is_none_or(|after| first > *after || after.starts_with(&first))
    };
    let each = below.into_iter().filter(ahead).map(|directory| gather(shared.clone(), directory, depth + 1));
    let parts: Vec<Vec<Listed>> = stream::iter(each).buffer_unordered(PARALLEL_LISTS).try_collect().await?;
    found.extend(parts.into_iter().flatten());
    Ok(found)
}

async fn level_of(shared: &Shared, directory: &str) -> Result<ListResult, StorageError> {
    let path = shared.path(directory)?;
    let doing = shared.doing("list", directory);
    let limit = shared.patience().stall * 4;
    let done = shared.persist(&doing, limit, || shared.store.list_with_delimiter(Some(&path))).await;
    done.map(|(level, _)| level).map_err(|failure| shared.settle(failure, "list", directory))
}

/// Lists in order until the end or the limit. After a failure it goes on where it was.
async fn page_on(
    shared: &Shared,
    directory: &str,
    after: Option<String>,
    limit: usize,
) -> Result<(Vec<Listed>, bool), StorageError> {
    let path = shared.path(directory)?;
    let doing = shared.doing("list", "");
    let mut tries = Tries::new(shared.patience());
    let (mut found, mut last) = (Vec::new(), after);
    loop {
        let before = found.len();
        let (result, answer) = wire::watch(read_on(shared, &path, &mut found, &mut last, limit)).await;
        shared.saw(&answer);
        if found.len() > before {
            tries.progressed();
        }
        let failure = match result {
            Ok(ended) => return Ok((found, ended)),
            Err(Some(error)) => doing.failure(&error, &answer),
            Err(None) => doing.timed_out(&answer),
        };
        shared.bear(failure, &mut tries).await.map_err(|failure| shared.settle(failure, "list", directory))?;
    }
}

/// Whether the end was reached; the error is `None` where nothing was heard any more.
async fn read_on(
    shared: &Shared,
    path: &Path,
    found: &mut Vec<Listed>,
    last: &mut Option<String>,
    limit: usize,
) -> Result<bool, Option<object_store::Error>> {
    let store: &dyn ObjectStore = &*shared.store;
    let mut pages = match last {
        None => store.list(Some(path)),
        Some(key) => match shared.path(key) {
            Ok(from) => store.list_with_offset(Some(path), &from),
            Err(_) => store.list(Some(path)),
        },
    };
    while found.len() < limit {
        let next = tokio::time::timeout(shared.patience().stall, pages.next()).await.map_err(|_| None)?;
        let Some(next) = next else { return Ok(true) };
        if let Some(one) = listed(shared, &next.map_err(Some)?) {
            *last = Some(one.key.clone());
            found.push(one);
        }
    }
    Ok(false)
}

fn listed(shared: &Shared, meta: &ObjectMeta) -> Option<Listed> {
    let key = shared.key(&meta.location)?.to_owned();
    let stored_at = Timestamp::from_millisecond(meta.last_modified.timestamp_millis()).ok();
    Some(Listed { key, size: meta.size, stored_at })
}
