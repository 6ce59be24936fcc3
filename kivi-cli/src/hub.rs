//! Models of the Hugging Face hub: what a checkpoint needs of a repository, fetched into the cache that
//! `huggingface_hub` has too, so that neither downloads what the other has.
//!
//! The crate hf-hub is not used: 0.5 gives a download its name without checking its size, appends a whole answer to a part of a file,
//! and takes ETags and commits for path components as they come; 1.0 needs an asynchronous runtime.

mod cache;
mod client;
mod download;
mod files;
mod settings;

use std::path::PathBuf;

use anyhow::{Result, bail};
use serde::Deserialize;

use crate::hub_name::{HubName, is_plain};
use cache::RepoCache;
use client::Client;
use download::Download;
pub use settings::is_offline;
use settings::{Place, Remote};

/// The largest list of files, or index of shards, that is read.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// A repository at a revision.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The repository.
    pub name: HubName,
    /// Branch, tag or commit.
    pub revision: String,
}

/// What the hub says about a repository.
#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

/// The directory of a model's files; downloads what is missing unless `offline`. `progress` shows bars.
pub fn fetch(wanted: &Wanted, offline: bool, progress: bool) -> Result<PathBuf> {
    let place = Place::from_env()?;
    let cache = RepoCache::new(&place.cache, &wanted.name);
    if offline { offline_snapshot(wanted, &cache) } else { online_snapshot(wanted, &cache, &place, progress) }
}

/// What is in the cache, if it is all there.
fn offline_snapshot(wanted: &Wanted, cache: &RepoCache) -> Result<PathBuf> {
    let Wanted { name, revision } = wanted;
    let todo = "run once without --offline (and HF_HUB_OFFLINE), or give a directory";
    let Some(commit) = cache.commit(revision) else {
        bail!("{name}: revision {revision} is not in the cache {}; {todo}", cache.shown());
    };
    if let Some(file) = files::first_missing(&cache.snapshot(&commit))? {
        bail!("{name}: {file} of revision {revision} is not in the cache {}; {todo}", cache.shown());
    }
    Ok(cache.snapshot(&commit))
}

fn online_snapshot(wanted: &Wanted, cache: &RepoCache, place: &Place, progress: bool) -> Result<PathBuf> {
    let client = Client::new(Remote::from_env(place)?, wanted.clone());
    let (commit, names) = listing(&client, wanted)?;
    let snapshot = cache.snapshot(&commit);
    let download = Download { client: &client, cache, commit: &commit, progress };
    for file in files::small(&names, wanted)? {
        download.file(&file)?;
    }
    for file in files::weights(&names, wanted, &snapshot)? {
        download.file(&file)?;
    }
    cache.set_commit(&wanted.revision, &commit)?;
    Ok(snapshot)
}

/// The commit that a revision is, and the names of its files.
fn listing(client: &Client, wanted: &Wanted) -> Result<(String, Vec<String>)> {
    let text = client.text(&client.listing_url(), MAX_LIST_BYTES)?;
    let Ok(Listing { sha, siblings }) = serde_json::from_slice::<Listing>(&text) else {
        bail!(
            "{}: {} answered something that is no list of files; is HF_ENDPOINT right?",
            wanted.name,
            client.host()
        );
    };
    if !is_plain(&sha) {
        bail!(
            "{}: {} answered with a commit that is none; is HF_ENDPOINT right?",
            wanted.name,
            client.host()
        );
    }
    Ok((sha, siblings.into_iter().map(|file| file.rfilename).collect()))
}
