//! An edit's picture and prompts as the model takes them.

use anyhow::{Context, Result};

use super::program::{EditInputs, HostInputs, Program, Request};
use super::{Chosen, EditParameters, Model, Progress, Rng};
use crate::error::usage;
use crate::exec::Executor;
use crate::image::{self, Rgb};
use crate::model::Version;
use crate::model::edit::{EditSpec, NoiseSource};
use crate::prompt::{self, Patches, PromptTokens};

/// An edit's picture and prompts as the model takes them, and the shape of the program that they need.
pub struct Material {
    /// Working width and height.
    pub size: (usize, usize),
    /// The picture at that size; none in text-to-image.
    working: Option<Rgb>,
    /// The picture as the encoder sees it.
    patches: Patches,
    inputs: EditInputs,
    /// Of the prompts' tokens.
    embeddings: Vec<f32>,
    seed: u64,
    chosen: Chosen,
    /// Pictures on the way.
    previews: usize,
}

impl Material {
    /// Brings picture and prompts into the model's form.
    ///
    /// # Errors
    /// A picture or a prompt that the model cannot take, or embeddings that cannot be read.
    pub fn new(edit: &EditParameters, model: &Model, original: Option<&Rgb>, progress: &mut dyn Progress) -> Result<Material> {
        let chosen = edit.with(model)?;
        match original {
            Some(picture) => {
                let size_level = chosen.size_level;
                let size = image::working_size(picture.width, picture.height, size_level)?;
                let working = image::resize(picture, size.0, size.1, edit.filter);
                let of = || format!("a {}x{} picture cannot be edited at size level {size_level}", picture.width, picture.height);
                let patches = prompt::patches(&working, &chosen.prompt).with_context(of)?;
                Material::of(edit, model, chosen, size, Some(working), patches, progress)
            }
            None => {
                if model.config.version == Version::V1_0 {
                    progress.notice("v1.0 was trained to edit pictures only; use v1.1 to make one from text");
                }
                // Text-to-image shows the encoder a black square.
                let black = Rgb { width: 1024, height: 1024, data: vec![0; 3 << 20] };
                let patches = prompt::patches(&black, &chosen.prompt)?;
                Material::of(edit, model, chosen, edit.size, None, patches, progress)
            }
        }
    }

    /// A picture that has its working size already.
    ///
    /// # Errors
    /// A usage error for a size or a prompt that the model cannot take, or embeddings that cannot be read.
    pub fn of_working_size(edit: &EditParameters, model: &Model, working: Rgb, progress: &mut dyn Progress) -> Result<Material> {
        let chosen = edit.with(model)?;
        let patches = prompt::patches(&working, &chosen.prompt).map_err(usage)?;
        Material::of(edit, model, chosen, (working.width, working.height), Some(working), patches, progress)
    }

    fn of(
        edit: &EditParameters,
        model: &Model,
        chosen: Chosen,
        size: (usize, usize),
        working: Option<Rgb>,
        patches: Patches,
        progress: &mut dyn Progress,
    ) -> Result<Material> {
        let tokens = tokenize(model, edit, &chosen, patches.image_tokens(), progress)?;
        let request = Request {
            size,
            reference: working.is_some(),
            grid: patches.grid,
            tokens: &tokens,
            steps: edit.steps,
            noise: match edit.rng {
                Rng::Cuda { grid_threads } => NoiseSource::Philox { grid_threads },
                Rng::Cpu => NoiseSource::Host,
            },
            sample_posterior: chosen.sample_posterior,
            savings: edit.savings,
            conventions: chosen.conventions,
        };
        let inputs = EditInputs::new(&model.config, &chosen.prompt, &request)?;
        let embeddings = inputs.embeddings(&*model.folder)?;
        Ok(Material { size, working, patches, inputs, embeddings, seed: edit.seed, chosen, previews: 0 })
    }

    /// The same, with so many pictures on the way to the result, or fewer where there are few steps. The result is the same; each
    /// takes as long as decoding.
    pub fn with_previews(self, previews: usize) -> Material {
        Material { previews, ..self }
    }

    /// How many pictures on the way are asked for.
    pub fn previews(&self) -> usize {
        self.previews
    }

    /// The same with another seed.
    pub fn with_seed(self, seed: u64) -> Material {
        Material { seed, ..self }
    }

    /// What the edit left open, settled.
    pub fn chosen(&self) -> &Chosen {
        &self.chosen
    }

    /// The shape of the program that makes the edit.
    pub fn spec(&self) -> &EditSpec {
        &self.inputs.spec
    }

    /// Gives a program every input.
    ///
    /// # Errors
    /// What the executor reports.
    pub fn write_inputs(&self, program: &Program, exec: &mut dyn Executor) -> Result<()> {
        let Material { patches, embeddings, seed, chosen, .. } = self;
        let (working, seed) = (self.working.as_ref(), *seed);
        let Chosen { cfg_scale, guidance_limit, clock, .. } = *chosen;
        let host = HostInputs { working, patches, embeddings, seed, cfg_scale, guidance_limit, clock };
        let values = self.inputs.values(program, &host);
        values.into_iter().try_for_each(|(id, values)| exec.write(id, values.values()))
    }
}

/// Ids of the prompt and, unless the guidance scale leaves it without effect, of the negative prompt; a tail that does not
/// fit is reported.
fn tokenize(
    model: &Model,
    edit: &EditParameters,
    chosen: &Chosen,
    image_tokens: usize,
    progress: &mut dyn Progress,
) -> Result<Vec<PromptTokens>> {
    let (guided, settings) = (chosen.guided, &chosen.prompt);
    if !guided && !edit.negative_prompt.is_empty() {
        let scale = chosen.cfg_scale;
        let text =
            format!("the negative prompt has no effect at a guidance scale of {scale}; choose another --cfg-scale to use it");
        progress.notice(&text);
    }
    let mut branches = Vec::new();
    let prompts = [("prompt", &edit.prompt), ("negative prompt", &edit.negative_prompt)];
    for (name, text) in prompts.into_iter().take(if guided { 2 } else { 1 }) {
        let tokens = model.tokenizer.encode_prompt(text, image_tokens, settings).map_err(usage)?;
        let (lost, most) = (tokens.lost(settings), settings.max_text);
        let cut = match (lost, tokens.unread) {
            (0, 0) => None,
            (lost, 0) => Some(format!("its last {lost} tokens are cut")),
            (lost, unread) => Some(format!("{lost} tokens and the {unread} bytes that follow them are cut")),
        };
        if let Some(cut) = cut {
            progress.notice(&format!("the {name} is too long: {cut}, since the model reads {most} with the picture's"));
        }
        branches.push(tokens);
    }
    Ok(branches)
}
