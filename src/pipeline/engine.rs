//! The loaded model on a place: what a second edit can use of the first.
//!
//! An engine keeps programs by the shape of the edit, the least recently used first to go, and with them all that is made
//! once: plans, launches, captured steps. On a GPU it keeps compiled kernels, page-locked buffers and the weights as well. A
//! second edit of the same shape plans, compiles and captures nothing, and uploads nothing if all weights fit at once. If they do
//! not, some stream ([`crate::plan`]), and do so as long as the engine lives; the host keeps those in page-locked memory.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;

use super::memory;
use super::run::{Ran, run_program};
use super::{EditParameters, Encoded, Material, Model, Place, Program, Progress, Silent};
use crate::cuda::{OutOfMemory, cache};
use crate::exec::{self, Cuda, Executor, Gpu, Reference};
use crate::image::{self, Filter, Rgb};
use crate::model::edit::EditSpec;
use crate::plan::{Budget, CONTEXT_BYTES, KERNEL_BYTES, LINK_GB_PER_S, Plan, Policy, format_bytes};
use crate::tensor::Component;
use crate::weights::{Lora, WeightKey};

/// Device memory of a program that is kept, beside its arena: captured bodies and tables, at most. With all kernels they take
/// 19 MB at 1024x1024 on an H100.
pub const PROGRAM_BYTES: usize = 32_000_000;

/// How often a program is loaded for which there was memory when it was planned, but no more when it was taken.
const TRIES: usize = 4;
/// Where weights stream already, what the next try takes of the memory that was refused.
const LESS: f64 = 0.8;
/// The host's memory that weights which stream leave to everyone else.
const SPARED: usize = 4_000_000_000;

/// How a loaded program is run.
type Run<'r> = dyn FnMut(&mut dyn Executor, &Program, &mut dyn Progress) -> Result<Ran> + 'r;

/// The loaded model on a place.
///
/// ```no_run
/// use step1x_edit::image::{Reading, decode};
/// use step1x_edit::{EditParameters, Engine, Model, Place, PlaceChoice, Silent};
///
/// # fn main() -> anyhow::Result<()> {
/// let model = Model::open("models/Step1X-Edit".as_ref())?;
/// let mut engine = Engine::open(model, Place::open(&PlaceChoice::default())?)?;
/// let picture = decode("sofa.jpg".as_ref(), &Reading::default())?.picture;
/// let edited = engine.edit(&EditParameters::new("make the sofa a leather couch"), Some(&picture), &mut Silent)?;
/// println!("{}x{} pixels in {:.1} s", edited.picture.width, edited.picture.height, edited.seconds.total());
/// # Ok(())
/// # }
/// ```
pub struct Engine {
    /// The model.
    pub model: Model,
    /// Where it runs.
    pub place: Place,
    gpu: Option<Arc<Gpu>>,
    /// The least recently used first.
    programs: Vec<Loaded>,
    /// How weights lie now; once they stream, they go on to.
    policy: Policy,
    /// Most bytes of the GPU's memory to take, since more were not there when they were to be taken.
    most: Option<usize>,
    /// What the place allowed when this was decided: bytes of the GPU's memory, and of the host's.
    allowed: [Option<usize>; 2],
    /// Whether it was told that the host has too little memory for weights that stream.
    told: bool,
    /// Programs planned so far.
    planned: usize,
    /// Most programs to keep.
    most_programs: usize,
    /// What the first edit says: that the cache is not used, and why.
    note: Option<String>,
}

/// A program with its memory.
pub struct Loaded {
    /// What was planned.
    pub program: Program,
    /// What runs it.
    pub exec: Box<dyn Executor>,
    purpose: Purpose,
    /// When its plan was made.
    planned: Instant,
}

/// What a program is kept ready for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// Whole edits.
    Edit,
    /// Whole edits with so many pictures on the way.
    Preview(usize),
    /// Measurements: every stage can run again at any time.
    Measure,
}

