//! What of a GPU outlives a program: compiled modules, cuBLASLt with its choices, page-locked buffers, one stream, and the
//! weights with the region that they lie in. Programs are loaded onto it ([`super::Cuda::load`]) and run one at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::{Result, ensure};
use rayon::prelude::*;

use super::fetch::{Feed, Slots, Wanted};
use super::merge::Merger;
use crate::cuda::{Compiler, Cubin, Device, Gemms, KeepOn, Memory, Module, Nvtx, Setup, Staging, Store, Stream, copies_gb_per_s};
use crate::error::ResourceError;
use crate::graph::StorageId;
use crate::plan::{Itinerary, LINK_GB_PER_S, Plan};
use crate::weights::{WeightKey, WeightSource};

/// Rates of links that are believed, in GB/s.
const LIKELY: Range<f64> = 1.0..1000.0;

/// A GPU with what programs share.
pub struct Gpu {
    setup: Setup,
    modules: Mutex<HashMap<String, Arc<Module>>>,
    gemms: Mutex<Gemms>,
    weights: Mutex<DeviceWeights>,
    host: Mutex<HostWeights>,
    staging: Arc<Staging>,
    merger: Arc<Merger>,
    link: OnceLock<f64>,
    made: Mutex<Made>,
    programs: AtomicU64,
    pub(super) source: Arc<dyn WeightSource + Send + Sync>,
    pub(super) nvtx: Nvtx,
    pub(super) stream: Stream,
    /// The device itself.
    pub device: Arc<Device>,
}

/// What has been made so far; what a program finds there already is not made again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Modules compiled or read from the cache, and loaded.
    pub modules: usize,
    /// Launches made ready.
    pub launches: usize,
    /// Bodies captured.
    pub captures: usize,
    /// Bytes of weights sent.
    pub uploaded_bytes: u64,
    /// Bytes of weights that the device merged with LoRA files.
    pub merged_bytes: u64,
}

/// What a run does beside computing.
#[derive(Clone, Copy, Default)]
pub(super) struct Extras {
    /// Copies are timed, all of them.
    pub(super) timed: bool,
    /// As of [`Cuda::with_poison`](super::Cuda::with_poison).
    pub(super) poison: bool,
}

/// The weights' region and which of them are whole in it.
#[derive(Default)]
struct DeviceWeights {
    region: Option<Arc<Memory>>,
    /// Where in the region each lies.
    there: HashMap<WeightKey, Range<usize>>,
    /// The upload that feeds the latest run.
    feed: Option<Feed>,
}

/// Weights in the host's store: those that streamed more than once.
struct HostWeights {
    store: Store,
    slots: HashMap<WeightKey, Slots>,
    /// Weights that are stored whole, of which the system was told that nobody reads their files any more.
    given_back: HashSet<WeightKey>,
    /// Most bytes that it may take.
    most: usize,
    /// Runs that streamed.
    runs: usize,
}

impl HostWeights {
    fn new(device: &Arc<Device>) -> HostWeights {
        HostWeights { store: Store::new(device), slots: HashMap::new(), given_back: HashSet::new(), most: usize::MAX, runs: 0 }
    }

    /// Gives back the memory in which the system keeps the files of what is stored, so that the host does not hold both. Not before
    /// the third run: a process that makes one edit leaves it for the next one.
    fn give_back(&mut self, source: &dyn WeightSource) {
        if self.runs < 2 {
            return;
        }
        for (key, slots) in &self.slots {
            if !self.given_back.contains(key) && slots.iter().all(|slot| slot.filled().is_some()) {
                source.give_back(key.component, &key.name);
                self.given_back.insert(key.clone());
            }
        }
    }

