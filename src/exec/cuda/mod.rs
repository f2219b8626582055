//! The CUDA executor: a plan loaded onto a GPU. Every launch is made when the plan is loaded; a run only enqueues them.
//!
//! Nodes wait for their own weights alone, so that a body starts while the rest is still on its way. A body that runs more
//! than once is captured into graphs at its second run (the first loads what libraries load late) and replayed from then
//! on: a graph for each segment, and the last nodes apart. The next replay is asked for while the last ones run: early enough to
//! leave no gap, late enough to stop soon. Between segments the stream waits for weights and tells copies what is done.

mod lanes;
mod load;
mod timing;

use std::collections::HashMap;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use self::lanes::Notes;
use self::load::{Base, check_memory, launches, prepare, tables};
use super::fetch::weight_keys;
use super::gpu::{Extras, Gpu};
use super::values::{check_count, load, load_weight, store};
use super::{Executor, Watch, unwatched};
use crate::cuda::{Captured, Event, Function, KernelLaunch, Launch, Memory, Product};
use crate::graph::{BodyId, Kind, StorageId, TensorId};
use crate::ops::{HostValues, Values};
use crate::plan::{Itinerary, Plan, Target};
use crate::weights::WeightKey;

pub use self::lanes::{Copied, Lanes, Span};
pub use self::load::products;
pub use self::timing::check_resident;

/// Of a body's nodes one in so many is among the last ones.
const LAST: usize = 8;
/// How long a program that is dropped waits for the device: longer than most steps take, less than a person notices.
const PATIENCE: Duration = Duration::from_millis(700);

/// A plan on a GPU.
pub struct Cuda {
    /// Its number among the GPU's programs.
    number: u64,
    plan: Arc<Plan>,
    /// Which weight each storage is.
    keys: Vec<Option<WeightKey>>,
    /// Bodies that have run at least once.
    warm: Vec<bool>,
    /// Whether weights have begun to come, for a run of the plan's itinerary that has not begun.
    early: bool,
    capture: bool,
    poison: bool,
    /// Comes when the last nodes of the latest replay begin.
    at_last: Option<Event>,
    /// When what is done, if anybody wants to know.
    notes: Option<Notes>,
    parts: ManuallyDrop<Parts>,
    gpu: Arc<Gpu>,
}

/// What the device works with.
struct Parts {
    /// The device work of each node.
    work: Vec<Vec<Work>>,
    /// The parts of bodies that are replayed.
    captured: HashMap<BodyId, Vec<Part>>,
    /// The region itself, where weights are streamed.
    arena: Arc<Memory>,
    region: Arc<Memory>,
    _tables: Memory,
}

/// Some nodes of a body, captured.
struct Part {
    nodes: Range<usize>,
    /// The segment that begins with them.
    begins: Option<usize>,
    /// Whether they are the first of the last ones.
    last: bool,
    graph: Captured,
}

enum Work {
    Kernel(Function, KernelLaunch),
    Product(Product),
    Zero { address: u64, bytes: usize },
}

impl Cuda {
    /// Takes memory, compiles what is not compiled yet, and makes every launch ready. Resident weights begin to come meanwhile, for a
    /// run of the plan's whole itinerary.
    ///
    /// # Errors
    /// [`OutOfMemory`](crate::cuda::OutOfMemory) if the plan needs more memory than is free (before any is taken), or if
    /// another program takes it meanwhile; a [`ResourceError`](crate::error::ResourceError) if a library is missing;
    /// a kernel that does not compile or a product that cuBLASLt cannot do, by node.
    pub fn load(gpu: &Arc<Gpu>, plan: Arc<Plan>) -> Result<Cuda> {
        ensure!(plan.target != Target::Cpu, "the plan was made for the CPU; plan again for this GPU");
        let device = &gpu.device;
        device.make_current()?;
        // All memory at once: what is free now may soon be another program's.
        check_memory(&plan, gpu)?;
        let (arena, region) = match plan.weights.keeps_all() {
            true => (Arc::new(Memory::new(device, plan.arena_bytes)?), gpu.region(plan.weights.bytes)?),
            false => gpu.region(plan.weights.bytes).map(|region| (region.clone(), region))?,
        };
        let (number, keys) = (gpu.next_program(), weight_keys(&plan.graph)?);
        let early = plan.weights.keeps_all();
        match early {
            true => gpu.feed((number, &plan), &region, &keys, &plan.itinerary, Extras::default())?,
            false => gpu.overwrite(number, 0..plan.arena_bytes)?,
        }
        let parts = Cuda::parts(gpu, &plan, arena, region).inspect_err(|_| gpu.stop_feed(number))?;
        Ok(Cuda {
            number,
            keys,
            warm: vec![false; plan.graph.bodies.len()],
            plan,
            early,
            capture: true,
            poison: false,
            at_last: None,
            notes: None,
            parts: ManuallyDrop::new(parts),
            gpu: gpu.clone(),
        })
    }