/// A finished edit.
pub struct Edited {
    /// The picture at the working size.
    pub picture: Rgb,
    /// What took how long.
    pub seconds: Seconds,
    /// The plan that it was made by.
    pub plan: Arc<Plan>,
    /// Bytes of the GPU's memory in use at the end, by everyone; none on the CPU.
    pub device_bytes: Option<usize>,
}

impl Edited {
    /// The picture at an original's size.
    pub fn at(&self, original: &Rgb) -> Rgb {
        image::resize(&self.picture, original.width, original.height, Filter::Bicubic)
    }
}

/// What an engine has made so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Programs recorded and planned.
    pub programs: usize,
    /// What was made on the GPU.
    pub on_device: exec::Made,
}

/// Seconds of an edit's parts.
#[derive(Clone, Debug, Default)]
pub struct Seconds {
    /// Until the program was planned.
    pub plan: f64,
    /// Until its memory was taken, its launches were made and its inputs were written.
    pub prepare: f64,
    /// Each stage, in order.
    pub stages: Vec<(&'static str, f64)>,
    /// From the first stage's start to the first step's.
    pub until_step: f64,
}

impl Seconds {
    /// All of the edit.
    pub fn total(&self) -> f64 {
        self.plan + self.prepare + self.stages.iter().map(|(_, seconds)| seconds).sum::<f64>()
    }
}

impl Engine {
    /// The model on a place. Its weights are read when an edit needs them.
    ///
    /// # Errors
    /// A [`crate::error::ResourceError`]: a library that does not start.
    pub fn open(model: Model, place: Place) -> Result<Engine> {
        let source = model.folder.clone();
        let gpu = place.device().map(|device| Gpu::open(device, &place.setup, source)).transpose()?;
        let note = place.setup.cache.as_deref().filter(|_| gpu.is_some()).and_then(cache::refusal);
        let allowed = [place.max_vram, place.max_ram];
        let (programs, policy) = (vec![], Policy::Resident);
        Ok(Engine {
            model,
            place,
            gpu,
            programs,
            policy,
            most: None,
            allowed,
            told: false,
            planned: 0,
            most_programs: usize::MAX,
            note,
        })
    }

    /// Keeps at most so many programs from now on, whatever memory there is for more: for those who make edits of ever new shapes.
    pub fn keep_at_most(&mut self, programs: usize) {
        self.most_programs = programs.max(1);
    }

    /// Gives up all that it keeps, and gives back what it was opened with.
    pub fn close(self) -> (Model, Place) {
        (self.model, self.place)
    }

    /// Edits a picture, or makes one from the prompt alone.
    ///
    /// # Errors
    /// A picture or a prompt that the model cannot take, too little memory, what `progress` returns, or a fault of
    /// arithmetic or device. The engine can be used again after any of them but the device's.
    pub fn edit(&mut self, edit: &EditParameters, picture: Option<&Rgb>, progress: &mut dyn Progress) -> Result<Edited> {
        let material = Material::new(edit, &self.model, picture, progress)?;
        self.make(&material, progress)
    }

    /// Makes an edit of material that is ready.
    ///
    /// # Errors
    /// As for [`Engine::edit`].
    pub fn make(&mut self, material: &Material, progress: &mut dyn Progress) -> Result<Edited> {
        self.make_by(material, progress, &mut |exec, program, progress| run_program(exec, program, progress, &mut |_, _| Ok(())))
    }

    /// Makes an edit of material whose picture and prompts, and all else but the seed, are those of earlier ones: what the encoders
    /// made of these is `encoded`, and is there afterwards. The bytes are those that [`Engine::make`] makes.
    ///
    /// # Errors
    /// As for [`Engine::edit`].
    pub fn make_again(&mut self, material: &Material, encoded: &mut Encoded, progress: &mut dyn Progress) -> Result<Edited> {
        self.make_by(material, progress, &mut |exec, program, progress| encoded.run(exec, program, progress))
    }

