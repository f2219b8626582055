//! What is fetched: which files of which repositories, and whether the disk has room.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};

use super::client::Client;
use super::place::free_bytes;
use super::remote::{Remote, Repository, size};
use super::{PullJob, Source, hugging_face, modelscope};
use crate::error::{ResourceError, usage};
use crate::weights::{HubName, ModelError, TEXT_ENCODER_REPOSITORY};

/// All that is fetched.
pub(super) struct Plan {
    pub repositories: Vec<Repository>,
    /// Bytes that the cache's disk has free, where the system says so.
    pub free: Option<u64>,
}

impl Plan {
    /// Asks the hub.
    ///
    /// # Errors
    /// The hub has no such model or gives none, nobody answers, or there is no cache to fill.
    pub fn new(job: &PullJob, name: &HubName, client: &Client) -> Result<Plan> {
        if let Some(why) = name.unread().filter(|_| !job.all) {
            let fault = format!("{}: {why}; --all fetches its files all the same", name.repository);
            return Err(ModelError::new(fault).into());
        }
        let mut first = list(job, client, name.repository, name.revision)?;
        let mut repositories = Vec::new();
        if !job.all {
            let read = name.files(&first.files.iter().map(|file| file.path.as_str()).collect())?;
            keep(&mut first, &read.names);
            if read.needs_text_encoder {
                let mut text = list(job, client, TEXT_ENCODER_REPOSITORY, None)?;
                let encoder = HubName::parse(TEXT_ENCODER_REPOSITORY).ok_or_else(|| anyhow!("the text encoder has no name"))?;
                let read = encoder.files(&text.files.iter().map(|file| file.path.as_str()).collect())?;
                keep(&mut text, &read.names);
                repositories.push(text);
            }
        }
        repositories.insert(0, first);
        let free = free_bytes(&repositories[0].folder)?;
        Ok(Plan { repositories, free })
    }

    pub fn files(&self) -> impl Iterator<Item = &Remote> {
        self.repositories.iter().flat_map(|repository| &repository.files)
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files().fold(0, |sum, file| sum.saturating_add(file.bytes))
    }

    /// Bytes that are not there yet.
    pub fn lacking(&self) -> u64 {
        self.files().fold(0, |sum, file| sum.saturating_add(file.bytes - file.there))
    }

    /// # Errors
    /// A [`ResourceError`]: the disk has too little room.
    pub fn check_room(&self) -> Result<()> {
        match self.free {
            Some(free) if free < self.lacking() => {
                let folder = self.repositories[0].folder.display();
                Err(ResourceError(format!(
                    "{folder}: {} are to fetch ({} bytes), and its disk has {} free ({free} bytes); make room, or put the cache on \
                     another disk (HF_HUB_CACHE, MODELSCOPE_CACHE)",
                    size(self.lacking()),
                    self.lacking(),
                    size(free)
                ))
                .into())
            }
            _ => Ok(()),
        }
    }
}

fn list(job: &PullJob, client: &Client, id: &str, revision: Option<&str>) -> Result<Repository> {
    let no_cache = |variable| usage(anyhow!("there is no place for a cache; set {variable} or HOME"));
    let repository = match job.source {
        Source::HuggingFace => {
            let cache = job.environment.hugging_face_cache.as_deref().ok_or_else(|| no_cache("HF_HUB_CACHE"))?;
            hugging_face::list(client, &job.environment.hugging_face, cache, id, revision)
        }
        Source::ModelScope if revision.is_some() => {
            Err(usage(anyhow!("ModelScope's cache keeps one revision of a model; leave out the one behind the @")))
        }
        Source::ModelScope => {
            let cache = job.environment.modelscope_cache.as_deref().ok_or_else(|| no_cache("MODELSCOPE_CACHE"))?;
            modelscope::list(client, &job.environment.modelscope, cache, id)
        }
    }?;
    repository.check_apart()?;
    Ok(repository)
}

/// Keeps the files of these names, in their order.
fn keep(repository: &mut Repository, names: &[String]) {
    let wanted: BTreeSet<&String> = names.iter().collect();
    repository.files.retain(|file| wanted.contains(&file.path));
    repository.files.sort_by_key(|file| names.iter().position(|name| *name == file.path));
}
