//! From a picture to the rows the vision tower reads, and the order in which it reads them.

use anyhow::{Context, Result, ensure};

use super::PromptSettings;
use crate::image::{Filter, Rgb, resize, resize_as_torchvision};

/// Pixels along a patch's side.
const PATCH: usize = 14;
/// Patches along a merged token's side.
const MERGE: usize = 2;
/// Pixels along a merged token's side; both sides of the resized picture are multiples of it.
const FACTOR: usize = PATCH * MERGE;
/// Copies of a still picture that fill the patch's time axis.
const TIME: usize = 2;
/// Values of one patch row: channel, time, y, x.
pub const PATCH_VALUES: usize = 3 * TIME * PATCH * PATCH;

/// Largest aspect of a picture that the encoder takes.
const ASPECT_MAX: usize = 200;

/// Smallest picture that the first of the two resizes leaves, in pixels.
const FIRST_MIN_PIXELS: usize = 4 * FACTOR * FACTOR;
/// Largest picture that it leaves, in pixels.
pub(super) const FIRST_MAX_PIXELS: usize = 16384 * FACTOR * FACTOR;

const MEAN: [f32; 3] = [0.48145466, 0.4578275, 0.40821073];
const STD: [f32; 3] = [0.26862954, 0.261_302_6, 0.275_777_1];

/// Which of Qwen's picture processors brings a picture to its last size and to numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Processor {
    /// The one that works with Pillow.
    #[default]
    Pillow,
    /// The fast one, which works with torchvision: other fixed-point weights, and one expression that scales and normalises.
    Torchvision,
}

/// The vision tower's input.
#[derive(Clone, Debug)]
pub struct Patches {
    /// Patches of 14 pixels down and across; both even.
    pub grid: (usize, usize),
    /// `[grid.0 * grid.1, 1176]`. Rows in block order: four consecutive rows make one merged token.
    pub pixel_values: Vec<f32>,
}

impl Patches {
    /// Merged tokens down and across.
    pub fn merged(&self) -> (usize, usize) {
        (self.grid.0 / MERGE, self.grid.1 / MERGE)
    }

    /// Tokens the picture takes in the text: how often `<|image_pad|>` stands there.
    pub fn image_tokens(&self) -> usize {
        self.merged().0 * self.merged().1
    }
}

/// Height and width, multiples of 28, with an area between the bounds (in pixels; the rounding may leave them
/// slightly) and nearly the aspect of `height` x `width`. An aspect above [`ASPECT_MAX`] is an error.
fn smart_resize(height: usize, width: usize, min_pixels: usize, max_pixels: usize) -> Result<(usize, usize)> {
    let (short, long) = (height.min(width), height.max(width));
    ensure!(short > 0, "the picture is {width}x{height}; both sides must be at least 1 pixel");
    ensure!(
        long <= short.saturating_mul(ASPECT_MAX),
        "the picture is {width}x{height}, an aspect of {:.1}; the encoder takes at most {ASPECT_MAX}; crop the picture",
        long as f64 / short as f64
    );
    let (h, w, factor) = (height as f64, width as f64, FACTOR as f64);
    // Half a step goes to the even multiple, as in Python. No side vanishes: the reference clamps in its
    // first resize and refuses sides under 28 in its second, which never sees one.
    let round = |side: f64| (side / factor).round_ties_even().max(1.0) as usize * FACTOR;
    let area = round(h).saturating_mul(round(w));
    let (height_out, width_out) = if area > max_pixels {
        // The area before rounding decides the ratio, the one after rounding whether it is needed.
        let beta = (h * w / max_pixels as f64).sqrt();
        let down = |side: f64| (side / beta / factor).floor() as usize * FACTOR;
        (down(h), down(w))
    } else if area < min_pixels {
        let beta = (min_pixels as f64 / (h * w)).sqrt();
        let up = |side: f64| (side * beta / factor).ceil() as usize * FACTOR;
        (up(h), up(w))
    } else {
        (round(h), round(w))
    };
    ensure!(
        height_out > 0 && width_out > 0,
        "the picture is {width}x{height}, too long and thin for {FACTOR} pixels on its short side within \
         {max_pixels} pixels; crop it, or raise `max_pixels`"
    );
    Ok((height_out, width_out))
}

/// Height and width in pixels after the first and after the second resize of a picture.
pub fn fit(height: usize, width: usize, settings: &PromptSettings) -> Result<[(usize, usize); 2]> {
    let first = smart_resize(height, width, FIRST_MIN_PIXELS, FIRST_MAX_PIXELS)?;
    let second = smart_resize(first.0, first.1, settings.min_pixels, settings.max_pixels)
        .with_context(|| format!("the encoder cannot take a picture of {width}x{height}"))?;
    Ok([first, second])
}