    fn make_by(&mut self, material: &Material, progress: &mut dyn Progress, run: &mut Run) -> Result<Edited> {
        let begun = Instant::now();
        let purpose = if material.previews() == 0 { Purpose::Edit } else { Purpose::Preview(material.previews()) };
        self.note.take().iter().for_each(|note| progress.notice(note));
        let at = self.load(material.spec(), purpose, progress)?;
        let plan = self.programs[at].planned.saturating_duration_since(begun).as_secs_f64();
        let Loaded { program, exec, .. } = self.fill(at, material)?;
        let prepare = begun.elapsed().as_secs_f64() - plan;
        let Ran { pixels, seconds: stages, until_step } = run(&mut **exec, program, progress)?;
        let edited = Edited {
            picture: Rgb { width: material.size.0, height: material.size.1, data: pixels },
            seconds: Seconds { plan, prepare, stages, until_step },
            plan: program.plan.clone(),
            device_bytes: self.place.device_bytes_in_use(),
        };
        if let Some(why) = self.gpu.as_ref().and_then(|gpu| gpu.store_refused()) {
            progress.notice(&format!(
                "the host cannot keep all weights ready that stream, so some are read anew each time, at less than half the speed, \
                 with the same result: {why}"
            ));
        }
        Ok(edited)
    }

    /// The program that makes an edit of this material, loaded, its inputs written: for those who run it themselves.
    ///
    /// # Errors
    /// What the planner refuses, or too little memory.
    pub fn ready(&mut self, material: &Material, purpose: Purpose) -> Result<&mut Loaded> {
        let at = self.load(material.spec(), purpose, &mut Silent)?;
        self.fill(at, material)
    }

    /// What has been made so far: a second edit of the same shape makes nothing.
    pub fn made(&self) -> Made {
        let on_device = self.gpu.as_ref().map_or_else(exec::Made::default, |gpu| gpu.made());
        Made { programs: self.planned, on_device }
    }

    /// Merges LoRA files into the model, in place of those that are merged now. Programs stay; on a GPU the next edit brings only
    /// the weights that have other values than before. Gives the number of these weights.
    ///
    /// # Errors
    /// A [`crate::weights::ModelError`]: a file that is not for this model; then nothing has changed.
    pub fn adapt(&mut self, loras: Vec<Arc<Lora>>) -> Result<usize> {
        let gpu = self.gpu.clone();
        let gone = |key: &WeightKey, names: &BTreeSet<String>| {
            let bias = key.bias().is_some_and(|bias| names.contains(&bias));
            key.component == Component::Dit && (names.contains(&*key.name) || bias)
        };
        let differing = self.model.folder.adapt(loras, &mut |names| match &gpu {
            Some(gpu) => gpu.forget_those(&|key| gone(key, names)),
            None => Ok(()),
        })?;
        Ok(differing.len())
    }

    /// GB/s of copies from page-locked memory to the GPU, as measured once; what is usual where there is none.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn link_gb_per_s(&self) -> Result<f64> {
        self.gpu.as_ref().map_or(Ok(LINK_GB_PER_S), |gpu| gpu.link_gb_per_s())
    }

    /// The bytes of a weight that lies on the GPU after an edit, as they lie there; none if it does not.
    ///
    /// # Errors
    /// What the driver reports.
    pub fn resident_bytes(&self, key: &WeightKey) -> Result<Option<Vec<u8>>> {
        self.gpu.as_ref().map_or(Ok(None), |gpu| gpu.resident_bytes(key))
    }

    /// Bytes of weights in page-locked memory of the host.
    pub fn stored_bytes(&self) -> usize {
        self.gpu.as_ref().map_or(0, |gpu| gpu.stored_bytes())
    }

    /// How many programs are kept.
    pub fn kept(&self) -> usize {
        self.programs.len()
    }

