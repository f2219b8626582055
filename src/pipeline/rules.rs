//! What an edit follows beside the weights: the rules of the official script, or those of the pipeline in diffusers.
//!
//! This is the one place that says what belongs to which set. The modules below have each difference as a value of their own,
//! and know nothing of sets.

use std::fmt;

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

use crate::error::usage;
use crate::model::Version;
use crate::model::edit::Conventions;
use crate::ops::{Levels, Rounding};
use crate::prompt::{Processor, PromptSettings};
use crate::sampling::Clock;
use crate::weights::LayoutKind;

/// A set of rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Rules {
    /// Those of the official script, for any version.
    #[default]
    Official,
    /// Those of the pipeline in diffusers for version 1.1, in the element type that the activations have.
    Diffusers,
}

/// What a set says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct RuleSet {
    /// Times above it use the norm-limited rule of guidance, unless the user names another.
    pub guidance_limit: f64,
    /// Least guidance scale for which two branches run; 1 never has two.
    pub least_guided: f32,
    /// Side of the square whose area a picture is brought to, unless the model or the user names another.
    pub size_level: usize,
    /// The reference's latent is a sample of its posterior, unless the user says otherwise.
    pub sample_posterior: bool,
    /// `Picture 1: ` stands before the picture.
    labelled: bool,
    /// What shows the picture to the text encoder.
    processor: Processor,
    /// What makes the times.
    pub clock: Clock,
    /// What is recorded in the set's own way.
    pub conventions: Conventions,
}

impl Rules {
    /// Every set.
    pub const ALL: [Rules; 2] = [Rules::Official, Rules::Diffusers];

    /// The set that goes with a checkpoint's layout.
    pub fn of_layout(layout: LayoutKind) -> Rules {
        match layout {
            LayoutKind::Official => Rules::Official,
            LayoutKind::Diffusers => Rules::Diffusers,
        }
    }

    /// What the set says.
    pub(super) fn set(self) -> RuleSet {
        match self {
            Rules::Official => RuleSet {
                guidance_limit: 0.93,
                least_guided: f32::NEG_INFINITY,
                size_level: 512,
                sample_posterior: false, // the script draws without a seed, so no sample is its own
                labelled: false,
                processor: Processor::Pillow,
                clock: Clock::Official,
                conventions: Conventions::OFFICIAL,
            },
            Rules::Diffusers => RuleSet {
                guidance_limit: 0.93 / 1000.0, // 0.93 is compared with the timestep, which counts to 1000: every step is above it
                least_guided: 1.0,
                size_level: 1024,
                sample_posterior: true,
                labelled: true,
                processor: Processor::Torchvision,
                clock: Clock::Scheduler,
                conventions: Conventions {
                    update: Rounding::EachOperation,
                    levels: Levels::Nearest,
                    posterior_first: true,
                    bounded_posterior: true,
                },
            },
        }
    }

    /// A model's settings of the encoder's input, with what the set says of it.
    pub fn prompt(self, settings: &PromptSettings) -> PromptSettings {
        let RuleSet { labelled, processor, .. } = self.set();
        PromptSettings { labelled, processor, ..settings.clone() }
    }

    /// What the set records in its own way.
    pub fn conventions(self) -> Conventions {
        self.set().conventions
    }

    /// What makes the times.
    pub fn clock(self) -> Clock {
        self.set().clock
    }

    /// Whether a reference's latent is sampled unless the user says otherwise.
    pub fn samples_posterior(self) -> bool {
        self.set().sample_posterior
    }

    /// Whether an edit of this guidance scale has a branch for the negative prompt.
    pub fn guided(self, cfg_scale: f32) -> bool {
        cfg_scale != 1.0 && cfg_scale >= self.set().least_guided
    }

    /// Refuses a version for which there is no such set.
    ///
    /// # Errors
    /// A usage error.
    pub fn check(self, version: Version) -> Result<()> {
        match (self, version) {
            (Rules::Diffusers, Version::V1_0) => Err(usage(anyhow!(
                "the model is version 1.0, and diffusers has a pipeline for version 1.1 alone; use the rules official"
            ))),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Rules::Official => "official",
            Rules::Diffusers => "diffusers",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline::{Chosen, EditParameters, Model};

    #[test]
    fn what_is_left_open_is_as_the_rules_say() {
        let model = Model { size_level: None, ..Model::demo().unwrap() };
        let with = |edit: &EditParameters| edit.with(&model).unwrap();
        let of = |rules| with(&EditParameters { rules: Some(rules), ..EditParameters::new("x") });
        let Chosen { rules, guidance_limit, size_level, sample_posterior, prompt, .. } = with(&EditParameters::new("x"));
        assert_eq!((rules, guidance_limit, size_level, sample_posterior), (Rules::Official, 0.93, 512, false));
        assert_eq!((prompt.labelled, prompt.processor), (false, Processor::Pillow));
        let Chosen { guidance_limit, size_level, sample_posterior, prompt, clock, .. } = of(Rules::Diffusers);
        assert_eq!((guidance_limit, size_level, sample_posterior, clock), (0.00093, 1024, true, Clock::Scheduler));
        assert_eq!((prompt.labelled, prompt.processor), (true, Processor::Torchvision));
        let own = EditParameters {
            size_level: Some(256),
            sample_posterior: Some(false),
            guidance_limit: Some(0.5),
            ..EditParameters::new("x")
        };
        let Chosen { size_level, sample_posterior, guidance_limit, .. } =
            with(&EditParameters { rules: Some(Rules::Diffusers), ..own });
        assert_eq!((size_level, sample_posterior, guidance_limit), (256, false, 0.5));
        let sized = Model { size_level: Some(96), ..Model::demo().unwrap() };
        for rules in Rules::ALL {
            let edit = EditParameters { rules: Some(rules), ..EditParameters::new("x") };
            assert_eq!(edit.with(&sized).unwrap().size_level, 96, "{rules}");
        }
    }

    #[test]
    fn a_scale_of_one_has_one_branch_and_so_have_smaller_ones_in_diffusers() {
        for (scale, branches) in
            [(6.0, [true, true]), (1.5, [true, true]), (1.0, [false; 2]), (0.5, [true, false]), (-2.0, [true, false])]
        {
            assert_eq!(Rules::ALL.map(|rules| rules.guided(scale)), branches, "{scale}");
        }
    }

    /// Every step is above the limit: no schedule has a time below a thousandth.
    #[test]
    fn every_step_of_diffusers_is_limited() {
        for (steps, tokens) in [(1, 1), (28, 4096), (1000, 1), (1000, 65_536)] {
            let times = Clock::Scheduler.times(steps, tokens);
            assert_eq!((times.len(), times[0], times[steps]), (steps + 1, 1.0, 0.0));
            let limit = Rules::Diffusers.set().guidance_limit;
            assert!(times[..steps].iter().all(|&time| f64::from(time) > limit), "{steps} steps, {tokens} tokens");
        }
    }
}