    /// The places of weights that come in a run: of those that stream again and again, in this run or over runs, as many as there
    /// may be.
    fn slots_of(&mut self, wanted: &[Wanted]) -> Vec<Option<Slots>> {
        self.runs += usize::from(wanted.iter().any(|weight| weight.streams));
        let mut free = self.store.room(self.most);
        let (mut new, mut sizes) = (Vec::new(), Vec::new());
        for weight in wanted.iter().filter(|weight| weight.streams && (weight.times > 1 || self.runs > 1)) {
            let pieces = weight.pieces();
            let bytes: usize = pieces.iter().sum();
            if !self.slots.contains_key(&weight.key) && bytes <= free {
                free -= bytes;
                new.push((weight.key.clone(), pieces.len()));
                sizes.extend(pieces);
            }
        }
        let mut slots = self.store.slots(&sizes).into_iter();
        for (key, pieces) in new {
            self.slots.insert(key, slots.by_ref().take(pieces).collect());
        }
        wanted.iter().map(|weight| self.slots.get(&weight.key).cloned()).collect()
    }
}

impl Gpu {
    /// Opens cuBLASLt on a device; nothing is taken yet.
    ///
    /// # Errors
    /// A [`crate::error::ResourceError`]: a library that is not found or does not start.
    pub fn open(device: &Arc<Device>, setup: &Setup, source: Arc<dyn WeightSource + Send + Sync>) -> Result<Arc<Gpu>> {
        device.make_current()?;
        Ok(Arc::new(Gpu {
            setup: setup.clone(),
            modules: Mutex::default(),
            gemms: Mutex::new(Gemms::new(device, setup)?),
            weights: Mutex::default(),
            host: Mutex::new(HostWeights::new(device)),
            made: Mutex::default(),
            programs: AtomicU64::new(0),
            staging: Staging::new(device),
            merger: Merger::new(device, setup),
            link: OnceLock::new(),
            source,
            nvtx: Nvtx::attach(setup.profiler.as_deref()),
            stream: Stream::new(device)?,
            device: device.clone(),
        }))
    }

    /// A number for a program that is loaded.
    pub(super) fn next_program(&self) -> u64 {
        self.programs.fetch_add(1, Ordering::Relaxed)
    }

    /// What has been made so far.
    pub fn made(&self) -> Made {
        Made { merged_bytes: self.merger.bytes(), ..*self.made.lock().unwrap_or_else(PoisonError::into_inner) }
    }