    /// The number of a program of this shape, the most recently used from now on.
    fn load(&mut self, spec: &EditSpec, purpose: Purpose, progress: &mut dyn Progress) -> Result<usize> {
        if let Some(gpu) = &self.gpu {
            gpu.settle(&mut || progress.node())?;
        }
        self.follow_the_place();
        if let Some(at) = self.known(spec, purpose) {
            return Ok(self.touch(at));
        }
        let program = self.plan(spec, purpose)?;
        match self.gpu.clone() {
            Some(gpu) => self.load_onto(&gpu, program, purpose, progress),
            None => self.load_here(program, purpose),
        }
    }

    fn fill(&mut self, at: usize, material: &Material) -> Result<&mut Loaded> {
        let loaded = &mut self.programs[at];
        material.write_inputs(&loaded.program, &mut *loaded.exec)?;
        Ok(loaded)
    }

    /// Forgets what was decided by limits that are no longer the place's.
    fn follow_the_place(&mut self) {
        let allowed = [self.place.max_vram, self.place.max_ram];
        let Some(gpu) = self.gpu.as_ref().filter(|_| allowed != self.allowed) else { return };
        self.programs.clear();
        gpu.forget_weights();
        (self.policy, self.allowed, self.told) = (Policy::Resident, allowed, false);
        if self.place.max_ram.is_some_and(|most| gpu.stored_bytes() > most) {
            gpu.forget_store();
        }
    }

    fn known(&self, spec: &EditSpec, purpose: Purpose) -> Option<usize> {
        let precision = self.place.precision;
        let is = |loaded: &Loaded| loaded.purpose == purpose && loaded.program.spec == *spec;
        self.programs.iter().position(|loaded| is(loaded) && loaded.program.plan.precision == precision)
    }

    /// Makes a program the most recently used; gives its new number.
    fn touch(&mut self, at: usize) -> usize {
        let loaded = self.programs.remove(at);
        self.programs.push(loaded);
        self.programs.len() - 1
    }

    /// Records and plans a program.
    fn plan(&mut self, spec: &EditSpec, purpose: Purpose) -> Result<Program> {
        self.planned += 1;
        let program = Program::new(&self.model.config, spec.clone(), self.place.precision, self.place.target())?;
        match purpose {
            Purpose::Edit => Ok(program),
            Purpose::Preview(count) => program.with_previews(count),
            Purpose::Measure => program.repeatable(),
        }
    }

    /// Loads a program onto the CPU.
    fn load_here(&mut self, program: Program, purpose: Purpose) -> Result<usize> {
        let planned = Instant::now();
        let kept = self.programs.iter().map(|loaded| loaded.program.plan.arena_bytes).collect();
        let gone = memory::check(&program.plan, kept)?;
        self.programs.drain(..gone);
        let exec = Box::new(Reference::new(program.plan.clone(), self.model.folder.clone())?);
        Ok(self.keep(Loaded { program, exec, purpose, planned }))
    }

    /// Loads a program onto the GPU, with weights resident if there is room. Between the look at what is free and the taking another
    /// program may take it: then it is tried again, with less.
    fn load_onto(
        &mut self,
        gpu: &Arc<Gpu>,
        mut program: Program,
        purpose: Purpose,
        progress: &mut dyn Progress,
    ) -> Result<usize> {
        for left in (0..TRIES).rev() {
            program = self.fit(program, gpu, purpose)?;
            let planned = Instant::now();
            self.host_memory(gpu, &program.plan, progress);
            let error = match Cuda::load(gpu, program.plan.clone()) {
                Ok(exec) => return Ok(self.keep(Loaded { program, exec: Box::new(exec), purpose, planned })),
                Err(error) if OutOfMemory::is_in(&error) => error,
                Err(error) => return Err(error),
            };
            self.programs.clear();
            gpu.forget_weights();
            let (own, peak) = (program.plan.device_bytes(), program.plan.peak_bytes());
            let less = if program.plan.weights.keeps_all() { own - 1 } else { (LESS * own as f64) as usize };
            self.most = Some(peak - own + less.max(program.plan.least_bytes()));
            self.policy = Policy::Resident;
            if left == 0 {
                return Err(self.fit(program, gpu, purpose).err().unwrap_or(error));
            }
            let free = format_bytes(gpu.device.memory()?.0);
            progress.notice(&format!(
                "another program has taken memory of the GPU meanwhile, {free} are free now; more weights stream: slower, with the \
                 same result"
            ));
        }
        unreachable!("the last try returns")
    }