    /// What the device works with, all but the weights.
    fn parts(gpu: &Arc<Gpu>, plan: &Arc<Plan>, arena: Arc<Memory>, region: Arc<Memory>) -> Result<Parts> {
        let device = &gpu.device;
        let (tables, places) = tables(plan, device)?;
        arena.fill(0xff, 0..plan.arena_bytes, &gpu.stream)?; // all bits set is a NaN in every float type
        let modules = gpu.modules(plan)?;
        let base = |at: usize| Base { arena: arena.address, region: region.address, table: tables.address + places[at] as u64 };
        let launches: Vec<Vec<Launch>> = (0..plan.graph.nodes.len()).map(|at| launches(plan, at, base(at))).collect();
        let (mut work, mut gemms) = (Vec::new(), gpu.gemms());
        for (at, launches) in launches.into_iter().enumerate() {
            let module = modules[at].as_ref();
            let ready = launches.into_iter().map(|launch| prepare(launch, module, &mut gemms, device));
            work.push(ready.collect::<Result<Vec<_>>>().with_context(|| plan.graph.nodes[at].name.clone())?);
        }
        drop(gemms);
        gpu.count(|made| made.launches += work.iter().map(Vec::len).sum::<usize>());
        gpu.stream.synchronize()?;
        Ok(Parts { work, captured: HashMap::new(), arena, region, _tables: tables })
    }

    /// Runs repeated bodies node by node too.
    pub fn without_capture(mut self) -> Self {
        self.capture = false;
        self
    }

    /// Overwrites the place of a weight that streams with 0xff, a NaN, as soon as its last reader is done: for tests, which see then
    /// that nobody reads it later.
    pub fn with_poison(mut self) -> Self {
        self.poison = true;
        self
    }

    /// Enqueues one node, the next of its body.
    ///
    /// # Errors
    /// A weight that could not be fetched, or what the driver reports.
    pub(super) fn run_node(&mut self, at: usize) -> Result<()> {
        if let Some(segment) = self.plan.weights.segments.iter().position(|segment| segment.nodes.start == at) {
            self.enter(segment)?;
        }
        self.fetch(at, &mut unwatched)?;
        self.enqueue(at)
    }

    /// What it runs.
    pub(super) fn shared_plan(&self) -> Arc<Plan> {
        self.plan.clone()
    }

    /// Says that a segment begins.
    pub(super) fn enter(&mut self, segment: usize) -> Result<()> {
        let gpu = &self.gpu;
        gpu.device.make_current()?;
        gpu.with_feed(self.number, |feed| feed.enter(segment, &gpu.device, &gpu.stream))
    }

    /// Lets the weights of a run come; `timed`: their copies are timed, all of them.
    pub(super) fn announce(&mut self, itinerary: &Itinerary, timed: bool) -> Result<()> {
        self.notes = None;
        self.plan.itinerary.check_run(itinerary, &self.plan.graph)?;
        self.gpu.device.make_current()?;
        self.finish(&mut unwatched)?;
        let early = std::mem::take(&mut self.early) && *itinerary == self.plan.itinerary && !timed;
        if early && self.gpu.is_fed(self.number) {
            return Ok(());
        }
        self.notes = if timed { Some(Notes::new(self.mark()?)) } else { None };
        let extras = Extras { timed, poison: self.poison };
        self.gpu.feed((self.number, &self.plan), &self.parts.region, &self.keys, itinerary, extras)
    }

    /// Lets the stream wait for a node's weights.
    fn fetch(&self, at: usize, watch: &mut Watch) -> Result<()> {
        let graph = &self.plan.graph;
        let mut weights = graph.nodes[at].inputs.iter().map(|&id| graph.tensor(id).storage).filter(|s| self.keys[s.0].is_some());
        let stream = &self.gpu.stream;
        self.gpu.with_feed(self.number, |feed| weights.try_for_each(|s| feed.wait_for(s, stream, &mut || watch(None, self))))
    }