    pub(super) fn count(&self, more: impl FnOnce(&mut Made)) {
        more(&mut self.made.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn gemms(&self) -> MutexGuard<'_, Gemms> {
        self.gemms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn weights(&self) -> MutexGuard<'_, DeviceWeights> {
        self.weights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The module of each node's kernel; none for products. What no earlier program needed is compiled, side by side.
    pub(super) fn modules(&self, plan: &Plan) -> Result<Vec<Option<Arc<Module>>>> {
        let mut modules = self.modules.lock().unwrap_or_else(PoisonError::into_inner);
        let compiled = plan.kernels.iter().filter_map(|k| Some((k.to_string(), k.compiled()?)));
        let missing: BTreeMap<String, _> = compiled.filter(|(name, _)| !modules.contains_key(name)).collect();
        if !missing.is_empty() {
            let compiler = Compiler::new(self.device.capability, &self.setup)?;
            let cubins: Vec<(String, Cubin)> = missing
                .into_par_iter()
                .map(|(name, (source, defines))| Ok((name, compiler.compile(source, defines)?)))
                .collect::<Result<_>>()?;
            for (name, cubin) in cubins {
                modules.insert(name, Module::load(&self.device, &cubin.image)?);
                self.count(|made| made.modules += 1);
            }
        }
        Ok(plan.kernels.iter().map(|k| modules.get(&k.to_string()).cloned()).collect())
    }

    /// The weights' region, of at least so many bytes. A larger one than there is takes its place: what lay there is gone,
    /// and programs that were loaded before no longer run.
    pub(super) fn region(&self, bytes: usize) -> Result<Arc<Memory>> {
        let mut weights = self.weights();
        match &weights.region {
            Some(region) if region.bytes >= bytes => Ok(region.clone()),
            _ => {
                *weights = DeviceWeights::default(); // before another is taken
                let region = Arc::new(Memory::new(&self.device, bytes)?);
                Ok(weights.region.insert(region).clone())
            }
        }
    }

    /// The bytes of a weight that lies on the device after a run; none if it does not.
    ///
    /// # Errors
    /// What the driver reports, or the upload that brought it.
    pub fn resident_bytes(&self, key: &WeightKey) -> Result<Option<Vec<u8>>> {
        self.device.make_current()?;
        self.stream.synchronize()?;
        let mut weights = self.weights();
        weights.settle()?;
        let (Some(region), Some(place)) = (&weights.region, weights.there.get(key)) else { return Ok(None) };
        let mut bytes = vec![0; place.len()];
        region.read(place.start, &mut bytes)?;
        Ok(Some(bytes))
    }

    /// Bytes of the weights' region.
    pub fn region_bytes(&self) -> usize {
        self.weights().region.as_ref().map_or(0, |region| region.bytes)
    }

    /// Bytes that giving up the region would free: none while a program holds it.
    pub(super) fn free_region_bytes(&self) -> usize {
        self.weights().region.as_ref().filter(|region| Arc::strong_count(region) == 1).map_or(0, |region| region.bytes)
    }

    /// Gives up the weights' region with what lies in it. Programs that were loaded before no longer run.
    pub fn forget_weights(&self) {
        *self.weights() = DeviceWeights::default();
    }

    /// Ends what an earlier run has left of its upload, and has these weights come again when a run needs them. Programs stay.
    ///
    /// # Errors
    /// What the upload reports.
    pub fn forget_those(&self, gone: &dyn Fn(&WeightKey) -> bool) -> Result<()> {
        let mut weights = self.weights();
        weights.settle()?;
        weights.there.retain(|key, _| !gone(key));
        let mut host = self.host();
        host.given_back.retain(|key| !gone(key));
        host.slots.iter().filter(|(key, _)| gone(key)).for_each(|(_, slots)| slots.iter().for_each(|slot| slot.forget()));
        Ok(())
    }

    /// Says that a program is about to write to these bytes of the region: weights that lay there are gone. A run of the program
    /// that is under way goes on if they are its activations' now; no other run does, since its upload may write there too.
    ///
    /// # Errors
    /// What an upload that is ended reports.
    pub(super) fn overwrite(&self, program: u64, bytes: Range<usize>) -> Result<()> {
        let mut weights = self.weights();
        let goes_on = |feed: &Feed| feed.program == program && !feed.is_done() && bytes.end <= feed.activations();
        if !weights.feed.as_ref().is_some_and(goes_on) {
            weights.settle()?;
        }
        weights.there.retain(|_, place| place.end <= bytes.start || bytes.end <= place.start);
        Ok(())
    }

    /// GB/s of copies from page-locked memory, measured once.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn link_gb_per_s(&self) -> Result<f64> {
        match self.link.get() {
            Some(known) => Ok(*known),
            None => {
                let measured = copies_gb_per_s(&self.device, &self.staging)?;
                Ok(*self.link.get_or_init(|| measured.filter(|rate| LIKELY.contains(rate)).unwrap_or(LINK_GB_PER_S)))
            }
        }
    }

    /// Gives up all weights in page-locked memory of the host; what still copies from there keeps its part until it is done.
    pub fn forget_store(&self) {
        *self.host() = HostWeights::new(&self.device);
    }

    /// Bytes of weights that are, or are about to be, in page-locked memory of the host.
    pub fn stored_bytes(&self) -> usize {
        self.host().store.bytes()
    }

    /// No more than so many bytes of weights are kept in page-locked memory of the host.
    pub fn limit_store(&self, most: usize) {
        self.host().most = most;
    }

    /// Why the system has not locked memory for weights that stream; told once.
    pub fn store_refused(&self) -> Option<String> {
        self.host().store.refused()
    }

    fn host(&self) -> MutexGuard<'_, HostWeights> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts to bring what a run lacks. `keys`: which weight each storage of the plan is.
    pub(super) fn feed(
        &self,
        (program, plan): (u64, &Arc<Plan>),
        region: &Arc<Memory>,
        keys: &[Option<WeightKey>],
        itinerary: &Itinerary,
        Extras { timed, poison }: Extras,
    ) -> Result<()> {
        let mut weights = self.weights();
        let current = weights.region.as_ref().is_some_and(|current| Arc::ptr_eq(current, region));
        ensure!(current, "the weights of this program have been given up; load it again");
        weights.settle()?;
        // What stays in place is there for this program too.
        let place = |i: usize| plan.weights.place(StorageId(i));
        let there =
            |(i, key): (usize, &Option<WeightKey>)| key.as_ref().is_some_and(|key| weights.there.get(key).cloned() == place(i));
        let mut resident: Vec<bool> = keys.iter().enumerate().map(there).collect();
        weights.there.clear(); // until the upload has ended well
        let mut before = resident.clone();
        let mut store = |wanted: &[Wanted]| {
            let mut host = self.host();
            host.give_back(&*self.source);
            host.slots_of(wanted)
        };
        let (visits, by) = (itinerary.visits(), (&self.staging, &self.merger));
        let mut feed = Feed::start((program, plan), keys, &visits, &mut resident, by, region, &self.source, &mut store)?;
        if poison {
            let spent = plan.weights.spent(&plan.weights.visits(&visits), &mut before);
            feed.spent = spent.iter().map(|weights| weights.iter().filter_map(|w| plan.weights.place(*w)).collect()).collect();
        }
        self.count(|made| made.uploaded_bytes += feed.bytes);
        let left = keys.iter().enumerate().filter(|(i, _)| resident[*i]);
        feed.leaves = left.filter_map(|(i, key)| Some((key.clone()?, place(i)?))).collect();
        if timed {
            feed.time_copies();
        }
        // What needs no visit to end needs what the stream was asked for so far.
        feed.open_first(&self.device, &self.stream)?;
        weights.feed = Some(feed);
        Ok(())
    }

    /// Whether weights come for a program's run.
    pub(super) fn is_fed(&self, program: u64) -> bool {
        self.weights().feed.as_ref().is_some_and(|feed| feed.program == program)
    }

    /// Lets the upload that feeds a program's run do something.
    pub(super) fn with_feed<T>(&self, program: u64, work: impl FnOnce(&mut Feed) -> Result<T>) -> Result<T> {
        let mut weights = self.weights();
        match &mut weights.feed {
            Some(feed) if feed.program == program => work(feed),
            _ => anyhow::bail!("nothing was announced to run; begin with an itinerary"),
        }
    }

    /// Stops the upload that feeds a program's run, if there is one: its threads end, and no copy begins any more.
    pub(super) fn stop_feed(&self, program: u64) {
        let mut weights = self.weights();
        if let Some(feed) = weights.feed.as_mut().filter(|feed| feed.program == program) {
            feed.stop();
        }
    }

    /// Waits for what an earlier run has left under way, or `keep_on` no more.
    ///
    /// # Errors
    /// A [`ResourceError`] if the device has failed in an earlier run: nothing runs on it in this process any more; or what
    /// `keep_on` returns.
    pub fn settle(&self, keep_on: &mut KeepOn) -> Result<()> {
        let healthy = self.device.make_current().and_then(|()| self.stream.is_idle());
        healthy.map_err(|e| {
            ResourceError(format!(
                "the GPU has failed in an earlier edit, and this process cannot use it any more; start the program again ({e:#})"
            ))
        })?;
        self.stream.wait_idle(keep_on)
    }
}

impl DeviceWeights {
    /// Ends the upload. Weights count as there if all of it was waited for; of one that was cut off nobody knows.
    fn settle(&mut self) -> Result<()> {
        if let Some(feed) = self.feed.take() {
            self.there = feed.end()?.into_iter().collect();
        }
        Ok(())
    }
}
