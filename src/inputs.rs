//! From tokens and patches to the program's spec and the values of its inputs. Pure: no files, no execution.

use std::ops::Range;

use anyhow::Result;

use crate::model::text::TextRows;
use crate::model::{Config, HEAD_WIDTH, PromptRows, text, vision};
use crate::prompt::{PromptSettings, PromptTokens, window_order};

/// The picture's side: what the vision tower is told besides the pixels.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureInputs {
    /// Height and width in merged tokens.
    pub merged: (usize, usize),
    /// Windows as ranges of patch rows in window order.
    pub windows: Vec<Range<usize>>,
    /// For each patch row in window order, its row in block order.
    pub window_rows: Vec<i32>,
    /// Rotary table in window order.
    pub rope: Vec<f32>,
    /// For each merged token in reading order, its place in window order.
    pub places: Vec<i32>,
}

impl PictureInputs {
    /// For a picture of `grid` (height, width) patches.
    pub fn new(grid: (usize, usize), config: &Config) -> PictureInputs {
        let merged = (grid.0 / 2, grid.1 / 2);
        let (order, bounds) = window_order(grid, config.vision.window);
        let mut places = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, &token)| places[token] = place as i32);
        // Four patches a merged token, in reading order within it; (row, column) in the patch grid.
        let patches = || order.iter().flat_map(|&token| (0..4).map(move |k| (token, k)));
        let position = |(token, k): (usize, usize)| (token / merged.1 * 2 + k / 2, token % merged.1 * 2 + k % 2);
        let positions: Vec<_> = patches().map(position).collect();
        PictureInputs {
            merged,
            windows: bounds.windows(2).map(|b| b[0]..b[1]).collect(),
            window_rows: patches().map(|(token, k)| (4 * token + k) as i32).collect(),
            rope: vision::rope_table(&positions, config.vision.hidden / config.vision.heads),
            places,
        }
    }
}

/// The prompts' side, for all branches.
#[derive(Clone, Debug, PartialEq)]
pub struct PromptInputs {
    /// Rows of the text model.
    pub text: TextRows,
    /// Rows of the connector.
    pub prompt: PromptRows,
    /// Token id of each row that is no picture's.
    pub tokens: Vec<u32>,
    /// Place in window order of each picture row.
    pub places: Vec<i32>,
    /// Rotary table of the text model.
    pub rope: Vec<f32>,
    /// 0, or −∞ for rows that are no keys.
    pub key_bias: Vec<f32>,
    /// Rows of the text model that make up the embedding, −1 for zeros.
    pub embedding_rows: Vec<i32>,
}

impl PromptInputs {
    /// For the branches' tokens and their common picture. `share_prefix` computes what all branches share once;
    /// `collapse_padding` lets one padding row stand for all.
    ///
    /// # Errors
    /// Tokens that do not fit the picture.
    pub fn new(
        branches: &[PromptTokens],
        picture: &PictureInputs,
        settings: &PromptSettings,
        config: &Config,
        share_prefix: bool,
        collapse_padding: bool,
    ) -> Result<PromptInputs> {
        // Which rows are computed. What lies beyond the last kept token influences nothing: the model is causal.
        let ends: Vec<usize> = branches.iter().map(|t| settings.cut + t.kept(settings)).collect();
        let shared = branches.iter().map(PromptTokens::shared_prefix).min().unwrap_or(0);
        let prefix = if share_prefix && ends.iter().all(|&end| end > shared) { shared } else { 0 };
        let kept: Vec<usize> = branches.iter().map(|t| t.kept(settings)).collect();
        let rows = Rows { prefix, ends: &ends };

        let mut inputs = PromptInputs {
            text: rows.text(branches),
            prompt: PromptRows::new(&kept, settings.max_text, collapse_padding),
            tokens: vec![],
            places: vec![],
            rope: vec![],
            key_bias: vec![],
            embedding_rows: vec![],
        };
        // What each row is: the shared prefix and the first branch's tail, then the other branches' tails. Then which rows
        // make up the embedding, zeros for padding.
        let mut positions = Vec::new();
        for (branch, tokens) in branches.iter().enumerate() {
            let axes = tokens.positions(picture.merged)?;
            let own = if branch == 0 { 0..ends[0] } else { prefix..ends[branch] };
            for at in own {
                match picture_row(tokens, at) {
                    Some(row) => inputs.places.push(picture.places[row]),
                    None => inputs.tokens.push(tokens.ids[at]),
                }
                inputs.key_bias.push(if tokens.masked.contains(&at) { f32::NEG_INFINITY } else { 0.0 });
                positions.push([0, 1, 2].map(|axis| axes[axis][at] as usize));
            }
            let embedded = (settings.cut..ends[branch]).map(|at| rows.row(branch, at) as i32);
            inputs.embedding_rows.extend(embedded.chain(vec![-1; inputs.prompt.padding[branch]]));
        }

        // Where each row stands.
        inputs.rope = text::rope_table(&positions, &config.text);
        inputs.text.hidden_keys = inputs.key_bias.iter().any(|b| *b != 0.0);
        debug_assert_eq!(inputs.rope.len(), inputs.text.total() * HEAD_WIDTH);
        debug_assert_eq!(inputs.places.len(), inputs.text.of_pictures());
        Ok(inputs)
    }
}

/// Where the positions of the branches' sequences lie among the packed rows.
struct Rows<'a> {
    prefix: usize,
    ends: &'a [usize],
}

impl Rows<'_> {
    /// Packed row of position `at` of a branch.
    fn row(&self, branch: usize, at: usize) -> usize {
        match at < self.prefix {
            true => at,
            false => self.prefix + self.ends[..branch].iter().map(|end| end - self.prefix).sum::<usize>() + at - self.prefix,
        }
    }

    fn text(&self, branches: &[PromptTokens]) -> TextRows {
        let tails = self.ends.iter().map(|end| end - self.prefix).collect();
        let picture = |(branch, tokens): (usize, &PromptTokens)| {
            let end = (tokens.image_start + tokens.image_tokens).min(self.ends[branch]);
            self.row(branch, tokens.image_start)..self.row(branch, end - 1) + 1
        };
        let mut pictures: Vec<_> = branches.iter().enumerate().map(picture).collect();
        pictures.dedup(); // one, if it lies in the shared prefix
        TextRows { prefix: self.prefix, tails, pictures, hidden_keys: false }
    }
}

/// Which of the picture's tokens, in reading order, stands at position `at`; none: a token of the text.
fn picture_row(tokens: &PromptTokens, at: usize) -> Option<usize> {
    at.checked_sub(tokens.image_start).filter(|&row| row < tokens.image_tokens)
}