    fn enqueue(&self, at: usize) -> Result<()> {
        for work in &self.parts.work[at] {
            // SAFETY: launches were made for addresses within arena, region and tables, which live as long as self; the
            // plan keeps storages that are live together apart, and one stream runs everything in order.
            unsafe {
                match work {
                    Work::Kernel(function, launch) => self.gpu.stream.launch(function, launch),
                    Work::Product(product) => self.gpu.gemms().run(product, &self.gpu.stream),
                    Work::Zero { address, bytes } => self.gpu.stream.zero(*address, *bytes),
                }
            }
            .with_context(|| self.plan.graph.nodes[at].name.clone())?;
        }
        Ok(())
    }

    /// Runs a body node by node.
    fn run_nodes(&mut self, body: BodyId, watch: &mut Watch) -> Result<()> {
        let plan = self.plan.clone();
        for segment in plan.weights.segments_of(body) {
            self.enter(segment)?;
            for at in plan.weights.segments[segment].nodes.clone() {
                let waits = self.note()?;
                self.fetch(at, watch)?;
                let begins = self.note()?;
                self.enqueue(at)?;
                self.note_end(at..at + 1, waits, begins)?;
                watch(Some(&plan.graph.nodes[at]), self)?;
            }
        }
        self.warm[body.0] = true;
        Ok(())
    }

    /// Replays a body, capturing it first if need be, once the replay before it has come to its last nodes.
    fn replay(&mut self, body: BodyId, watch: &mut Watch) -> Result<()> {
        if !self.parts.captured.contains_key(&body) {
            let captured = self.capture(body)?;
            self.parts.captured.insert(body, captured);
            self.gpu.count(|made| made.captures += 1);
        }
        if let Some(before) = self.at_last.take() {
            before.wait(&mut || watch(None, self))?;
        }
        let plan = self.plan.clone();
        for number in 0..self.parts.captured[&body].len() {
            let Part { begins, last, .. } = self.parts.captured[&body][number];
            let waits = self.note()?;
            if let Some(segment) = begins {
                self.enter(segment)?;
                plan.weights.segments[segment].nodes.clone().try_for_each(|at| self.fetch(at, watch))?;
            }
            if last {
                let at_last = Event::new(&self.gpu.device, false)?;
                at_last.record(&self.gpu.stream)?;
                self.at_last = Some(at_last);
            }
            let begins = self.note()?;
            let part = &self.parts.captured[&body][number];
            // SAFETY: as for `enqueue`.
            unsafe { part.graph.replay(&self.gpu.stream) }?;
            self.note_end(part.nodes.clone(), waits, begins)?;
        }
        Ok(())
    }

    /// Captures a body in parts: each begins a segment, or the last nodes.
    fn capture(&self, body: BodyId) -> Result<Vec<Part>> {
        let (device, stream, nodes) = (&self.gpu.device, &self.gpu.stream, self.plan.graph.nodes_of(body));
        let last = nodes.end - nodes.len().div_ceil(LAST);
        let mut parts = Vec::new();
        for number in self.plan.weights.segments_of(body) {
            let own = self.plan.weights.segments[number].nodes.clone();
            let cut = if own.contains(&last) { last } else { own.end };
            for nodes in [own.start..cut, cut..own.end].into_iter().filter(|nodes| !nodes.is_empty()) {
                let (begins, last) = ((nodes.start == own.start).then_some(number), nodes.start == last);
                let graph = stream.capture(device, || nodes.clone().try_for_each(|at| self.enqueue(at)))?;
                parts.push(Part { nodes, begins, last, graph });
            }
        }
        Ok(parts)
    }

    /// Where a storage of the arena lies.
    fn place(&self, storage: StorageId) -> Result<usize> {
        self.plan.offsets[storage.0].context("the storage has no place in the arena")
    }

    /// A storage's bytes, aligned for any type.
    fn download(&self, storage: StorageId) -> Result<Vec<u128>> {
        self.gpu.device.make_current()?;
        self.gpu.stream.synchronize()?;
        let bytes = self.plan.graph.storages[storage.0].spec.bytes();
        let mut words = vec![0u128; bytes.div_ceil(16)];
        self.parts.arena.read(self.place(storage)?, &mut bytemuck::cast_slice_mut(&mut words)[..bytes])?;
        Ok(words)
    }
}