/// The picture as the encoder sees it: both resizes, each rounded to 8 bits.
pub fn resized(picture: &Rgb, settings: &PromptSettings) -> Result<Rgb> {
    let [first, second] = fit(picture.height, picture.width, settings)?;
    // Two resizes, not one to the last size: the reference rounds to 8 bits in between.
    let picture = resize(picture, first.1, first.0, Filter::Bicubic);
    Ok(match settings.processor {
        Processor::Pillow => resize(&picture, second.1, second.0, Filter::Bicubic),
        Processor::Torchvision => resize_as_torchvision(&picture, second.1, second.0),
    })
}

/// The patch rows of a picture of any size (the picture that the VAE also sees).
pub fn patches(picture: &Rgb, settings: &PromptSettings) -> Result<Patches> {
    patch_rows(&resized(picture, settings)?, settings.processor)
}

/// The patch rows of a picture whose sides are already multiples of 28.
fn patch_rows(picture: &Rgb, processor: Processor) -> Result<Patches> {
    let (height, width) = (picture.height, picture.width);
    ensure!(
        height > 0 && width > 0 && height % FACTOR == 0 && width % FACTOR == 0,
        "the picture is {width}x{height}; both sides must be multiples of {FACTOR} to be cut into patches"
    );
    ensure!(
        picture.data.len() == height * width * 3,
        "a picture of {width}x{height} holds {} bytes instead of {}",
        picture.data.len(),
        height * width * 3
    );
    let table = normalised(processor);
    let grid = (height / PATCH, width / PATCH);
    let mut pixel_values = Vec::with_capacity(grid.0 * grid.1 * PATCH_VALUES);
    for block_y in (0..grid.0).step_by(MERGE) {
        for block_x in (0..grid.1).step_by(MERGE) {
            for (y, x) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                patch_row(picture, block_y + y, block_x + x, &table, &mut pixel_values);
            }
        }
    }
    Ok(Patches { grid, pixel_values })
}

/// Appends the 1176 values of patch (row, column): per channel, the 14x14 pixels twice.
fn patch_row(picture: &Rgb, row: usize, column: usize, table: &[[f32; 256]; 3], out: &mut Vec<f32>) {
    for c in 0..3 {
        let start = out.len();
        for y in row * PATCH..(row + 1) * PATCH {
            let at = (y * picture.width + column * PATCH) * 3;
            let pixels = picture.data[at..at + PATCH * 3].chunks_exact(3);
            out.extend(pixels.map(|pixel| table[c][pixel[c] as usize]));
        }
        // Time is inside channel: each channel's frame is followed by its copy.
        out.extend_from_within(start..);
    }
}

/// Value of every 8-bit level in every channel.
fn normalised(processor: Processor) -> [[f32; 256]; 3] {
    let mut table = [[0.0; 256]; 3];
    for c in 0..3 {
        for level in 0..256 {
            // Scaled in f64 and rounded, then normalised in f32; one fused expression differs in the last bit.
            let scaled = (level as f64 * (1.0 / 255.0)) as f32;
            table[c][level] = match processor {
                Processor::Pillow => (scaled - MEAN[c]) / STD[c],
                Processor::Torchvision => (level as f32 - MEAN[c] * 255.0) / (STD[c] * 255.0),
            };
        }
    }
    table
}

