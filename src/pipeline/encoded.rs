//! What the encoders make of a picture and its prompts, kept for further seeds: they do not look at the seed.

use anyhow::{Result, bail};

use super::Program;
use super::run::{Ended, Ran, run_along};
use crate::exec::Executor;
use crate::graph::{BodyId, TensorId};
use crate::ops::HostValues;
use crate::pipeline::Progress;
use crate::plan::Itinerary;

/// What the encoders have made of one picture and its prompts; empty before the first edit of them.
///
/// The values are read back and written as they are, so that an edit that starts from them has every byte of one that does not.
#[derive(Debug, Default)]
pub struct Encoded {
    /// The prompts' embedding, or one for each branch.
    embedding: Option<HostValues>,
    /// The picture's tokens; none in text-to-image, and where the seed draws them.
    reference: Option<HostValues>,
}

impl Encoded {
    /// Runs a program, whose inputs are there, without the stages whose results are known, and keeps those of the others.
    ///
    /// # Errors
    /// As for [`run_program`](super::run_program).
    pub(super) fn run(&mut self, exec: &mut dyn Executor, program: &Program, progress: &mut dyn Progress) -> Result<Ran> {
        let (t, spec) = (&program.tensors, &program.spec);
        // A posterior that is sampled is another for each seed.
        let (tokens, drawn) = (t.reference_tokens, spec.sample_posterior);
        for (id, values) in [(Some(t.embedding), &self.embedding), (tokens, &self.reference)] {
            if let (Some(id), Some(values)) = (id, values) {
                exec.write(id, values.values())?;
            }
        }
        let known = |body: BodyId| match body {
            _ if Some(body) == t.bodies.vae_encode => self.reference.is_some(),
            _ => (body == t.bodies.vision || body == t.bodies.text) && self.embedding.is_some(),
        };
        let legs = program.plan.itinerary.0.iter();
        let left = Itinerary(legs.filter(|leg| !leg.bodies.iter().all(|body| known(*body))).cloned().collect());
        let mut made = Encoded::default();
        let keep: &mut Ended = &mut |body, exec| {
            if body == t.bodies.text {
                made.embedding = Some(floats(exec, t.embedding)?);
            } else if let Some(tokens) = tokens.filter(|_| Some(body) == t.bodies.vae_encode && !drawn) {
                made.reference = Some(floats(exec, tokens)?);
            }
            Ok(())
        };
        let ran = run_along(&left, exec, program, progress, keep)?;
        self.embedding = self.embedding.take().or(made.embedding);
        self.reference = self.reference.take().or(made.reference);
        Ok(ran)
    }
}

fn floats(exec: &dyn Executor, id: TensorId) -> Result<HostValues> {
    match exec.read(id)? {
        values @ HostValues::F32(_) => Ok(values),
        _ => bail!("{} does not hold floats", exec.plan().graph.storage_of(id).name),
    }
}
