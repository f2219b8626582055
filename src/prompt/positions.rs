//! What follows from a prompt's ids: which rows are kept, which are shared, and the rotary positions.

use anyhow::{Result, ensure};

use super::PromptSettings;

/// The token ids of one prompt with its picture, L in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PromptTokens {
    /// `[L]`
    pub ids: Vec<u32>,
    /// Positions with id 0 (a lone `!`), ascending: no token may attend to them, and they have no place in the
    /// order of positions.
    pub masked: Vec<usize>,
    /// Position of the picture's first token.
    pub image_start: usize,
    /// How many tokens the picture takes.
    pub image_tokens: usize,
    /// Bytes at the end of the prompt that were not looked at: what precedes them is more than can be kept.
    pub unread: usize,
}

impl PromptTokens {
    /// Rows of the encoder's output that are kept, from `settings.cut` on. Ids beyond them influence
    /// nothing: the text model is causal.
    pub fn kept(&self, settings: &PromptSettings) -> usize {
        settings.max_text.min(self.ids.len().saturating_sub(settings.cut))
    }

    /// Tokens at the end that are too many to be kept, not counting what was not looked at; the models ignore them silently.
    pub fn lost(&self, settings: &PromptSettings) -> usize {
        self.ids.len().saturating_sub(settings.cut + self.kept(settings))
    }

    /// Length of the part that is the same for every prompt with this picture: through `<|vision_end|>`.
    pub fn shared_prefix(&self) -> usize {
        self.image_start + self.image_tokens + 1
    }

    /// Rotary positions, `[3][L]`, axes time, row, column; `merged` is the picture's height and width in
    /// merged tokens.
    pub fn positions(&self, merged: (usize, usize)) -> Result<[Vec<u32>; 3]> {
        let (height, width) = merged;
        let (start, end) = (self.image_start, self.image_start + self.image_tokens);
        ensure!(
            height * width == self.image_tokens && end <= self.ids.len(),
            "positions for a picture of {height}x{width} merged tokens in a text of {} tokens, of which \
             {} are the picture's from {start} on",
            self.ids.len(),
            self.image_tokens
        );
        // A masked token keeps position 1 on all axes and the next one takes the place it would have had.
        let mut positions = [(); 3].map(|()| vec![1; self.ids.len()]);
        let mut masked = self.masked.iter().peekable();
        let mut next = 0;
        for i in 0..self.ids.len() {
            if masked.next_if_eq(&&i).is_some() {
                continue;
            }
            let (row, column) = match i.checked_sub(start) {
                Some(k) if i < end => (k / width, k % width),
                _ => (0, 0),
            };
            positions[0][i] = next as u32;
            positions[1][i] = (next + row) as u32;
            positions[2][i] = (next + column) as u32;
            // The whole picture stands at one time; it takes as many places as its longer side has tokens.
            if i < start || i >= end {
                next += 1;
            } else if i + 1 == end {
                next += height.max(width);
            }
        }
        Ok(positions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::prompt::tokens::tests::real;

    #[test]
    fn the_tail_beyond_640_is_lost() {
        let settings = PromptSettings::default();
        // An empty prompt with N picture tokens has 225 + N tokens, of which 8 + N are kept.
        let tokens = real().encode_prompt("", 324, &settings).unwrap();
        assert_eq!(tokens.ids.len(), 225 + 324);
        assert_eq!((tokens.kept(&settings), tokens.lost(&settings)), (8 + 324, 0));
        assert_eq!((tokens.image_start, tokens.shared_prefix()), (219, 220 + 324));
        for (words, lost) in [(307, 0), (308, 0), (309, 1)] {
            let tokens = real().encode_prompt(&" cat".repeat(words), 324, &settings).unwrap();
            assert_eq!(tokens.lost(&settings), lost, "{words} words");
            assert_eq!(tokens.kept(&settings), (332 + words).min(640));
        }
    }

    #[test]
    fn positions_pass_over_masked_tokens_and_the_picture() {
        let tokens = PromptTokens {
            ids: vec![5, 0, 9, 9, 9, 9, 9, 9, 6, 0, 7],
            masked: vec![1, 9],
            image_start: 2,
            image_tokens: 6,
            unread: 0,
        };
        let [time, row, column] = tokens.positions((3, 2)).unwrap();
        assert_eq!(time, [0, 1, 1, 1, 1, 1, 1, 1, 4, 1, 5]);
        assert_eq!(row, [0, 1, 1, 1, 2, 2, 3, 3, 4, 1, 5]);
        assert_eq!(column, [0, 1, 1, 2, 1, 2, 1, 2, 4, 1, 5]);
        assert!(tokens.positions((2, 2)).unwrap_err().to_string().contains("2x2"));
        // The documented 36x36 grid: the last picture token and `<|vision_end|>`.
        let tokens = real().encode_prompt("", 324, &PromptSettings::default()).unwrap();
        let [time, row, column] = tokens.positions((18, 18)).unwrap();
        assert_eq!((time[542], row[542], column[542]), (219, 236, 236));
        assert_eq!((time[543], row[543], column[543]), (237, 237, 237));
    }
}
