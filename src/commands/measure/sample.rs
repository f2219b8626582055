//! The edit that is measured: a made-up picture of any size, a real prompt, a fixed seed.

use anyhow::Result;

use crate::error::usage;
use crate::exec::Executor;
use crate::image::Rgb;
use crate::model::edit::{NoiseSource, Savings};
use crate::ops::H100_GRID_THREADS;
use crate::pipeline::{Engine, HostInputs, Model, Program, Request};
use crate::plan::{Plan, Precision};
use crate::prompt::{self, Patches};

const SEED: u64 = 42;

/// An edit of a made-up picture.
pub(super) struct Sample<'a> {
    pub(super) model: &'a Model,
    engine: &'a Engine,
    precision: Precision,
    picture: Rgb,
    patches: Patches,
    prompt: &'a str,
    steps: usize,
    max_vram: Option<usize>,
}

impl<'a> Sample<'a> {
    /// # Errors
    /// A usage error for sides or a prompt that do not fit.
    pub(super) fn new(
        model: &'a Model,
        engine: &'a Engine,
        precision: Precision,
        (width, height): (usize, usize),
        prompt: &'a str,
        steps: usize,
        max_vram: Option<usize>,
    ) -> Result<Sample<'a>> {
        let fits = |side: usize| side.is_multiple_of(16) && (16..=4096).contains(&side);
        if !(fits(width) && fits(height)) {
            return Err(usage(anyhow::anyhow!("--size {width}x{height}: sides are multiples of 16 up to 4096")));
        }
        let picture = Rgb { width, height, data: (0..width * height * 3).map(|i| (i / 3 * 7 + i / width) as u8).collect() };
        let patches = prompt::patches(&picture, &model.settings).map_err(usage)?;
        Ok(Sample { model, engine, precision, picture, patches, prompt, steps, max_vram })
    }

    /// The edit's program.
    ///
    /// # Errors
    /// What the planner refuses.
    pub(super) fn program(&self) -> Result<Program> {
        let encode = |text| self.model.tokenizer.encode_prompt(text, self.patches.image_tokens()).map_err(usage);
        let request = Request {
            size: (self.picture.width, self.picture.height),
            reference: true,
            grid: self.patches.grid,
            tokens: &[encode(self.prompt)?, encode("")?],
            steps: self.steps,
            cfg_scale: 6.0,
            noise: NoiseSource::Philox { seed: SEED, grid_threads: H100_GRID_THREADS },
            sample_posterior: false,
            savings: Savings::ALL,
        };
        let (config, settings) = (&self.model.config, &self.model.settings);
        let mut program = Program::new(config, settings, &request, self.precision, self.engine.target())?;
        self.engine.fit(&mut program.plan, self.max_vram)?;
        Ok(program)
    }

    /// The program with stages that can be run again and again: as those that repeat, they keep what they start from.
    ///
    /// # Errors
    /// What the planner refuses.
    pub(super) fn repeatable(&self) -> Result<Program> {
        let mut program = self.program()?;
        program.plan.graph.stages.iter_mut().for_each(|stage| stage.repeat = stage.repeat.max(2));
        program.plan = Plan::new(program.plan.graph, self.precision, self.engine.target())?;
        self.engine.fit(&mut program.plan, None)?; // more is kept than an edit needs
        Ok(program)
    }

    /// Width and height.
    pub(super) fn size(&self) -> [usize; 2] {
        [self.picture.width, self.picture.height]
    }

    /// Gives the executor every input.
    ///
    /// # Errors
    /// What the executor reports.
    pub(super) fn write_inputs(&self, exec: &mut dyn Executor, program: &Program) -> Result<()> {
        let (working, patches) = (Some(&self.picture), &self.patches);
        let host = HostInputs { working, patches, seed: SEED, guidance_limit: 0.93 };
        let inputs = program.inputs(&self.model.config, &host);
        inputs.into_iter().try_for_each(|(id, values)| exec.write(id, values.values()))
    }
}