    /// Says how much of the host's memory weights may take that stream, and once what it costs if that is too little for a step's.
    fn host_memory(&mut self, gpu: &Gpu, plan: &Plan, progress: &mut dyn Progress) {
        if plan.weights.keeps_all() {
            return gpu.forget_store();
        }
        let free = memory::free_bytes().map_or(usize::MAX, |free| (free + gpu.stored_bytes()).saturating_sub(SPARED));
        let most = self.place.max_ram.map_or(free, |most| most.min(free));
        gpu.limit_store(most);
        let again = plan.bodies.iter().zip(plan.memory()).filter(|(body, _)| body.runs > 1);
        let streamed: usize = again.map(|(_, memory)| memory.streamed).sum();
        if streamed > most && !std::mem::replace(&mut self.told, true) {
            progress.notice(&format!(
                "{} of weights stream in every step, but only {} of the host's memory may keep them ready; the rest is read anew each \
                 time, at less than half the speed",
                format_bytes(streamed),
                format_bytes(most)
            ));
        }
    }

    /// Plans how weights lie, so that the program fits what is free and allowed, and lets go of programs for which no room is left.
    fn fit(&mut self, program: Program, gpu: &Gpu, purpose: Purpose) -> Result<Program> {
        // Activations of programs whose weights stream lie in the region.
        let arena = |loaded: &Loaded| if loaded.program.plan.weights.keeps_all() { loaded.program.plan.arena_bytes } else { 0 };
        let context = gpu.device.context_bytes.unwrap_or(CONTEXT_BYTES);
        let reusable = gpu.region_bytes() + self.programs.iter().map(arena).sum::<usize>();
        // What is measured keeps more than an edit needs.
        let allowed = self.place.max_vram.filter(|_| purpose != Purpose::Measure);
        let free = gpu.device.memory()?.0 + reusable + context;
        let budget = Budget::of(allowed, self.most.map_or(free, |most| most.min(free)));
        let like = if let Policy::Streamed { bytes } = self.policy { Some(bytes) } else { None };
        let resident = program.plan.device_bytes() + context + KERNEL_BYTES;
        let streams = like.is_some() || !program.plan.weights.keeps_all() || resident > budget.bytes();
        let link = if streams { gpu.link_gb_per_s()? } else { LINK_GB_PER_S };
        let program = program.fit(budget, context, link, like)?;
        let plan = &program.plan;
        if plan.weights.policy != self.policy || plan.weights.bytes > gpu.region_bytes() {
            // Weights get other places, which programs have baked into their launches.
            self.programs.clear();
            gpu.forget_weights();
            self.policy = plan.weights.policy;
        }
        // The region may be larger than this plan's.
        let own = plan.peak_bytes() + gpu.region_bytes().saturating_sub(plan.weights.bytes);
        let kept = |programs: &[Loaded]| programs.iter().map(|loaded| arena(loaded) + PROGRAM_BYTES).sum::<usize>();
        while own + kept(&self.programs) > budget.bytes() && !self.programs.is_empty() {
            self.programs.remove(0);
        }
        if own > budget.bytes() {
            gpu.forget_weights();
        }
        Ok(program)
    }

    /// Keeps a program as the most recently used; gives its number.
    fn keep(&mut self, loaded: Loaded) -> usize {
        self.programs.push(loaded);
        self.programs.drain(..self.programs.len().saturating_sub(self.most_programs));
        self.programs.len() - 1
    }
}