/// The order in which the vision tower lists merged tokens so that each attention window is contiguous.
///
/// `grid` is in patches of 14 pixels, `window` the window's side in merged tokens (4 in the released model).
/// Returns `window_index`, where entry `i` is the merged token at place `i`, and the segment bounds in
/// patches, from 0 to `grid.0 * grid.1`. Windows at the right and bottom edge are smaller, never empty.
pub fn window_order(grid: (usize, usize), window: usize) -> (Vec<usize>, Vec<usize>) {
    let (height, width) = (grid.0 / MERGE, grid.1 / MERGE);
    let mut index = Vec::with_capacity(height * width);
    let mut bounds = vec![0];
    for top in (0..height).step_by(window) {
        for left in (0..width).step_by(window) {
            for y in top..(top + window).min(height) {
                index.extend((left..(left + window).min(width)).map(|x| y * width + x));
            }
            bounds.push(index.len() * MERGE * MERGE);
        }
    }
    (index, bounds)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Both sizes with the bounds of v1.0 and v1.1.
    fn both(height: usize, width: usize) -> Result<[(usize, usize); 2]> {
        fit(height, width, &PromptSettings::default())
    }

    #[test]
    fn sizes_of_the_documented_pictures() {
        // Width and height of: the conditioner's picture, after the first resize, after the second.
        let table = [
            [(512, 512), (504, 504), (504, 504)],
            [(1024, 1024), (1036, 1036), (504, 504)],
            [(416, 624), (420, 616), (392, 588)],
            [(832, 1248), (840, 1260), (392, 616)],
            [(800, 1296), (812, 1288), (392, 616)],
            [(848, 1216), (840, 1204), (420, 588)],
            [(816, 1264), (812, 1260), (392, 616)],
            [(672, 384), (672, 392), (644, 364)],
            [(1360, 768), (1372, 756), (672, 364)],
            [(1760, 592), (1764, 588), (868, 280)],
        ];
        for [(w, h), first, second] in table {
            let got = both(h, w).unwrap().map(|(h, w)| (w, h));
            assert_eq!(got, [first, second], "{w}x{h}");
        }
    }

    #[test]
    fn half_steps_round_to_the_even_multiple() {
        let size = |h, w| smart_resize(h, w, 1, usize::MAX).unwrap();
        assert_eq!(size(28 * 2 + 14, 28 * 3 + 14), (28 * 2, 28 * 4));
        assert_eq!(size(14, 14), (28, 28));
    }

    #[test]
    fn the_smallest_pictures_are_enlarged() {
        assert_eq!(both(1, 1).unwrap(), [(56, 56), (448, 448)]);
        let dot = Rgb { width: 1, height: 1, data: vec![10, 20, 30] };
        let patches = patches(&dot, &PromptSettings::default()).unwrap();
        assert_eq!((patches.grid, patches.image_tokens()), ((32, 32), 256));
        assert_eq!(patches.pixel_values.len(), 32 * 32 * PATCH_VALUES);
        assert_eq!(patches.pixel_values[0], (10.0 / 255.0 - MEAN[0]) / STD[0]);
    }

    #[test]
    fn extreme_aspects_and_empty_pictures_are_refused() {
        assert!(both(1, 200).is_ok());
        let message = |h, w| format!("{:#}", both(h, w).unwrap_err());
        assert!(message(1, 201).contains("201x1"), "{}", message(1, 201));
        assert!(message(4020, 20).contains("aspect of 201.0"), "{}", message(4020, 20));
        assert!(message(0, 5).contains("5x0"));
        let thin = smart_resize(28, 2800, 1, 28 * 28 * 16).unwrap_err().to_string();
        assert!(thin.contains("max_pixels"), "{thin}");
        let odd = Rgb { width: 30, height: 28, data: vec![0; 30 * 28 * 3] };
        assert!(patch_rows(&odd, Processor::Pillow).unwrap_err().to_string().contains("30x28"));
        let short = Rgb { width: 28, height: 28, data: vec![0; 5] };
        assert!(patch_rows(&short, Processor::Pillow).unwrap_err().to_string().contains("2352"));
    }

    #[test]
    fn rows_are_in_block_order_and_hold_channel_time_y_x() {
        // Red counts patch rows, green patch columns, blue the place inside the patch.
        let (width, height) = (56, 28);
        let pixel = |y: usize, x: usize| [y / 14, x / 14, y % 14 * 14 + x % 14].map(|v| v as u8);
        let places = (0..height * width).map(|i| pixel(i / width, i % width));
        let picture = Rgb { width, height, data: places.flatten().collect() };
        let patches = patch_rows(&picture, Processor::Pillow).unwrap();
        let table = normalised(Processor::Pillow);
        let order = [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3)];
        for (values, (y, x)) in patches.pixel_values.chunks(PATCH_VALUES).zip(order) {
            assert!(values[..392].iter().all(|v| *v == table[0][y]));
            assert!(values[392..784].iter().all(|v| *v == table[1][x]));
            for time in 0..2 {
                assert!((0..196).all(|i| values[784 + 196 * time + i] == table[2][i]));
            }
        }
    }

    #[test]
    fn windows_shrink_at_the_edges_and_are_never_empty() {
        assert_eq!(window_order((4, 6), 2), (vec![0, 1, 3, 4, 2, 5], vec![0, 16, 24]));
        assert_eq!(window_order((16, 16), 4).1, [0, 64, 128, 192, 256]);
    }

    proptest! {
        #[test]
        fn sizes_are_multiples_of_28_and_orders_permutations(h in 1usize..9000, w in 1usize..9000, window in 1usize..6) {
            // The first resize may round the shorter side down by up to a third before the aspect is checked.
            prop_assume!(h.max(w) <= 100 * h.min(w).max(28));
            prop_assume!(h.max(w) <= 100 * h.min(w));
            let (height, width) = both(h, w).unwrap()[1];
            prop_assert!(height >= 28 && width >= 28 && height % 28 == 0 && width % 28 == 0);
            let grid = (height / 14, width / 14);
            let (mut index, bounds) = window_order(grid, window);
            index.sort_unstable();
            prop_assert!(index.iter().copied().eq(0..grid.0 * grid.1 / 4));
            prop_assert!(bounds.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert_eq!(*bounds.last().unwrap(), grid.0 * grid.1);
        }
    }
}