impl Executor for Cuda {
    fn plan(&self) -> &Plan {
        &self.plan
    }

    fn write(&mut self, id: TensorId, values: Values) -> Result<()> {
        let tensor = self.plan.graph.tensor(id).clone();
        let storage = self.plan.graph.storage_of(id);
        check_count(&tensor, &values).with_context(|| storage.name.clone())?;
        ensure!(tensor.is_dense(), "{} has gaps between its rows; write the whole buffer", storage.name);
        let bytes = storage.spec.bytes();
        let mut words = vec![0u128; bytes.div_ceil(16)];
        store(&mut bytemuck::cast_slice_mut(&mut words)[..bytes], &tensor, values).with_context(|| storage.name.clone())?;
        let own = tensor.offset * tensor.spec.dtype.bytes()..(tensor.offset * tensor.spec.dtype.bytes() + tensor.spec.bytes());
        self.gpu.device.make_current()?;
        self.finish(&mut unwatched)?;
        let place = self.place(tensor.storage)? + own.start;
        if !self.plan.weights.keeps_all() {
            self.gpu.overwrite(self.number, place..place + own.len())?;
        }
        self.parts.arena.write(place, &bytemuck::cast_slice(&words)[own])
    }

    fn read(&self, id: TensorId) -> Result<HostValues> {
        let tensor = self.plan.graph.tensor(id);
        let storage = self.plan.graph.storage_of(id);
        if let Kind::Weight(component) = storage.kind {
            let values = load_weight(&*self.gpu.source, component, storage, tensor, self.plan.precision)?;
            return Ok(HostValues::F32(values));
        }
        let words = self.download(tensor.storage)?;
        Ok(load(&bytemuck::cast_slice(&words)[..storage.spec.bytes()], tensor)?.into_host_values())
    }

    fn begin(&mut self, itinerary: &Itinerary) -> Result<()> {
        self.announce(itinerary, false)
    }

    fn run(&mut self, body: BodyId, watch: &mut Watch) -> Result<()> {
        let plan = self.plan.clone();
        let _range = self.gpu.nvtx.range(plan.graph.bodies[body.0].name);
        self.gpu.device.make_current()?;
        // A replay needs all weights of a segment before its first node: too long where that is the whole body.
        let segments = plan.weights.segments_of(body);
        let waiting = segments.len() == 1 && self.gpu.with_feed(self.number, |feed| Ok(feed.is_waiting(segments.start)))?;
        if !(self.capture && plan.itinerary.runs_of(body) > 1 && self.warm[body.0]) || waiting {
            return self.run_nodes(body, watch);
        }
        self.replay(body, watch)?;
        plan.graph.nodes_of(body).last().map_or(Ok(()), |at| watch(Some(&plan.graph.nodes[at]), self))
    }

    fn finish(&mut self, watch: &mut Watch) -> Result<()> {
        self.at_last = None;
        self.gpu.stream.wait_idle(&mut || watch(None, self))
    }

    fn waits(&self) -> bool {
        false
    }

    fn as_cuda(&mut self) -> Option<&mut Cuda> {
        Some(self)
    }
}

impl Drop for Cuda {
    /// What the device works with goes when the device has done with it. If that takes long (a device that hangs never has), a
    /// thread waits for it, and not whoever stopped the run.
    fn drop(&mut self) {
        // SAFETY: nobody asks for the parts after this.
        let parts = unsafe { ManuallyDrop::take(&mut self.parts) };
        let (gpu, number) = (self.gpu.clone(), self.number);
        let _ = gpu.device.make_current();
        gpu.stop_feed(number);
        let Ok(done) = Event::new(&gpu.device, false).and_then(|event| event.record(&gpu.stream).map(|()| event)) else { return };
        let busy = move || matches!(done.has_come(), Ok(false)); // a device that is broken does nothing any more
        let begun = Instant::now();
        while busy() {
            if begun.elapsed() > PATIENCE {
                let wait = move || {
                    let _ = gpu.device.make_current();
                    while busy() {
                        std::thread::sleep(PATIENCE / 10);
                    }
                    drop(parts);
                };
                // Without a thread they go at once, and the driver waits.
                let _ = std::thread::Builder::new().name("device".into()).spawn(wait);
                return;
            }
            std::thread::sleep(PATIENCE / 1000);
        }
    }
}
