//! Pictures on the way: what the result would be if the steps went straight on from here.
//!
//! The latents move along a velocity, x' = x + (t' − t)·v, and end at t = 0: so two of them tell the end, x' − t'·v. It is decoded
//! between two steps and the latents are put back as they were, so that no bit of the result changes.

use anyhow::{Context, Result, bail};

use super::{Program, Progress};
use crate::exec::Executor;
use crate::graph::BodyId;
use crate::image::Rgb;
use crate::model::edit::EditBodies;
use crate::ops::HostValues;
use crate::plan::{Leg, Turns};

/// The steps after which so many pictures are shown, evenly spread: fewer where there are few steps, and none after the last.
fn after(steps: usize, count: usize) -> Vec<usize> {
    let mut after: Vec<usize> = (1..=count).map(|n| n * steps / (count + 1)).filter(|&step| step > 0 && step < steps).collect();
    after.dedup();
    after
}

impl Program {
    /// The program with pictures decoded between its steps.
    ///
    /// # Errors
    /// What the planner refuses.
    pub fn with_previews(self, count: usize) -> Result<Program> {
        let after = after(self.spec.steps, count);
        if after.is_empty() {
            return Ok(self);
        }
        let turn = |step: usize| if after.contains(&step) || step == self.spec.steps { vec![0, 1] } else { vec![0] };
        let letters = (1..=self.spec.steps).flat_map(turn).collect();
        let EditBodies { step, vae_decode, .. } = self.tensors.bodies;
        let mut itinerary = self.plan.itinerary.clone();
        itinerary.0.truncate(itinerary.0.len() - 2);
        itinerary.0.push(Leg { bodies: vec![step, vae_decode], turns: Turns::Mask(letters) });
        self.along(itinerary)
    }
}

/// A picture that is shown after the step that is about to run.
pub(super) struct Preview {
    index: usize,
    /// The number of the step.
    step: usize,
    /// Latents before it.
    before: Vec<f32>,
}

impl Preview {
    /// Looks whether a picture comes after the step of a turn, and what that step starts from.
    ///
    /// # Errors
    /// What the executor reports.
    pub(super) fn begin(exec: &dyn Executor, program: &Program, visits: &[BodyId], turn: usize) -> Result<Option<Preview>> {
        let bodies = &program.tensors.bodies;
        let comes = visits[turn] == bodies.step && visits.get(turn + 1) == Some(&bodies.vae_decode) && turn + 2 < visits.len();
        if !comes {
            return Ok(None);
        }
        let earlier = |body: BodyId| visits[..turn].iter().filter(|&&visited| visited == body).count();
        let (index, step) = (earlier(bodies.vae_decode), earlier(bodies.step));
        Ok(Some(Preview { index, step, before: exec.read_f32(program.tensors.denoised.latents)? }))
    }

    /// Decodes where the step leads to, and leaves the latents as they are.
    ///
    /// # Errors
    /// What the executor reports, or `progress` returns.
    pub(super) fn show(self, exec: &mut dyn Executor, program: &Program, progress: &mut dyn Progress) -> Result<()> {
        let t = &program.tensors;
        let (latents, schedule) = (t.denoised.latents, exec.read_f32(t.denoised.schedule)?);
        let after = exec.read_f32(latents)?;
        exec.write(latents, HostValues::F32(end(&self.before, &after, &schedule, self.step)).values())?;
        exec.run(t.bodies.vae_decode, &mut |_, _| progress.node())?;
        exec.finish(&mut |_, _| progress.node())?;
        let HostValues::U8(data) = exec.read(t.pixels)? else { bail!("the pixels are not bytes") };
        exec.write(latents, HostValues::F32(after).values()).context("the latents cannot be put back")?;
        let (height, width) = program.spec.latent;
        progress.preview(self.index, Rgb { width: 8 * width, height: 8 * height, data })
    }
}

/// The end of a straight way from `before` through `after` the step of this number, of a schedule [steps, 3] that begins with Δt.
fn end(before: &[f32], after: &[f32], schedule: &[f32], step: usize) -> Vec<f32> {
    let left: f32 = schedule.chunks_exact(3).skip(step + 1).map(|row| row[0]).sum();
    let further = left / schedule[3 * step];
    before.iter().zip(after).map(|(before, after)| after + further * (after - before)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_spread_over_the_steps() {
        for (steps, count, expected) in [
            (28, 2, &[9, 18][..]),
            (28, 1, &[14]),
            (28, 3, &[7, 14, 21]),
            (3, 3, &[1, 2]),
            (2, 2, &[1]),
            (1, 3, &[]),
            (28, 0, &[]),
        ] {
            assert_eq!(after(steps, count), expected, "{steps} steps, {count} pictures");
        }
    }

    #[test]
    fn a_straight_way_ends_where_it_leads() {
        // Times 1, 0.75, 0.25, 0; from 4 at a velocity of 2.
        let schedule = [-0.25, 0.0, 1.0, -0.5, 0.0, 1.0, -0.25, 0.0, 1.0];
        assert_eq!(end(&[4.0], &[3.5], &schedule, 0), [2.0]);
        assert_eq!(end(&[3.5], &[2.5], &schedule, 1), [2.0]);
    }
}
